// Queues in memory of which pages are missing.
#include <algorithm>
#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/byte_order.h"
#include "memory/userfault.h"
#include "support/held_pages.h"
#include "virtio/balloon/balloon.h"
#include "virtio/virtio_device.h"

namespace catnap::virtio {
namespace {

using test::HeldPages;

constexpr uint64_t kPage = base::kPageBytes;
constexpr uint64_t kRam = 256 * kPage;
constexpr uint16_t kSize = 4;
// A page each.
constexpr uint64_t kDescriptors = 10 * kPage;
constexpr uint64_t kAvailable = 11 * kPage;
constexpr uint64_t kUsed = 12 * kPage;
constexpr uint64_t kTable = 13 * kPage;
constexpr uint64_t kIn = 14 * kPage;
constexpr uint64_t kOut = 15 * kPage;
constexpr uint16_t kNext = 1;
constexpr uint16_t kWrite = 2;
constexpr uint16_t kIndirect = 4;

bool IsRefused() {
  const absl::Status status = memory::Userfault::Open().status();
  if (status.ok()) return false;
  WARN("nothing was looked at: " << status.ToString());
  return true;
}

// Gives back what it reads in capital letters.
class Shouter final : public VirtioDevice {
 public:
  explicit Shouter(memory::GuestMemory* memory)
      : VirtioDevice({.id = DeviceId::kEntropy, .queue_sizes = {kSize}},
                     memory) {}

 private:
  std::vector<uint8_t> ConfigLocked() const override { return {}; }
  void HandleLocked(size_t index, const Chain& chain) override
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<uint8_t> bytes(chain.readable_bytes());
    chain.CopyOut(0, bytes);
    for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(byte - 'a' + 'A');
    PushLocked(index, chain.head(),
               static_cast<uint32_t>(chain.CopyIn(0, bytes)));
  }
  void SaveOwnLocked(state::StateEncoder& /*out*/) const override {}
  absl::Status LoadOwnLocked(state::StateDecoder /*in*/) override {
    return absl::OkStatus();
  }
};

struct Link final : DeviceLink {
  void Interrupt() override { ++interrupts; }
  void ChangeConfig(std::span<const uint8_t> /*config*/) override {}
  void NeedReset(const absl::Status& /*why*/) override { ++failures; }
  void KickAt(std::chrono::steady_clock::time_point /*when*/) override {
    ++kicks;
  }
  bool WaitForKick(int count) const {
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::seconds(60);
    while (kicks < count) {
      if (std::chrono::steady_clock::now() > until) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return true;
  }

  std::atomic<int> interrupts{0};
  std::atomic<int> failures{0};
  std::atomic<int> kicks{0};
};

// What a driver left in memory: one buffer, available.
class Ram {
 public:
  void Put16(uint64_t at, uint16_t value) { base::StoreLe(&bytes[at], value); }
  void PutDescriptor(uint64_t at, uint64_t gpa, uint32_t length, uint16_t flags,
                     uint16_t next = 0) {
    base::StoreLe(&bytes[at], gpa);
    base::StoreLe(&bytes[at + 8], length);
    base::StoreLe(&bytes[at + 12], flags);
    base::StoreLe(&bytes[at + 14], next);
  }
  void PutText(uint64_t at, const std::string& text) {
    std::copy(text.begin(), text.end(),
              bytes.begin() + static_cast<std::ptrdiff_t>(at));
  }

  std::vector<uint8_t> bytes = std::vector<uint8_t>(kRam);
};

Ram OneBuffer() {
  Ram ram;
  ram.PutDescriptor(kDescriptors, kTable, 32, kIndirect);
  ram.PutDescriptor(kTable, kIn, 5, kNext, 1);
  ram.PutDescriptor(kTable + 16, kOut, 5, kWrite);
  ram.Put16(kAvailable + 2, 1);
  ram.PutText(kIn, "hello");
  return ram;
}

constexpr QueueConfig kQueue{.size = kSize,
                             .ready = true,
                             .descriptors = {kDescriptors},
                             .driver = {kAvailable},
                             .device = {kUsed}};
constexpr uint64_t kFeatures = kFeatureVersion1 | kFeatureIndirectDescriptors;

// A device over memory that is read as it is touched.
template <typename Device>
struct Lazy {
  explicit Lazy(const Ram& ram) : pages(ram.bytes) {
    auto made = pages.NewFile(kRam);
    REQUIRE(made.ok());
    file = *std::move(made);
    auto reserved = memory::GuestMemory::Reserve({{{0}, kRam, 0}});
    REQUIRE(reserved.ok());
    memory = *std::move(reserved);
    auto image = HeldPages::ImageOf(file, kRam);
    REQUIRE(image.ok());
    REQUIRE(memory->MapImage(*image).ok());
    device = std::make_unique<Device>(memory.get());
    device->SetLink(&link);
  }
  ~Lazy() {
    pages.Release();
    if (device != nullptr) device->SetLink(nullptr);
  }

  uint16_t used() const { return *memory->Load<uint16_t>({kUsed + 2}); }
  std::string Text(uint64_t at) const {
    return {reinterpret_cast<const char*>(memory->host_base()) + at, 5};
  }
  // As the loop does, until nothing is missing any more.
  int KickUntil(uint16_t wanted) {
    int kicked = 0;
    do {
      REQUIRE(link.WaitForKick(++kicked));
      device->Kick();
    } while (kicked < 10 && used() != wanted);
    return kicked;
  }

  HeldPages pages;
  std::shared_ptr<memory::MemoryFile> file;
  std::unique_ptr<memory::GuestMemory> memory;
  Link link;
  std::unique_ptr<Device> device;
};

TEST_CASE("A queue waits for rings, tables and buffers without a thread") {
  if (IsRefused()) return;
  // Each of them is held once.
  const uint64_t held = GENERATE(as<uint64_t>{}, kDescriptors, kAvailable,
                                 kUsed, kTable, kIn, kOut);
  CAPTURE(held / kPage);
  Lazy<Shouter> lazy(OneBuffer());
  lazy.pages.Hold(held);
  // Whatever is missing none of these waits: the store stands still until
  // Release().
  REQUIRE(lazy.device->Activate(kFeatures, {&kQueue, 1}).ok());
  const auto until =
      std::chrono::steady_clock::now() + std::chrono::seconds(60);
  int kicks = 0;
  while (!lazy.pages.WaitUntilAsked(std::chrono::steady_clock::now() +
                                    std::chrono::milliseconds(1))) {
    REQUIRE(std::chrono::steady_clock::now() < until);
    if (lazy.link.kicks > kicks) {
      ++kicks;
      lazy.device->Kick();
    }
  }
  for (int i = 0; i < 5; ++i) lazy.device->Kick();
  lazy.device->Quiesce();
  lazy.device->Resume();
  CHECK(lazy.link.kicks == kicks);
  lazy.pages.Release();
  lazy.KickUntil(1);
  CHECK(lazy.used() == 1);
  CHECK(lazy.Text(kOut) == "HELLO");
  CHECK(*lazy.memory->template Load<uint32_t>({kUsed + 8}) == 5);
  CHECK(lazy.link.failures == 0);
  CHECK(lazy.link.interrupts >= 1);
}

TEST_CASE("A queue takes what is there before it waits") {
  if (IsRefused()) return;
  Ram ram;
  for (uint16_t i = 0; i < 3; ++i) {
    ram.PutDescriptor(kDescriptors + i * uint64_t{16}, kOut + i * kPage, 1,
                      kWrite);
    ram.Put16(kAvailable + 4 + i * uint64_t{2}, i);
  }
  ram.Put16(kAvailable + 2, 3);
  Lazy<Shouter> lazy(ram);
  lazy.pages.Hold(kOut + 2 * kPage);
  // By the kernel's way, so that the device finds them.
  for (const uint64_t page : {kDescriptors, kAvailable, kUsed, kOut}) {
    static_cast<void>(lazy.memory->template Load<uint16_t>({page}));
  }
  static_cast<void>(lazy.memory->template Load<uint16_t>({kOut + kPage}));
  REQUIRE(lazy.device->Activate(kFeatures, {&kQueue, 1}).ok());
  CHECK(lazy.used() == 2);
  CHECK(lazy.link.interrupts == 1);
  CHECK(lazy.link.kicks == 0);
  // What the driver says meanwhile counts: it takes the buffer elsewhere.
  REQUIRE(
      lazy.memory->template Store<uint64_t>({kDescriptors + 32}, kOut).ok());
  lazy.device->Kick();
  CHECK(lazy.used() == 3);
}

TEST_CASE("A device goes, or is reset, while its queue waits") {
  if (IsRefused()) return;
  const bool goes = GENERATE(false, true);
  Lazy<Shouter> lazy(OneBuffer());
  lazy.pages.Hold(kDescriptors);
  REQUIRE(lazy.device->Activate(kFeatures, {&kQueue, 1}).ok());
  REQUIRE(lazy.pages.WaitUntilAsked(std::chrono::steady_clock::now() +
                                    std::chrono::seconds(60)));
  if (goes) {
    lazy.device->SetLink(nullptr);
    lazy.device.reset();
    lazy.pages.Release();
    CHECK(lazy.used() == 0);
    CHECK(lazy.link.kicks == 0);
  } else {
    lazy.device->Reset();
    lazy.pages.Release();
    REQUIRE(lazy.link.WaitForKick(1));
    lazy.device->Kick();
    CHECK(lazy.used() == 0);
    REQUIRE(lazy.device->Activate(kFeatures, {&kQueue, 1}).ok());
    lazy.KickUntil(1);
    CHECK(lazy.Text(kOut) == "HELLO");
  }
}

TEST_CASE("A queue whose pages are lost does nothing, and is not kicked") {
  if (IsRefused()) return;
  Lazy<Shouter> lazy(OneBuffer());
  lazy.pages.Hold(kAvailable);
  REQUIRE(lazy.device->Activate(kFeatures, {&kQueue, 1}).ok());
  REQUIRE(lazy.pages.WaitUntilAsked(std::chrono::steady_clock::now() +
                                    std::chrono::seconds(60)));
  lazy.pages.Release(absl::DataLossError("bad"));
  REQUIRE(HeldPages::WaitUntilLost(
      *lazy.file, std::chrono::steady_clock::now() + std::chrono::seconds(60)));
  lazy.device->Kick();
  lazy.device->Quiesce();
  lazy.device->Resume();
  CHECK(lazy.used() == 0);
  CHECK(lazy.link.kicks == 0);
  CHECK(lazy.link.failures == 0);
  lazy.device->Reset();
}

TEST_CASE("Pages that the guest gives away are not read for that") {
  if (IsRefused()) return;
  // Without figures the reporting queue is the third.
  constexpr uint64_t kReporting = uint64_t{1} << 5;
  constexpr uint64_t kGivenAway = 100;
  Ram ram;
  ram.PutDescriptor(kDescriptors, kGivenAway * kPage, 50 * kPage, kWrite);
  ram.Put16(kAvailable + 2, 1);
  Lazy<Balloon> lazy(ram);
  const QueueConfig queues[] = {{}, {}, kQueue};
  REQUIRE(lazy.device->Activate(kFeatureVersion1 | kReporting, queues).ok());
  lazy.KickUntil(1);
  CHECK(lazy.device->reported_bytes() == 50 * kPage);
  CHECK(lazy.pages.brought() == 3);  // The rings.
}

TEST_CASE("A balloon asks for figures when its rings have come") {
  if (IsRefused()) return;
  constexpr uint64_t kStats = uint64_t{1} << 1;
  Ram ram;
  ram.PutDescriptor(kDescriptors, kIn, 10, 0);
  ram.Put16(kAvailable + 2, 1);
  std::vector<uint8_t> saved;
  const QueueConfig queues[] = {{}, {}, kQueue};
  {
    Lazy<Balloon> before(ram);
    REQUIRE(before.device->Activate(kFeatureVersion1 | kStats, queues).ok());
    int kicks = 0;
    while (!before.device->stats().has_value()) {
      REQUIRE(before.link.WaitForKick(++kicks));
      before.device->Kick();
    }
    before.device->Quiesce();
    state::StateEncoder encoder(&saved);
    before.device->SaveState(encoder);
  }
  Lazy<Balloon> lazy(ram);
  lazy.pages.Hold(kUsed);
  REQUIRE(lazy.device
              ->LoadState(kFeatureVersion1 | kStats, queues,
                          state::StateDecoder(saved))
              .ok());
  lazy.device->Resume();
  lazy.device->RequestStats();
  CHECK(lazy.pages.WaitUntilAsked(std::chrono::steady_clock::now() +
                                  std::chrono::seconds(60)));
  lazy.device->RequestStats();
  lazy.pages.Release();
  REQUIRE(lazy.link.WaitForKick(1));
  lazy.device->Kick();
  CHECK(lazy.used() == 0);
  lazy.device->RequestStats();
  CHECK(lazy.used() == 1);
}

}  // namespace
}  // namespace catnap::virtio
