#include "device/bus.h"

#include <algorithm>
#include <iterator>
#include <optional>

#include "base/checked.h"
#include "base/status.h"

namespace catnap::device {

absl::Status Bus::Add(uint64_t start, uint64_t length, IoHandler* handler) {
  const auto last = length == 0 ? std::nullopt
                                : base::CheckedAdd<uint64_t>(start, length - 1);
  if (handler == nullptr || !last.has_value()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "bus range at {:#x} of {:#x} bytes: must have a handler, not "
                 "be empty and not wrap",
                 start, length);
  }
  const auto next = std::upper_bound(
      ranges_.begin(), ranges_.end(), start,
      [](uint64_t at, const Range& range) { return at < range.start; });
  // Only the neighbours can overlap, as the ranges are disjoint and sorted.
  const bool overlaps_next = next != ranges_.end() && next->start <= *last;
  const bool overlaps_previous =
      next != ranges_.begin() && std::prev(next)->last >= start;
  if (overlaps_next || overlaps_previous) {
    const Range& other = overlaps_next ? *next : *std::prev(next);
    return Error(absl::StatusCode::kInvalidArgument,
                 "bus range {:#x} to {:#x} overlaps {:#x} to {:#x}", start,
                 *last, other.start, other.last);
  }
  ranges_.insert(next, Range{start, *last, handler});
  return absl::OkStatus();
}

const Bus::Range* Bus::Find(uint64_t address, size_t size) const {
  if (size != 1 && size != 2 && size != 4 && size != 8) return nullptr;
  const auto next = std::upper_bound(
      ranges_.begin(), ranges_.end(), address,
      [](uint64_t at, const Range& range) { return at < range.start; });
  if (next == ranges_.begin()) return nullptr;
  const Range& range = *std::prev(next);
  // `last - address` counts the bytes behind the first one and cannot wrap.
  if (address > range.last || range.last - address < size - 1) return nullptr;
  return &range;
}

void Bus::Read(uint64_t address, std::span<uint8_t> data) {
  std::fill(data.begin(), data.end(), uint8_t{0xff});
  const Range* range = Find(address, data.size());
  if (range == nullptr) {
    // relaxed: see unclaimed_reads().
    unclaimed_reads_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  range->handler->Read(address - range->start, data);
}

void Bus::Write(uint64_t address, std::span<const uint8_t> data) {
  const Range* range = Find(address, data.size());
  if (range == nullptr) {
    // relaxed: see unclaimed_writes().
    unclaimed_writes_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  range->handler->Write(address - range->start, data);
}

}  // namespace catnap::device
