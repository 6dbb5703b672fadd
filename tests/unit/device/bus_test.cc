#include "device/bus.h"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <vector>

#include "base/thread.h"

namespace catnap::device {
namespace {

// Remembers the last access, and fills reads with a byte that is not all ones.
class RecordingHandler final : public IoHandler {
 public:
  static constexpr uint8_t kFill = 0x5a;

  void Read(uint64_t offset, std::span<uint8_t> data) override {
    ++reads;
    last_offset = offset;
    std::fill(data.begin(), data.end(), kFill);
  }
  void Write(uint64_t offset, std::span<const uint8_t> data) override {
    ++writes;
    last_offset = offset;
    last_data.assign(data.begin(), data.end());
  }

  int reads = 0;
  int writes = 0;
  uint64_t last_offset = 0;
  std::vector<uint8_t> last_data;
};

// Leaves what it is given, as a handler does with a register it lacks.
class SilentHandler final : public IoHandler {
 public:
  void Read(uint64_t, std::span<uint8_t>) override {}
  void Write(uint64_t, std::span<const uint8_t>) override {}
};

constexpr uint64_t kStart = 0x1000;
constexpr uint64_t kLength = 0x10;

TEST_CASE("Bus hands an access to the handler of its range only when it fits") {
  RecordingHandler handler;
  Bus bus;
  REQUIRE(bus.Add(kStart, kLength, &handler).ok());
  const auto [address, size, hit] = GENERATE(table<uint64_t, size_t, bool>({
      {kStart, 1, true},                 // the first byte
      {kStart + kLength - 1, 1, true},   // the last byte
      {kStart + kLength - 8, 8, true},   // up to the end
      {kStart + 3, 4, true},             // not aligned
      {kStart - 1, 1, false},            // before
      {kStart - 1, 2, false},            // straddles the start
      {kStart + kLength, 1, false},      // behind
      {kStart + kLength - 1, 2, false},  // straddles the end
      {kStart, 0, false},                // no bytes
      {kStart, 3, false},                // the pieces that KVM makes of an
      {kStart, 7, false},                // access across a page
      {kStart, 16, false},               // fills the range, but is too wide
      {0, 1, false},
      {UINT64_MAX, 1, false},
      {UINT64_MAX, 8, false},  // the end wraps
  }));
  CAPTURE(address, size);
  std::vector<uint8_t> data(size, 0);
  bus.Read(address, data);
  const uint8_t expected = hit ? RecordingHandler::kFill : 0xff;
  CHECK(data == std::vector<uint8_t>(size, expected));
  bus.Write(address, data);
  CHECK(handler.reads == (hit ? 1 : 0));
  CHECK(handler.writes == (hit ? 1 : 0));
  CHECK(handler.last_offset == (hit ? address - kStart : 0));
  CHECK(bus.unclaimed_reads() == (hit ? 0 : 1));
  CHECK(bus.unclaimed_writes() == (hit ? 0 : 1));
}

TEST_CASE("Bus picks the handler among neighbours with no gap and with one") {
  std::array<RecordingHandler, 3> handlers;
  Bus bus;  // Filled out of order.
  REQUIRE(bus.Add(0x2000, 0x100, &handlers[2]).ok());
  REQUIRE(bus.Add(0x1000, 0x8, &handlers[0]).ok());
  REQUIRE(bus.Add(0x1008, 0x8, &handlers[1]).ok());
  const std::array<uint8_t, 2> data = {1, 2};
  bus.Write(0x1006, data);
  bus.Write(0x1008, data);
  bus.Write(0x20fe, data);
  bus.Write(0x1007, data);  // Straddles two ranges.
  bus.Write(0x1fff, data);  // Starts in the gap.
  CHECK(handlers[0].writes == 1);
  CHECK(handlers[0].last_offset == 6);
  CHECK(handlers[1].writes == 1);
  CHECK(handlers[1].last_offset == 0);
  CHECK(handlers[2].writes == 1);
  CHECK(handlers[2].last_offset == 0xfe);
  CHECK(handlers[2].last_data == std::vector<uint8_t>{1, 2});
  CHECK(bus.unclaimed_writes() == 2);
}

TEST_CASE("Bus::Add refuses ranges that are empty, wrap or overlap") {
  RecordingHandler handler;
  Bus bus;
  REQUIRE(bus.Add(kStart, kLength, &handler).ok());
  REQUIRE(bus.Add(kStart + 0x100, kLength, &handler).ok());
  const auto [start, length] = GENERATE(table<uint64_t, uint64_t>({
      {0, 0},                          // empty
      {UINT64_MAX, 2},                 // wraps by one
      {1, UINT64_MAX},                 // ends at 2^64, over everything
      {2, UINT64_MAX},                 // wraps
      {kStart, kLength},               // the same
      {kStart - 1, 2},                 // its first byte
      {kStart + kLength - 1, 1},       // its last byte
      {kStart + 4, 4},                 // inside
      {kStart - 1, kLength + 2},       // around
      {kStart + kLength, 0x100},       // from the gap into the second
      {kStart - 0x100, 0x100 + 1000},  // around both
  }));
  CAPTURE(start, length);
  CHECK(bus.Add(start, length, &handler).code() ==
        absl::StatusCode::kInvalidArgument);
  uint8_t byte = 0;
  bus.Read(kStart - 1, {&byte, 1});
  CHECK(bus.unclaimed_reads() == 1);  // A refused range left nothing behind.
}

TEST_CASE("Bus::Add refuses a range without a handler") {
  Bus bus;
  CHECK(bus.Add(kStart, kLength, nullptr).code() ==
        absl::StatusCode::kInvalidArgument);
}

TEST_CASE("Bus serves a range up to the last address") {
  RecordingHandler handler;
  Bus bus;
  REQUIRE(bus.Add(UINT64_MAX - 7, 8, &handler).ok());
  std::array<uint8_t, 8> data{};
  bus.Read(UINT64_MAX - 7, data);
  CHECK(handler.reads == 1);
  bus.Read(UINT64_MAX - 6, data);  // Would end behind 2^64.
  CHECK(handler.reads == 1);
  CHECK(bus.unclaimed_reads() == 1);
}

TEST_CASE("Bus serves one range over the whole address space") {
  RecordingHandler handler;
  Bus bus;
  // The length of all of it does not fit: the last address stays out.
  REQUIRE(bus.Add(0, UINT64_MAX, &handler).ok());
  uint8_t byte = 0;
  bus.Read(0, {&byte, 1});
  bus.Read(UINT64_MAX - 1, {&byte, 1});
  CHECK(handler.reads == 2);
  bus.Read(UINT64_MAX, {&byte, 1});
  CHECK(handler.reads == 2);
}

TEST_CASE("Bus reads all ones from a handler that fills nothing") {
  SilentHandler handler;
  Bus bus;
  REQUIRE(bus.Add(kStart, kLength, &handler).ok());
  std::array<uint8_t, 4> data{};
  bus.Read(kStart, data);
  CHECK(data == std::array<uint8_t, 4>{0xff, 0xff, 0xff, 0xff});
  CHECK(bus.unclaimed_reads() == 0);
}

TEST_CASE("Bus counts every unclaimed access of threads that overlap") {
  static constexpr uint64_t kAccesses = 10'000;
  Bus bus;
  const auto access = [&bus] {
    uint8_t byte = 0;
    for (uint64_t i = 0; i < kAccesses; ++i) {
      bus.Read(kStart, {&byte, 1});
      bus.Write(kStart, {&byte, 1});
    }
  };
  {
    auto one = base::Thread::Start("bus-1", access);
    auto two = base::Thread::Start("bus-2", access);
    REQUIRE(one.ok());
    REQUIRE(two.ok());
  }
  CHECK(bus.unclaimed_reads() == 2 * kAccesses);
  CHECK(bus.unclaimed_writes() == 2 * kAccesses);
}

}  // namespace
}  // namespace catnap::device
