#include "virtio/chain.h"

#include <array>
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "support/virtio_driver.h"
#include "virtio/queue.h"

namespace catnap::virtio {
namespace {

using test::Piece;
using test::VirtioDriver;

// A device that keeps what it is given.
class Keeper final : public VirtioDevice {
 public:
  explicit Keeper(memory::GuestMemory* memory)
      : VirtioDevice({.id = DeviceId::kEntropy, .queue_sizes = {256}}, memory) {
  }
  std::vector<Chain> chains;

 private:
  std::vector<uint8_t> ConfigLocked() const override { return {}; }
  void HandleLocked(size_t /*index*/, const Chain& chain) override {
    chains.push_back(chain);
  }
  void SaveOwnLocked(state::StateEncoder& /*out*/) const override {}
  absl::Status LoadOwnLocked(state::StateDecoder /*in*/) override {
    return absl::OkStatus();
  }
};

VirtioDriver::Factory MakeKeeper(Keeper** keeper) {
  return [keeper](memory::GuestMemory* memory) {
    auto device = std::make_unique<Keeper>(memory);
    *keeper = device.get();
    return device;
  };
}

constexpr uint64_t kA = VirtioDriver::kBuffers;
constexpr uint64_t kB = VirtioDriver::kBuffers + 0x1000;

std::string CopyOut(const Chain& chain, uint64_t offset, size_t size) {
  std::vector<uint8_t> bytes(size);
  const size_t copied = chain.CopyOut(offset, bytes);
  return std::string(bytes.begin(),
                     bytes.begin() + static_cast<ptrdiff_t>(copied));
}

size_t CopyIn(const Chain& chain, uint64_t offset, const std::string& text) {
  return chain.CopyIn(offset, std::vector<uint8_t>(text.begin(), text.end()));
}

TEST_CASE("A chain's pieces are one stream of bytes to either side") {
  Keeper* keeper = nullptr;
  VirtioDriver driver(MakeKeeper(&keeper));
  REQUIRE(driver.Start());
  driver.Fill(kA, "abcdef");
  driver.Fill(kB, "ghi");
  const bool indirect = GENERATE(false, true);
  driver.Add(0, 0,
             {{kA, 6, false},
              {kA, 0, false},  // Empty ones are allowed, and are nothing.
              {kB, 3, false},
              {kB + 16, 2, true},
              {kA + 16, 3, true}},
             indirect);
  driver.Kick();
  REQUIRE(keeper->chains.size() == 1);
  const Chain& chain = keeper->chains[0];
  CHECK(chain.readable().size() == 2);
  CHECK(chain.readable_bytes() == 9);
  CHECK(chain.writable_bytes() == 5);
  CHECK(CopyOut(chain, 0, 100) == "abcdefghi");
  CHECK(CopyOut(chain, 5, 2) == "fg");
  CHECK(CopyOut(chain, 9, 1).empty());
  CHECK(CopyOut(chain, UINT64_MAX, 1).empty());
  CHECK(CopyIn(chain, 1, "12345") == 4);
  CHECK(driver.Bytes(kB + 17, 1) == "1");
  CHECK(driver.Bytes(kA + 16, 3) == "234");
  CHECK(CopyIn(chain, 5, "x") == 0);

  std::vector<iovec> part;
  CHECK(AppendPart(chain.readable(), 4, 3, &part) == 3);
  REQUIRE(part.size() == 2);
  CHECK(part[0].iov_len == 2);
  CHECK(part[1].iov_len == 1);
  CHECK(AppendPart(chain.readable(), 9, 3, &part) == 0);
  CHECK(part.size() == 2);
}

TEST_CASE("A chain holds as many pieces as its bound, and no more") {
  Keeper* keeper = nullptr;
  VirtioDriver driver(MakeKeeper(&keeper));
  REQUIRE(driver.Start(256));
  driver.Add(0, 0, std::vector<Piece>(Chain::kMaxPieces, {kA, 1, false}));
  driver.Kick();
  REQUIRE(keeper->chains.size() == 1);
  CHECK(keeper->chains[0].readable_bytes() == Chain::kMaxPieces);
  CHECK(driver.failures() == 0);
}

TEST_CASE("Direct descriptors may end in an indirect one") {
  Keeper* keeper = nullptr;
  VirtioDriver driver(MakeKeeper(&keeper));
  REQUIRE(driver.Start());
  driver.Fill(kA, "ab");
  // The table of the second descriptor.
  driver.Add(0, 1, {{kA + 1, 1, false}, {kB, 4, true}}, true);
  driver.Kick();
  REQUIRE(keeper->chains.size() == 1);
  driver.SetDescriptor(0, 0, {kA, 1, test::kNextFlag, 1});
  driver.MakeAvailable(0, 0);
  driver.Kick();
  REQUIRE(keeper->chains.size() == 2);
  CHECK(CopyOut(keeper->chains[1], 0, 9) == "ab");
  CHECK(keeper->chains[1].writable_bytes() == 4);
}

TEST_CASE("Parts of a chain may overlap, and add up") {
  Keeper* keeper = nullptr;
  VirtioDriver driver(MakeKeeper(&keeper));
  REQUIRE(driver.Start(256));
  driver.Add(
      0, 0,
      std::vector<Piece>(
          256, {0, static_cast<uint32_t>(VirtioDriver::kRamBytes), true}));
  driver.Kick();
  REQUIRE(keeper->chains.size() == 1);
  CHECK(keeper->chains[0].writable_bytes() == 256u << 20);
}

}  // namespace
}  // namespace catnap::virtio
