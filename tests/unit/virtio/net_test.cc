#include "virtio/net/net.h"

#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <thread>

#include "io/event_loop.h"
#include "net/policy.h"
#include "support/guest_frames.h"
#include "support/virtio_driver.h"

namespace catnap::virtio {
namespace {

using test::FrameBytes;
using test::VirtioDriver;

constexpr uint32_t kReceive = 0;
constexpr uint32_t kTransmit = 1;
constexpr size_t kHeader = 12;
constexpr uint64_t kBuffer = VirtioDriver::kBuffers;
constexpr net::IpAddress kPeer = net::IpAddress::V4(1, 2, 3, 4);

std::string Text(const FrameBytes& frame) {
  return std::string(frame.begin(), frame.end());
}

// A device with a network that is the other end of a socket pair.
class Network {
 public:
  Network() {
    auto made = io::EventLoop::Create({});
    REQUIRE(made.ok());
    loop = *std::move(made);
    std::array<int, 2> pair{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
                         pair.data()) == 0);
    outside = base::UniqueFd(pair[1]);
    auto created =
        net::Link::Create({.tap = base::UniqueFd(pair[0])}, loop.get());
    REQUIRE(created.ok());
    link = *std::move(created);
    auto policy =
        net::Policy::Compile({.mode = net::PolicyMode::kPublicInternet});
    REQUIRE(policy.ok());
    link->SetPolicy(*policy);
  }
  VirtioDriver::Factory Factory() {
    return [this](memory::GuestMemory* memory) {
      return std::make_unique<Net>(link, memory);
    };
  }
  std::unique_ptr<io::EventLoop> loop;
  base::UniqueFd outside;
  std::shared_ptr<net::Link> link;
};

// The network's answer comes on a thread of its own.
std::vector<test::UsedBuffer> WaitForUsed(VirtioDriver& driver) {
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::seconds(60);
  for (;;) {
    driver.Kick();
    auto used = driver.TakeUsed(kReceive);
    if (!used.empty() || std::chrono::steady_clock::now() > deadline) {
      return used;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST_CASE("Net shows its address, its MTU and a link") {
  Network network;
  VirtioDriver driver(network.Factory());
  CHECK((driver.OfferedFeatures() & 0xffffff) == (1 << 3 | 1 << 5 | 1 << 16));
  const std::vector<uint8_t> config = driver.device().Config();
  REQUIRE(config.size() == 12);
  CHECK(std::equal(net::kDefaultGuestMac.begin(), net::kDefaultGuestMac.end(),
                   config.begin()));
  CHECK(config[6] == 1);
  CHECK(config[10] + 256 * config[11] == 1500);
}

TEST_CASE("Net answers the guest from its own link") {
  Network network;
  VirtioDriver driver(network.Factory());
  REQUIRE(driver.Start());
  driver.Add(kReceive, 0, {{kBuffer, 700, true}, {kBuffer + 1000, 1000, true}});
  driver.Fill(kBuffer + 4096,
              std::string(kHeader, '\0') + Text(test::ArpRequest(net::kDnsV4)));
  driver.Add(kTransmit, 0,
             {{kBuffer + 4096, 12, false}, {kBuffer + 4096 + 12, 42, false}});
  driver.Kick();
  CHECK(driver.TakeUsed(kTransmit) == std::vector<test::UsedBuffer>{{0, 0}});
  const auto used = driver.TakeUsed(kReceive);
  REQUIRE(used.size() == 1);
  CHECK(used[0].written == kHeader + 42);
  // num_buffers is 1, the rest of the header 0.
  CHECK(driver.Bytes(kBuffer, kHeader) ==
        std::string(10, '\0') + std::string("\1\0", 2));
  CHECK(
      driver.Bytes(kBuffer + kHeader, 6) ==
      std::string(net::kDefaultGuestMac.begin(), net::kDefaultGuestMac.end()));
  CHECK(driver.interrupts() > 0);
}

TEST_CASE("Net passes frames both ways") {
  Network network;
  VirtioDriver driver(network.Factory());
  REQUIRE(driver.Start());
  const FrameBytes out =
      test::TcpFrame(test::FromGuest(kPeer), 4000, 80, net::kTcpSyn);
  driver.Fill(kBuffer, std::string(kHeader, '\xff') + Text(out));
  driver.Add(kTransmit, 3,
             {{kBuffer, static_cast<uint32_t>(kHeader + out.size()), false}});
  driver.Kick();
  FrameBytes got(2000);
  const ssize_t size = ::read(network.outside.get(), got.data(), got.size());
  REQUIRE(size == static_cast<ssize_t>(out.size()));
  got.resize(out.size());
  CHECK(got == out);

  const FrameBytes in =
      test::TcpFrame(test::ToGuest(kPeer), 80, 4000, net::kTcpAck, "hello");
  driver.Add(kReceive, 5, {{kBuffer + 8192, 2000, true}});
  REQUIRE(::write(network.outside.get(), in.data(), in.size()) ==
          static_cast<ssize_t>(in.size()));
  const auto used = WaitForUsed(driver);
  REQUIRE(used.size() == 1);
  CHECK(used[0].head == 5);
  CHECK(used[0].written == kHeader + in.size());
  CHECK(driver.Bytes(kBuffer + 8192 + kHeader, in.size()) == Text(in));
}

TEST_CASE("Net takes buffers that hold no frame, and those with no room") {
  Network network;
  VirtioDriver driver(network.Factory());
  REQUIRE(driver.Start());
  driver.Add(kTransmit, 0, {{kBuffer, 5, false}});   // Not even a header.
  driver.Add(kTransmit, 1, {{kBuffer, 12, false}});  // Nothing behind it.
  driver.Add(kTransmit, 2,
             {{kBuffer, 300'000, false}});           // More than any frame.
  driver.Add(kTransmit, 3, {{kBuffer, 100, true}});  // The wrong way.
  driver.Kick();
  CHECK(driver.TakeUsed(kTransmit).size() == 4);
  CHECK(driver.failures() == 0);

  driver.Add(kReceive, 0, {{kBuffer, 20, true}});
  driver.Add(kReceive, 1, {{kBuffer, 200, false}});
  const std::string arp =
      std::string(kHeader, '\0') + Text(test::ArpRequest(net::kDnsV4));
  driver.Fill(kBuffer + 4096, arp);
  for (uint16_t head = 4; head < 6; ++head) {
    driver.Add(kTransmit, head,
               {{kBuffer + 4096, static_cast<uint32_t>(arp.size()), false}});
  }
  driver.Kick();
  CHECK(driver.TakeUsed(kReceive) ==
        std::vector<test::UsedBuffer>{{0, 0}, {1, 0}});
  CHECK(driver.failures() == 0);
}

TEST_CASE("Net tells the driver when the link goes down") {
  Network network;
  VirtioDriver driver(network.Factory());
  REQUIRE(driver.Start());
  network.outside.Reset();
  const auto deadline =
      std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (driver.device().Config()[6] != 0 &&
         std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(driver.device().Config()[6] == 0);
}

TEST_CASE("Net goes on after a save, with the same address only") {
  Network network;
  VirtioDriver driver(network.Factory());
  REQUIRE(driver.Start());
  driver.device().Quiesce();
  std::vector<uint8_t> bytes;
  state::StateEncoder out(&bytes);
  REQUIRE(driver.transport().SaveState(out).ok());

  Network other;
  VirtioDriver second(other.Factory(), driver);
  REQUIRE(second.transport().LoadState(state::StateDecoder(bytes)).ok());
  second.device().Resume();
  second.Add(kReceive, 0, {{kBuffer, 1000, true}});
  const std::string arp =
      std::string(kHeader, '\0') + Text(test::ArpRequest(net::kDnsV4));
  second.Fill(kBuffer + 4096, arp);
  second.Add(kTransmit, 0,
             {{kBuffer + 4096, static_cast<uint32_t>(arp.size()), false}});
  second.Kick();
  CHECK(second.TakeUsed(kReceive).size() == 1);

  auto link =
      net::Link::Create({.guest_mac = {2, 0, 0, 0, 0, 1}}, network.loop.get());
  REQUIRE(link.ok());
  VirtioDriver third(
      [&](memory::GuestMemory* memory) {
        return std::make_unique<Net>(*link, memory);
      },
      driver);
  CHECK(third.transport().LoadState(state::StateDecoder(bytes)).code() ==
        absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace catnap::virtio
