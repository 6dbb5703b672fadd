#ifndef CATNAP_LIB_DEVICE_SERIAL_H_
#define CATNAP_LIB_DEVICE_SERIAL_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/mutex.h"
#include "device/device.h"
#include "device/output_sink.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::device {

// A 16550A UART on 8 ports: what a stock kernel detects as ttyS0. Bytes leave
// at once, so the transmitter is always empty, and the line speed means
// nothing. The interrupt line does not depend on MCR's OUT2, which gates it on
// PC boards: kernels that only know virtual machines do not set it.
//
// Thread safety: thread-safe.
class Serial final : public IoHandler {
 public:
  static constexpr uint64_t kPorts = 8;
  static constexpr size_t kFifoBytes = 16;

  // `sink` gets what the guest sends, and may call Receive() from its Write().
  // `irq` is asserted while an interrupt is pending. Both must outlive this.
  Serial(OutputSink* sink, IrqLine* irq) : sink_(sink), irq_(irq) {}
  Serial(const Serial&) = delete;
  Serial& operator=(const Serial&) = delete;

  // A register is one byte wide: the first byte of an access is the register
  // at `offset`, the others read as all ones and are ignored when written.
  void Read(uint64_t offset, std::span<uint8_t> data) override;
  void Write(uint64_t offset, std::span<const uint8_t> data) override;

  // Sends `bytes` to the guest, as many as its receive buffer has room for (16
  // with the FIFO on, 1 without, none in loopback mode). Returns how many
  // that were; offer the rest again later. Does not block.
  size_t Receive(std::span<const uint8_t> bytes);

  // The registers and what was received and not yet read.
  void SaveState(state::StateEncoder& out);
  // Before the guest runs. The line stays low: see RaiseAgain().
  // Errors: DATA_LOSS; the registers are as they were.
  absl::Status LoadState(state::StateDecoder in);
  // Makes a new edge of an interrupt that is pending.
  void RaiseAgain();

 private:
  uint8_t ReadRegisterLocked(uint64_t offset)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteRegisterLocked(uint64_t offset, uint8_t value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes `value` as sent. Returns whether it leaves the machine.
  bool TransmitLocked(uint8_t value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void WriteFifoControlLocked(uint8_t value)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void UpdateModemStatusLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The low four bits of IIR: the pending interrupt of highest priority.
  uint8_t InterruptIdLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Brings the interrupt line in step with the registers.
  void UpdateIrqLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool dlab_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t receive_room_locked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PushLocked(uint8_t value) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  uint8_t PopLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  OutputSink* const sink_;  // Not owned.
  IrqLine* const irq_;      // Not owned.

  // Held while the sink takes a byte, so that bytes keep their order; nothing
  // but sending waits for it. Comes before mutex_.
  base::Mutex output_mutex_;
  base::Mutex mutex_;
  // Registers, by their names in the data sheet.
  uint8_t ier_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t fcr_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t lcr_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t mcr_ ABSL_GUARDED_BY(mutex_) = 0;
  // Carrier, data set ready and clear to send: somebody listens.
  uint8_t msr_ ABSL_GUARDED_BY(mutex_) = 0xb0;
  uint8_t scr_ ABSL_GUARDED_BY(mutex_) = 0;
  uint8_t dll_ ABSL_GUARDED_BY(mutex_) = 0x0c;  // 9,600 baud.
  uint8_t dlm_ ABSL_GUARDED_BY(mutex_) = 0;
  // The interrupt "transmitter holding register empty" is pending.
  bool thre_pending_ ABSL_GUARDED_BY(mutex_) = false;
  bool overrun_ ABSL_GUARDED_BY(mutex_) = false;  // LSR's OE.
  bool irq_asserted_ ABSL_GUARDED_BY(mutex_) = false;
  // Received and not yet read: `received_count_` bytes from `received_head_`,
  // around the end.
  std::array<uint8_t, kFifoBytes> received_ ABSL_GUARDED_BY(mutex_){};
  size_t received_head_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t received_count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace catnap::device

#endif  // CATNAP_LIB_DEVICE_SERIAL_H_
