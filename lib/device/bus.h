#ifndef CATNAP_LIB_DEVICE_BUS_H_
#define CATNAP_LIB_DEVICE_BUS_H_

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "device/device.h"

namespace catnap::device {

// One address space of a machine, its I/O ports or its MMIO: finds the
// handler that answers an access.
//
// Thread safety: Add() must not overlap with anything: add every range before
// the vCPUs run. From then on the ranges do not change, and Read() and
// Write() are thread-safe and take no lock.
class Bus {
 public:
  Bus() = default;
  Bus(const Bus&) = delete;
  Bus& operator=(const Bus&) = delete;

  // Gives [start, start + length) to `handler`, which must outlive the last
  // Read() and Write(). One handler may have several ranges. A range may end
  // exactly at 2^64.
  // Errors: INVALID_ARGUMENT (no handler, empty, wraps, overlaps another
  // range; the bus is unchanged).
  absl::Status Add(uint64_t start, uint64_t length, IoHandler* handler);

  // Any address and any size may come: they are the guest's. An access that is
  // not 1, 2, 4 or 8 bytes (KVM cuts one that crosses a page in two of any
  // size), or does not lie wholly inside one range, belongs to nobody: it
  // reads as all ones, writing does nothing, and it is counted. Cost:
  // logarithmic in the number of ranges, plus the handler.
  void Read(uint64_t address, std::span<uint8_t> data);
  void Write(uint64_t address, std::span<const uint8_t> data);

  // How many accesses belonged to nobody. For diagnostics.
  uint64_t unclaimed_reads() const {
    // relaxed: a statistic that orders nothing.
    return unclaimed_reads_.load(std::memory_order_relaxed);
  }
  uint64_t unclaimed_writes() const {
    // relaxed: as above.
    return unclaimed_writes_.load(std::memory_order_relaxed);
  }

 private:
  struct Range {
    uint64_t start = 0;
    uint64_t last = 0;  // The last address, so that 2^64 needs no 65th bit.
    IoHandler* handler = nullptr;
  };

  // The range that holds all `size` bytes at `address`, or null.
  const Range* Find(uint64_t address, size_t size) const;

  std::vector<Range> ranges_;  // Disjoint, sorted by start.
  std::atomic<uint64_t> unclaimed_reads_ = 0;
  std::atomic<uint64_t> unclaimed_writes_ = 0;
};

}  // namespace catnap::device

#endif  // CATNAP_LIB_DEVICE_BUS_H_
