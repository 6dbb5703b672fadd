#include "net/address.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <string_view>

namespace catnap::net {
namespace {

constexpr IpPrefix V4Block(uint8_t a, uint8_t b, uint8_t c, uint8_t d,
                           int bits) {
  return {.address = IpAddress::V4(a, b, c, d), .bits = bits};
}

constexpr IpPrefix V6Block(std::array<uint8_t, 16> bytes, int bits) {
  return {.address = {.v6 = true, .bytes = bytes}, .bits = bits};
}

// What the host's kernel takes for itself, or for everybody.
constexpr std::array kNever = {
    V4Block(0, 0, 0, 0, 8),    // "This host": Linux connects to loopback.
    V4Block(127, 0, 0, 0, 8),  // Loopback.
    V4Block(224, 0, 0, 0, 4),  // Multicast.
    V4Block(255, 255, 255, 255, 32),
    V6Block({}, 96),  // ::, ::1, and addresses that hold one of IPv4.
    V6Block({0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 96),  // The same.
    V6Block({0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}, 96),        // The same.
    V6Block({0xff}, 8),                                       // Multicast.
};

// RFC 6890 and its successors, and services of cloud providers that hand out
// credentials or configuration. These have blocks of their own, so that a rule
// must name them.
constexpr std::array kSpecial = {
    V4Block(10, 0, 0, 0, 8),
    V4Block(100, 64, 0, 0, 10),       // Carriers' NAT.
    V4Block(100, 100, 100, 200, 32),  // Metadata: Alibaba Cloud.
    V4Block(168, 63, 129, 16, 32),    // Azure's host.
    V4Block(169, 254, 0, 0, 16),      // Link-local.
    V4Block(169, 254, 169, 254, 32),  // Metadata: most.
    V4Block(169, 254, 169, 253, 32),  // Amazon's resolver,
    V4Block(169, 254, 169, 123, 32),  // its clock,
    V4Block(169, 254, 170, 2, 32),    // and its containers' credentials,
    V4Block(169, 254, 170, 23, 32),   // and those of pods.
    V4Block(172, 16, 0, 0, 12),
    V4Block(192, 0, 0, 0, 24),    // Protocol assignments.
    V4Block(192, 0, 0, 192, 32),  // Metadata: Oracle.
    V4Block(192, 0, 2, 0, 24),    // Documentation.
    V4Block(192, 88, 99, 0, 24),  // 6to4 relays.
    V4Block(192, 168, 0, 0, 16),
    V4Block(198, 18, 0, 0, 15),             // Benchmarks.
    V4Block(198, 51, 100, 0, 24),           // Documentation.
    V4Block(203, 0, 113, 0, 24),            // Documentation.
    V4Block(240, 0, 0, 0, 4),               // Reserved.
    V6Block({0x00, 0x64, 0xff, 0x9b}, 32),  // Translated IPv4.
    V6Block({0x01}, 8),                     // Discard and what lies beside it.
    V6Block({0x20, 0x01, 0, 0}, 23),        // Protocol assignments, Teredo.
    V6Block({0x20, 0x01, 0x0d, 0xb8}, 32),  // Documentation.
    V6Block({0x20, 0x02}, 16),              // 6to4.
    V6Block({0x3f, 0xff}, 20),              // Documentation.
    V6Block({0x5f}, 8),                     // Segment routing.
    V6Block({0xfc}, 7),                     // Unique local.
    V6Block({0xfd, 0x00, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54},
            128),  // Metadata: Amazon,
    V6Block({0xfd, 0x00, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x23},
            128),  // its pods' credentials,
    V6Block({0xfd, 0x00, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x53},
            128),  // its resolver.
    V6Block({0xfd, 0x20, 0, 0xce, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0x54},
            128),               // Metadata: Google.
    V6Block({0xfe, 0x80}, 10),  // Link-local.
    V6Block({0xfe, 0xc0}, 10),  // Site-local.
};

// All that is given out to the public so far: what is not in it is reserved.
constexpr IpPrefix kGlobalV6 = V6Block({0x20}, 3);

}  // namespace

IpAddress IpAddress::V4(std::span<const uint8_t> from) {
  IpAddress address;
  std::copy_n(from.begin(), 4, address.bytes.begin());
  return address;
}

IpAddress IpAddress::V6(std::span<const uint8_t> from) {
  IpAddress address{.v6 = true};
  std::copy_n(from.begin(), 16, address.bytes.begin());
  return address;
}

bool IpAddress::IsUnspecified() const {
  return std::all_of(bytes.begin(), bytes.end(),
                     [](uint8_t byte) { return byte == 0; });
}

bool IpAddress::IsMulticast() const {
  if (v6) return bytes[0] == 0xff;
  return bytes[0] >> 4 == 0xe || *this == V4(255, 255, 255, 255);
}

bool IpAddress::IsLinkLocalV6() const {
  return v6 && bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80;
}

std::string IpAddress::ToString() const {
  std::array<char, INET6_ADDRSTRLEN> text{};
  ::inet_ntop(v6 ? AF_INET6 : AF_INET, bytes.data(), text.data(), text.size());
  return text.data();
}

size_t IpAddressHash::operator()(const IpAddress& address) const {
  return std::hash<std::string_view>()(std::string_view(
             reinterpret_cast<const char*>(address.bytes.data()),
             address.bytes.size())) ^
         static_cast<size_t>(address.v6);
}

std::optional<IpAddress> ParseIp(const std::string& text) {
  IpAddress address;
  address.v6 = text.find(':') != std::string::npos;
  if (::inet_pton(address.v6 ? AF_INET6 : AF_INET, text.c_str(),
                  address.bytes.data()) != 1) {
    return std::nullopt;
  }
  return address;
}

bool IpPrefix::Contains(const IpAddress& other) const {
  if (other.v6 != address.v6) return false;
  const auto whole = static_cast<size_t>(bits / 8);
  if (!std::equal(address.bytes.begin(),
                  address.bytes.begin() + static_cast<std::ptrdiff_t>(whole),
                  other.bytes.begin())) {
    return false;
  }
  const int rest = bits % 8;
  if (rest == 0) return true;
  const int shift = 8 - rest;
  return address.bytes[whole] >> shift == other.bytes[whole] >> shift;
}

bool IpPrefix::Contains(const IpPrefix& other) const {
  return other.bits >= bits && Contains(other.address);
}

bool IpPrefix::IsCanonical() const {
  for (int bit = bits; bit < static_cast<int>(address.size()) * 8; ++bit) {
    if ((address.bytes[static_cast<size_t>(bit / 8)] >> (7 - bit % 8) & 1) !=
        0) {
      return false;
    }
  }
  return true;
}

bool IsNeverReachable(const IpAddress& address) {
  return std::any_of(kNever.begin(), kNever.end(), [&](const IpPrefix& block) {
    return block.Contains(address);
  });
}

bool IsPublic(const IpAddress& address) {
  if (address.v6 && !kGlobalV6.Contains(address)) return false;
  return !IsNeverReachable(address) &&
         std::none_of(
             kSpecial.begin(), kSpecial.end(),
             [&](const IpPrefix& block) { return block.Contains(address); });
}

bool Names(const IpPrefix& range, const IpAddress& address) {
  if (!range.Contains(address)) return false;
  // Reserved IPv6 that is in no block of the list.
  if (address.v6 && !kGlobalV6.Contains(address) && range.bits < 7) {
    return false;
  }
  return std::all_of(kSpecial.begin(), kSpecial.end(),
                     [&](const IpPrefix& block) {
                       return !block.Contains(address) || block.Contains(range);
                     });
}

}  // namespace catnap::net
