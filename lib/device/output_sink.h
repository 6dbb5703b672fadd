#ifndef CATNAP_LIB_DEVICE_OUTPUT_SINK_H_
#define CATNAP_LIB_DEVICE_OUTPUT_SINK_H_

#include <cstdint>
#include <span>

namespace catnap::device {

// Takes the bytes that a device sends out of the machine.
class OutputSink {
 public:
  virtual ~OutputSink() = default;
  // Calls from one device come in order and never overlap, each on the vCPU
  // thread whose guest sent `bytes`: must not block for long. The guest
  // chooses every byte.
  virtual void Write(std::span<const uint8_t> bytes) = 0;
};

}  // namespace catnap::device

#endif  // CATNAP_LIB_DEVICE_OUTPUT_SINK_H_
