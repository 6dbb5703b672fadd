#include "net/dns_message.h"

#include <catch2/catch.hpp>
#include <string>

#include "support/guest_frames.h"

namespace catnap::net {
namespace {

using test::AddressRecord;
using test::AliasRecord;
using test::DnsQuestion;
using test::DnsReply;
using Message = std::vector<uint8_t>;

constexpr IpAddress kOne = IpAddress::V4(1, 1, 1, 1);
constexpr IpAddress kTwo = IpAddress::V4(2, 2, 2, 2);

DnsQuery QueryOf(const Message& message) {
  const auto parse = ParseDnsQuery(message);
  REQUIRE(parse.has_value());
  REQUIRE(parse->code == DnsCode::kNoError);
  return parse->query;
}

// The addresses that an answer to "a.org" gives.
std::vector<IpAddress> AddressesOf(const Message& reply) {
  const auto answer =
      ParseDnsAnswer(reply, QueryOf(DnsQuestion(7, "a.org")), 7);
  REQUIRE(answer.has_value());
  std::vector<IpAddress> addresses;
  for (const auto& found : answer->addresses) {
    addresses.push_back(found.address);
  }
  return addresses;
}

TEST_CASE("ParseDnsQuery reads a question") {
  Message message = DnsQuestion(0x1234, "WWW.Example.org", 28);
  DnsQuery query = QueryOf(message);
  CHECK(query.id == 0x1234);
  CHECK(query.name == "www.example.org");
  CHECK(query.type == 28);
  CHECK(query.recursion_desired);
  CHECK(query.answer_bytes == 512);
  // With EDNS: the guest takes more, and gets what we take.
  Store16(message, 10, 1);
  AppendBytes(&message, Message{0, 0, 41, 0x20, 0, 0, 0, 0, 0, 0, 0});
  query = QueryOf(message);
  CHECK(query.edns);
  CHECK(query.answer_bytes == kMaxDnsBytes);
  const DnsQuery again = QueryOf(BuildDnsQuery(query, 9));
  CHECK(again.id == 9);
  CHECK(again.question == query.question);
  CHECK(again.answer_bytes == query.answer_bytes);
}

TEST_CASE("ParseDnsQuery answers malformed questions as such") {
  const Message good = DnsQuestion(1, "a.org");
  CHECK_FALSE(ParseDnsQuery(std::span(good).first(11)).has_value());
  Message bad = good;
  bad[2] |= 0x80;  // An answer.
  CHECK_FALSE(ParseDnsQuery(bad).has_value());
  for (size_t size = 12; size < good.size(); ++size) {
    const Message part(good.begin(),
                       good.begin() + static_cast<std::ptrdiff_t>(size));
    const auto parse = ParseDnsQuery(part);
    REQUIRE(parse.has_value());
    CHECK(parse->code == DnsCode::kFormatError);
    CHECK(BuildDnsAnswer(parse->query, parse->code).size() == 12);
  }
  bad = good;
  bad[12] = 0xc0;  // A pointer, to the header.
  bad[13] = 0;
  CHECK(ParseDnsQuery(bad)->code == DnsCode::kFormatError);
  bad = good;
  bad[5] = 2;  // Two questions.
  CHECK(ParseDnsQuery(bad)->code == DnsCode::kFormatError);
  bad = good;
  bad[2] |= 0x28;  // An update.
  CHECK(ParseDnsQuery(bad)->code == DnsCode::kNotImplemented);
}

TEST_CASE("ParseDnsQuery does not take a dot in a label for two labels") {
  Message message = DnsQuestion(1, "aXorg.net");
  message[14] = '.';
  CHECK(QueryOf(message).name.empty());
  CHECK(QueryOf(DnsQuestion(1, "")).name.empty());  // The root.
}

TEST_CASE("ParseDnsAnswer gives the addresses of the name asked only") {
  const Message question = DnsQuestion(7, "a.org");
  CHECK(AddressesOf(DnsReply(question, {AddressRecord("a.org", kOne),
                                        AddressRecord("A.ORG", kTwo)})) ==
        std::vector<IpAddress>{kOne, kTwo});
  CHECK(
      AddressesOf(DnsReply(question, {AddressRecord("b.org", kOne)})).empty());
  // Records that nobody's alias leads to.
  CHECK(AddressesOf(DnsReply(question, {AliasRecord("x.org", "b.org"),
                                        AddressRecord("b.org", kOne)}))
            .empty());
}

TEST_CASE("ParseDnsAnswer follows aliases in any order, not in rings") {
  const Message question = DnsQuestion(7, "a.org");
  CHECK(AddressesOf(DnsReply(question, {AddressRecord("c.org", kOne),
                                        AliasRecord("b.org", "c.org"),
                                        AliasRecord("a.org", "b.org")})) ==
        std::vector<IpAddress>{kOne});
  CHECK(AddressesOf(DnsReply(question, {AliasRecord("a.org", "b.org"),
                                        AliasRecord("b.org", "a.org")}))
            .empty());
  CHECK(AddressesOf(DnsReply(question, {AliasRecord("a.org", "a.org"),
                                        AddressRecord("a.org", kOne)})) ==
        std::vector<IpAddress>{kOne, kOne});
  std::vector<test::DnsRecord> chain;
  chain.reserve(21);
  for (int i = 0; i < 20; ++i) {
    chain.push_back(AliasRecord(i == 0 ? "a.org" : std::to_string(i) + ".org",
                                std::to_string(i + 1) + ".org"));
  }
  chain.push_back(AddressRecord("20.org", kOne));
  CHECK(AddressesOf(DnsReply(question, chain)).empty());
}

TEST_CASE("ParseDnsAnswer takes the least time to live on the way") {
  const auto reply = DnsReply(
      DnsQuestion(7, "a.org"),
      {AliasRecord("a.org", "b.org", 40), AddressRecord("b.org", kOne, 900)});
  const auto answer =
      ParseDnsAnswer(reply, QueryOf(DnsQuestion(7, "a.org")), 7);
  REQUIRE(answer.has_value());
  REQUIRE(answer->addresses.size() == 1);
  CHECK(answer->addresses[0].time_to_live == std::chrono::seconds(40));
}

TEST_CASE("ParseDnsAnswer takes no answer to something else") {
  const DnsQuery query = QueryOf(DnsQuestion(7, "a.org"));
  const Message good =
      DnsReply(DnsQuestion(7, "a.org"), {AddressRecord("a.org", kOne)});
  CHECK(ParseDnsAnswer(good, query, 7).has_value());
  CHECK_FALSE(ParseDnsAnswer(good, query, 8).has_value());
  CHECK_FALSE(ParseDnsAnswer(DnsReply(DnsQuestion(7, "b.org"), {}), query, 7)
                  .has_value());
  CHECK_FALSE(
      ParseDnsAnswer(DnsReply(DnsQuestion(7, "a.org", 28), {}), query, 7)
          .has_value());
  CHECK_FALSE(ParseDnsAnswer(DnsQuestion(7, "a.org"), query, 7).has_value());
  for (size_t size = 0; size < good.size(); ++size) {
    CAPTURE(size);
    const Message part(good.begin(),
                       good.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK_FALSE(ParseDnsAnswer(part, query, 7).has_value());
  }
}

TEST_CASE("ParseDnsAnswer takes names that point back, not to themselves") {
  const DnsQuery query = QueryOf(DnsQuestion(7, "a.org"));
  Message reply = DnsReply(DnsQuestion(7, "a.org"), {});
  Store16(reply, 6, 1);
  const size_t record = reply.size();
  AppendBytes(&reply,
              Message{0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 1, 1, 1, 1});
  CHECK(AddressesOf(reply) == std::vector<IpAddress>{kOne});
  reply[record + 1] = static_cast<uint8_t>(record);
  CHECK_FALSE(ParseDnsAnswer(reply, query, 7).has_value());
  reply[record + 1] = static_cast<uint8_t>(record + 2);
  CHECK_FALSE(ParseDnsAnswer(reply, query, 7).has_value());
}

}  // namespace
}  // namespace catnap::net
