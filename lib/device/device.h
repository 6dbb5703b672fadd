#ifndef CATNAP_LIB_DEVICE_DEVICE_H_
#define CATNAP_LIB_DEVICE_DEVICE_H_

#include <cstdint>
#include <span>

namespace catnap::device {

// Answers the guest's accesses to one range of I/O ports or of guest physical
// addresses.
//
// Thread safety: called from any vCPU thread, also by several at once. Must
// not block: the vCPU stands still meanwhile. Sizes are 1, 2, 4 or 8 bytes,
// with any alignment; the access lies wholly inside the handler's range.
class IoHandler {
 public:
  virtual ~IoHandler() = default;
  // `offset` counts from the start of the range. `data` holds all ones (what
  // an empty bus reads as); what the handler does not fill stays so.
  virtual void Read(uint64_t offset, std::span<uint8_t> data) = 0;
  virtual void Write(uint64_t offset, std::span<const uint8_t> data) = 0;
};

// One edge-triggered interrupt line into the guest. Thread-safe; does not
// block.
class IrqLine {
 public:
  virtual ~IrqLine() = default;
  // A change from false to true is an interrupt.
  virtual void Set(bool asserted) = 0;
};

}  // namespace catnap::device

#endif  // CATNAP_LIB_DEVICE_DEVICE_H_
