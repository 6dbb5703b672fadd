#include "guest/agent/network.h"

#include <algorithm>
#include <catch2/catch.hpp>

#include "net/link_addresses.h"

namespace catnap::guest {
namespace {

template <typename Bytes>
bool Is(const Bytes& bytes, const net::IpAddress& address) {
  return std::equal(bytes.begin(), bytes.end(), address.span().begin(),
                    address.span().end());
}

TEST_CASE("Host and guest agree on the addresses of the link") {
  const LinkAddresses addresses;
  CHECK(Is(addresses.guest_v4, net::kGuestV4));
  CHECK(Is(addresses.gateway_v4, net::kGatewayV4));
  CHECK(addresses.bits_v4 == net::kLinkBitsV4);
  CHECK(Is(addresses.guest_v6, net::kGuestV6));
  CHECK(Is(addresses.gateway_v6, net::kGatewayV6));
  CHECK(addresses.bits_v6 == net::kLinkBitsV6);
  CHECK(net::ParseIp(addresses.resolver) == net::kDnsV4);
}

}  // namespace
}  // namespace catnap::guest
