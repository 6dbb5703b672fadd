#ifndef CATNAP_LIB_NET_ADDRESS_H_
#define CATNAP_LIB_NET_ADDRESS_H_

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

namespace catnap::net {

using MacAddress = std::array<uint8_t, 6>;

// An IPv4 or IPv6 address, in network order. An IPv4 address has the first
// four bytes, the others are 0.
struct IpAddress {
  bool v6 = false;
  std::array<uint8_t, 16> bytes{};

  static constexpr IpAddress V4(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
    return {.v6 = false, .bytes = {a, b, c, d}};
  }
  // The first 4 or 16 of `from`, which has as many.
  static IpAddress V4(std::span<const uint8_t> from);
  static IpAddress V6(std::span<const uint8_t> from);

  size_t size() const { return v6 ? 16 : 4; }
  std::span<const uint8_t> span() const {
    return std::span(bytes).first(size());
  }
  bool IsUnspecified() const;
  bool IsMulticast() const;  // With the broadcast address.
  bool IsLinkLocalV6() const;
  std::string ToString() const;

  friend bool operator==(const IpAddress&, const IpAddress&) = default;
};

struct IpAddressHash {
  size_t operator()(const IpAddress& address) const;
};

// Text as inet_pton takes it.
std::optional<IpAddress> ParseIp(const std::string& text);

// The addresses whose first `bits` bits are those of `address`.
struct IpPrefix {
  IpAddress address;
  int bits = 0;

  bool Contains(const IpAddress& other) const;
  bool Contains(const IpPrefix& other) const;
  // Whether no bit behind the first `bits` is set.
  bool IsCanonical() const;

  friend bool operator==(const IpPrefix&, const IpPrefix&) = default;
};

// Whether a guest may never send there, not even unrestricted: the host's own
// loopback under one of its names, nothing, multicast.
bool IsNeverReachable(const IpAddress& address);

// Whether the address is on the public Internet: outside every block that
// IANA has for something else, and no metadata service.
bool IsPublic(const IpAddress& address);

// Whether `range` names `address`: it contains it, and lies within each block
// of special addresses that the address is in. So a range of everything does
// not name a private network, and one of all link-local addresses does not
// name the metadata service.
bool Names(const IpPrefix& range, const IpAddress& address);

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_ADDRESS_H_
