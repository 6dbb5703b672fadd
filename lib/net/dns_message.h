#ifndef CATNAP_LIB_NET_DNS_MESSAGE_H_
#define CATNAP_LIB_NET_DNS_MESSAGE_H_

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "net/address.h"

namespace catnap::net {

// DNS messages (RFC 1035, 6891) as far as a forwarder needs them. All input is
// hostile: queries are the guest's, answers anybody's.

inline constexpr uint16_t kDnsPort = 53;
// The largest message that is taken from or asked of a resolver: what goes in
// one packet on every link.
inline constexpr uint16_t kMaxDnsBytes = 1232;

enum class DnsCode : uint8_t {
  kNoError = 0,
  kFormatError = 1,
  kServerFailure = 2,
  kNoSuchName = 3,
  kNotImplemented = 4,
  kRefused = 5,
};

struct DnsQuery {
  uint16_t id = 0;
  bool recursion_desired = false;
  // The question as it came: name, type, class.
  std::vector<uint8_t> question;
  std::string name;  // CanonicalName(); "" for the root and names we refuse.
  uint16_t type = 0;
  uint16_t klass = 0;
  // What the guest takes: 512 without EDNS.
  bool edns = false;
  uint16_t answer_bytes = 512;
};

// What the header alone says when the rest is wrong, so that it can be
// answered.
struct DnsParse {
  DnsCode code = DnsCode::kFormatError;  // kNoError: `query` is whole.
  DnsQuery query;
};

// nullopt: not a query at all, there is nobody to answer.
std::optional<DnsParse> ParseDnsQuery(std::span<const uint8_t> message);

// The same question under another id, and nothing else of what the guest
// wrote.
std::vector<uint8_t> BuildDnsQuery(const DnsQuery& query, uint16_t id);

// An answer without records.
std::vector<uint8_t> BuildDnsAnswer(const DnsQuery& query, DnsCode code);

struct DnsAnswer {
  struct Address {
    IpAddress address;
    // The least of its own and those of the aliases that lead to it.
    std::chrono::seconds time_to_live{0};
  };
  // What the name asked stands for, following aliases (CNAME) inside the
  // answer. At most kMaxAddresses.
  std::vector<Address> addresses;
};
inline constexpr size_t kMaxAddresses = 64;

// Reads the answer to `query`, sent under `id`. nullopt: it is not that, or is
// malformed.
std::optional<DnsAnswer> ParseDnsAnswer(std::span<const uint8_t> message,
                                        const DnsQuery& query, uint16_t id);

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_DNS_MESSAGE_H_
