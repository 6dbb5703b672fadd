#ifndef CATNAP_TESTS_SUPPORT_VIRTIO_DRIVER_H_
#define CATNAP_TESTS_SUPPORT_VIRTIO_DRIVER_H_

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/register_page.h"
#include "memory/guest_memory.h"
#include "virtio/mmio_transport.h"

namespace catnap::test {

// What a driver puts into a descriptor.
struct Piece {
  uint64_t gpa = 0;
  uint32_t length = 0;
  bool writable = false;
};

struct RawDescriptor {
  uint64_t gpa = 0;
  uint32_t length = 0;
  uint16_t flags = 0;
  uint16_t next = 0;
};
inline constexpr uint16_t kNextFlag = 1;
inline constexpr uint16_t kWriteFlag = 2;
inline constexpr uint16_t kIndirectFlag = 4;

struct UsedBuffer {
  uint32_t head = 0;
  uint32_t written = 0;

  friend bool operator==(const UsedBuffer&, const UsedBuffer&) = default;
};

// One device behind its registers, and a driver that can also break every
// rule. Guest RAM is 1 MiB from 0: queues from kQueueArea, kQueueStride each;
// what is from kBuffers on is free for buffers.
class VirtioDriver {
 public:
  static constexpr uint64_t kRamBytes = 1 << 20;
  static constexpr uint64_t kQueueArea = 0x10000;
  static constexpr uint64_t kQueueStride = 0x4000;
  static constexpr uint64_t kBuffers = 0x40000;

  using Factory = std::function<std::unique_ptr<virtio::VirtioDevice>(
      memory::GuestMemory*)>;

  explicit VirtioDriver(const Factory& factory);
  // A second machine that has the same RAM as `other` at this moment.
  VirtioDriver(const Factory& factory, const VirtioDriver& other);
  ~VirtioDriver();

  memory::GuestMemory& memory() { return *memory_; }
  virtio::VirtioDevice& device() { return *device_; }
  virtio::MmioTransport& transport() { return *transport_; }

  uint32_t Read(virtio::MmioRegister which) const;
  void Write(virtio::MmioRegister which, uint32_t value);
  uint32_t status() const { return Read(virtio::MmioRegister::kStatus); }
  uint64_t OfferedFeatures();

  // The steps of virtio 1.2, 3.1.1. Negotiate() says whether FEATURES_OK
  // stayed.
  bool Negotiate(uint64_t features);
  void SetUpQueue(uint32_t index, uint16_t size);
  void DriverOk();
  // All of it, with every queue at `size` and the offered features, but for
  // those in `without`. Returns whether the device runs.
  bool Start(uint16_t size = 8, uint64_t without = 0);
  void Reset() { Write(virtio::MmioRegister::kStatus, 0); }

  // Puts one buffer into the descriptors from `head` on and makes it
  // available. It is in one indirect table when `indirect`.
  void Add(uint32_t queue, uint16_t head, const std::vector<Piece>& pieces,
           bool indirect = false);
  void SetDescriptor(uint32_t queue, uint16_t index, RawDescriptor descriptor);
  void MakeAvailable(uint32_t queue, uint16_t head);
  void SetAvailableIndex(uint32_t queue, uint16_t index);
  void SetAvailableFlags(uint32_t queue, uint16_t flags);
  void SetUsedEvent(uint32_t queue, uint16_t event);
  uint16_t AvailableEvent(uint32_t queue) const;
  uint16_t UsedFlags(uint32_t queue) const;
  void Kick() { device_->Kick(); }

  // What was used since the last call.
  std::vector<UsedBuffer> TakeUsed(uint32_t queue);

  void Fill(uint64_t gpa, const std::string& bytes);
  std::string Bytes(uint64_t gpa, size_t length) const;

  int interrupts() const { return irq_.interrupts; }
  int failures() const { return failures_; }
  std::optional<std::chrono::steady_clock::time_point> kick_at() const {
    return kick_at_;
  }

 private:
  struct Ring {
    uint16_t size = 0;
    uint16_t available = 0;  // The driver's index.
    uint16_t used = 0;       // What TakeUsed() has seen.
  };
  class CountingIrq final : public device::IrqLine {
   public:
    void Set(bool asserted) override {
      if (asserted && !level) ++interrupts;
      level = asserted;
    }
    bool level = false;
    int interrupts = 0;
  };

  uint64_t descriptors(uint32_t queue) const;
  uint64_t available(uint32_t queue) const;
  uint64_t used(uint32_t queue) const;
  uint64_t indirect_table(uint32_t queue, uint16_t head) const;
  void PutDescriptor(uint64_t gpa, RawDescriptor descriptor);
  void Put16(uint64_t gpa, uint16_t value);
  uint16_t Get16(uint64_t gpa) const;

  std::unique_ptr<memory::GuestMemory> memory_;
  std::optional<device::RegisterPages> pages_;
  CountingIrq irq_;
  int failures_ = 0;
  std::optional<std::chrono::steady_clock::time_point> kick_at_;
  std::unique_ptr<virtio::VirtioDevice> device_;
  std::unique_ptr<virtio::MmioTransport> transport_;
  std::vector<Ring> rings_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_VIRTIO_DRIVER_H_
