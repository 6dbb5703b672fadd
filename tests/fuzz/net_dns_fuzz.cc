#include "net/dns_message.h"

#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "net/policy.h"

// A guest's DNS query, and anybody's answer to it: the input is the query's
// length, the query, and the answer. What is asked onwards is the question that
// was read, and an answer opens no more than it may.

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace catnap::net;  // NOLINT(google-build-using-namespace)
  catnap::fuzz::FuzzInput input(data, size);
  const auto query_bytes = input.Bytes(input.Integer<uint16_t>());
  const auto parse = ParseDnsQuery(query_bytes);
  if (!parse.has_value()) return 0;
  const DnsQuery& query = parse->query;
  const auto refusal = BuildDnsAnswer(query, parse->code);
  FUZZ_CHECK(refusal.size() <= 12 + query_bytes.size());
  if (parse->code != DnsCode::kNoError) return 0;
  FUZZ_CHECK(query.name.empty() || CanonicalName(query.name) == query.name);
  const auto again = ParseDnsQuery(BuildDnsQuery(query, 7));
  FUZZ_CHECK(again.has_value() && again->code == DnsCode::kNoError);
  FUZZ_CHECK(again->query.name == query.name);
  FUZZ_CHECK(again->query.question == query.question);
  FUZZ_CHECK(again->query.answer_bytes == query.answer_bytes);
  const auto answer = ParseDnsAnswer(input.Rest(), query, 7);
  if (!answer.has_value()) return 0;
  FUZZ_CHECK(answer->addresses.size() <= kMaxAddresses);
  for (const auto& found : answer->addresses) {
    FUZZ_CHECK(found.time_to_live <= std::chrono::hours(24));
  }
  return 0;
}
