#ifndef CATNAP_TESTS_LINUX_HOST_NETWORK_H_
#define CATNAP_TESTS_LINUX_HOST_NETWORK_H_

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/route.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstdint>
#include <cstring>

#include "base/unique_fd.h"
#include "support/tcp.h"

namespace catnap::test {

// An interface of the host with an address and a route to everywhere, which
// passt asks for, in a network namespace of its own: other tests run at the
// same time, and the host may have a network. This thread, and those and the
// processes that it starts from now on, are in there.
class HostNetwork {
 public:
  // On no special block, so that policies treat it as any other.
  static constexpr uint32_t kAddress = 0x0b162101;
  static constexpr const char* kAddressText = "11.22.33.1";

  HostNetwork() {
    REQUIRE(::unshare(::geteuid() == 0 ? CLONE_NEWNET
                                       : CLONE_NEWUSER | CLONE_NEWNET) == 0);
    tap_ = base::UniqueFd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    REQUIRE(tap_.valid());
    control_ = base::UniqueFd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    REQUIRE(control_.valid());
    ifreq loopback{};
    std::strcpy(loopback.ifr_name, "lo");
    loopback.ifr_flags = IFF_UP;
    REQUIRE(::ioctl(control_.get(), SIOCSIFFLAGS, &loopback) == 0);
    ifreq request = Named();
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    REQUIRE(::ioctl(tap_.get(), TUNSETIFF, &request) == 0);
    SetAddress(SIOCSIFADDR, kAddress);
    SetAddress(SIOCSIFNETMASK, 0xffffff00);
    request = Named();
    request.ifr_flags = IFF_UP;
    REQUIRE(::ioctl(control_.get(), SIOCSIFFLAGS, &request) == 0);
    rtentry route{};
    Put(&route.rt_gateway, kAddress + 1);  // Nobody.
    Put(&route.rt_dst, 0);
    Put(&route.rt_genmask, 0);
    route.rt_flags = RTF_UP | RTF_GATEWAY;
    route.rt_metric = 1001;  // Behind every route that is there.
    REQUIRE(::ioctl(control_.get(), SIOCADDRT, &route) == 0);
  }

 private:
  static ifreq Named() {
    ifreq request{};
    std::strcpy(request.ifr_name, "catnap-test");
    return request;
  }
  static void Put(sockaddr* to, uint32_t address) {
    const sockaddr_in name = testing::Ipv4Address(address, 0);
    std::memcpy(to, &name, sizeof(name));
  }
  void SetAddress(unsigned long what, uint32_t address) {  // NOLINT: ioctl's.
    ifreq request = Named();
    Put(&request.ifr_addr, address);
    REQUIRE(::ioctl(control_.get(), what, &request) == 0);
  }

  base::UniqueFd tap_;  // The interface goes with it.
  base::UniqueFd control_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_HOST_NETWORK_H_
