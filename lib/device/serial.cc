#include "device/serial.h"

#include <algorithm>

#include "base/status.h"

// Names and behaviour: National Semiconductor PC16550D data sheet, section 8.
namespace catnap::device {
namespace {

// Offsets. With LCR's DLAB bit, 0 and 1 are the divisor.
constexpr uint64_t kData = 0;              // RBR to read, THR to write.
constexpr uint64_t kInterruptEnable = 1;   // IER
constexpr uint64_t kInterruptIdOrFcr = 2;  // IIR to read, FCR to write.
constexpr uint64_t kLineControl = 3;       // LCR
constexpr uint64_t kModemControl = 4;      // MCR
constexpr uint64_t kLineStatus = 5;        // LSR, read-only.
constexpr uint64_t kModemStatus = 6;       // MSR, read-only.
constexpr uint64_t kScratch = 7;           // SCR

constexpr uint8_t kIerReceived = 1u << 0;
constexpr uint8_t kIerThrEmpty = 1u << 1;
constexpr uint8_t kIerLineStatus = 1u << 2;
constexpr uint8_t kIerModemStatus = 1u << 3;
constexpr uint8_t kIerMask = 0x0f;  // The others read as 0.

// In order of falling priority.
constexpr uint8_t kIirLineStatus = 0x06;
constexpr uint8_t kIirReceived = 0x04;
constexpr uint8_t kIirTimeout = 0x0c;  // Received, below the FIFO's trigger.
constexpr uint8_t kIirThrEmpty = 0x02;
constexpr uint8_t kIirModemStatus = 0x00;
constexpr uint8_t kIirNone = 0x01;
constexpr uint8_t kIirFifoEnabled = 0xc0;

constexpr uint8_t kFcrEnable = 1u << 0;
constexpr uint8_t kFcrClearReceived = 1u << 1;
constexpr int kFcrTriggerShift = 6;
constexpr std::array<size_t, 4> kTriggerBytes = {1, 4, 8, 14};

constexpr uint8_t kLcrDlab = 1u << 7;

constexpr uint8_t kMcrDtr = 1u << 0;
constexpr uint8_t kMcrRts = 1u << 1;
constexpr uint8_t kMcrOut1 = 1u << 2;
constexpr uint8_t kMcrOut2 = 1u << 3;
constexpr uint8_t kMcrLoop = 1u << 4;
constexpr uint8_t kMcrMask = 0x1f;  // The others read as 0.

constexpr uint8_t kLsrDataReady = 1u << 0;
constexpr uint8_t kLsrOverrun = 1u << 1;
// Holding register and transmitter are empty, always.
constexpr uint8_t kLsrEmpty = 0x60;

constexpr uint8_t kMsrRingStopped = 1u << 2;
constexpr uint8_t kMsrDeltas = 0x0f;
constexpr uint8_t kMsrCts = 1u << 4;
constexpr uint8_t kMsrDsr = 1u << 5;
constexpr uint8_t kMsrRing = 1u << 6;
constexpr uint8_t kMsrCarrier = 1u << 7;

// Field ids of a saved port; FORMAT: state/FORMAT.md.
constexpr uint32_t kIerField = 1;
constexpr uint32_t kFcrField = 2;
constexpr uint32_t kLcrField = 3;
constexpr uint32_t kMcrField = 4;
constexpr uint32_t kMsrField = 5;
constexpr uint32_t kScrField = 6;
constexpr uint32_t kDivisorField = 7;
constexpr uint32_t kThrePendingField = 8;
constexpr uint32_t kOverrunField = 9;
constexpr uint32_t kReceivedField = 10;
static_assert(kIerField == 1 && kFcrField == 2 && kLcrField == 3 &&
                  kMcrField == 4 && kMsrField == 5 && kScrField == 6 &&
                  kDivisorField == 7 && kThrePendingField == 8 &&
                  kOverrunField == 9 && kReceivedField == 10,
              "field ids are on disk: read lib/state/FORMAT.md first");

}  // namespace

void Serial::Read(uint64_t offset, std::span<uint8_t> data) {
  base::MutexLock lock(&mutex_);
  data[0] = ReadRegisterLocked(offset);
}

void Serial::Write(uint64_t offset, std::span<const uint8_t> data) {
  const uint8_t value = data[0];
  if (offset != kData) {
    base::MutexLock lock(&mutex_);
    WriteRegisterLocked(offset, value);
    return;
  }
  base::MutexLock output_lock(&output_mutex_);
  {
    base::MutexLock lock(&mutex_);
    if (dlab_locked()) {
      dll_ = value;
      return;
    }
    if (!TransmitLocked(value)) return;
  }
  sink_->Write({&value, 1});
}

size_t Serial::Receive(std::span<const uint8_t> bytes) {
  base::MutexLock lock(&mutex_);
  // In loopback the receiver is cut off from the line.
  if ((mcr_ & kMcrLoop) != 0) return 0;
  const size_t taken = std::min(bytes.size(), receive_room_locked());
  for (const uint8_t byte : bytes.first(taken)) PushLocked(byte);
  UpdateIrqLocked();
  return taken;
}

void Serial::SaveState(state::StateEncoder& out) {
  const base::MutexLock lock(&mutex_);
  out.Unsigned(kIerField, ier_);
  out.Unsigned(kFcrField, fcr_);
  out.Unsigned(kLcrField, lcr_);
  out.Unsigned(kMcrField, mcr_);
  out.Unsigned(kMsrField, msr_);
  out.Unsigned(kScrField, scr_);
  out.Unsigned(kDivisorField, uint32_t{dlm_} << 8 | dll_);
  out.Bool(kThrePendingField, thre_pending_);
  out.Bool(kOverrunField, overrun_);
  std::array<uint8_t, kFifoBytes> waiting{};
  for (size_t i = 0; i < received_count_; ++i) {
    waiting[i] = received_[(received_head_ + i) % kFifoBytes];
  }
  out.Bytes(kReceivedField, std::span(waiting).first(received_count_));
}

absl::Status Serial::LoadState(state::StateDecoder in) {
  const base::MutexLock lock(&mutex_);
  uint8_t ier = ier_;
  uint8_t fcr = fcr_;
  uint8_t lcr = lcr_;
  uint8_t mcr = mcr_;
  uint8_t msr = msr_;
  uint8_t scr = scr_;
  uint16_t divisor = 0;
  bool thre_pending = false;
  bool overrun = false;
  std::span<const uint8_t> received;
  while (in.Next()) {
    switch (in.id()) {
      case kIerField:
        ier = in.U8() & kIerMask;
        break;
      case kFcrField:
        fcr = in.U8();
        break;
      case kLcrField:
        lcr = in.U8();
        break;
      case kMcrField:
        mcr = in.U8() & kMcrMask;
        break;
      case kMsrField:
        msr = in.U8();
        break;
      case kScrField:
        scr = in.U8();
        break;
      case kDivisorField:
        divisor = in.U16();
        break;
      case kThrePendingField:
        thre_pending = in.Bool();
        break;
      case kOverrunField:
        overrun = in.Bool();
        break;
      case kReceivedField:
        received = in.Bytes(kFifoBytes);
        break;
      default:
        break;
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  const size_t capacity = (fcr & kFcrEnable) != 0 ? kFifoBytes : 1;
  if (received.size() > capacity) {
    return Error(absl::StatusCode::kDataLoss,
                 "the saved serial port holds {} bytes in a buffer of {}",
                 received.size(), capacity);
  }
  ier_ = ier;
  fcr_ = (fcr & kFcrEnable) != 0 ? fcr : 0;
  lcr_ = lcr;
  mcr_ = mcr;
  msr_ = msr;
  scr_ = scr;
  dll_ = static_cast<uint8_t>(divisor);
  dlm_ = static_cast<uint8_t>(divisor >> 8);
  thre_pending_ = thre_pending;
  overrun_ = overrun;
  received_head_ = 0;
  received_count_ = received.size();
  std::copy(received.begin(), received.end(), received_.begin());
  irq_asserted_ = InterruptIdLocked() != kIirNone;
  return absl::OkStatus();
}

void Serial::RaiseAgain() {
  const base::MutexLock lock(&mutex_);
  if (!irq_asserted_) return;
  irq_->Set(false);
  irq_->Set(true);
}

uint8_t Serial::ReadRegisterLocked(uint64_t offset) {
  uint8_t value = 0xff;
  switch (offset) {
    case kData:
      value = dlab_locked() ? dll_ : PopLocked();
      break;
    case kInterruptEnable:
      value = dlab_locked() ? dlm_ : ier_;
      break;
    case kInterruptIdOrFcr:
      value = InterruptIdLocked();
      // Only this interrupt ends by being seen; the others, when what caused
      // them is read.
      if (value == kIirThrEmpty) thre_pending_ = false;
      if ((fcr_ & kFcrEnable) != 0) value |= kIirFifoEnabled;
      break;
    case kLineControl:
      value = lcr_;
      break;
    case kModemControl:
      value = mcr_;
      break;
    case kLineStatus:
      value = kLsrEmpty;
      if (received_count_ != 0) value |= kLsrDataReady;
      if (overrun_) value |= kLsrOverrun;
      overrun_ = false;
      break;
    case kModemStatus:
      value = msr_;
      msr_ &= static_cast<uint8_t>(~kMsrDeltas);
      break;
    case kScratch:
      value = scr_;
      break;
    default:
      break;
  }
  UpdateIrqLocked();
  return value;
}

void Serial::WriteRegisterLocked(uint64_t offset, uint8_t value) {
  switch (offset) {
    case kInterruptEnable:
      if (dlab_locked()) {
        dlm_ = value;
        break;
      }
      // Enabling it while the register is empty, as it always is, raises it,
      // also when it has been raised and seen before: drivers start sending
      // so, and test for it.
      if ((value & ~ier_ & kIerThrEmpty) != 0) thre_pending_ = true;
      ier_ = value & kIerMask;
      break;
    case kInterruptIdOrFcr:
      WriteFifoControlLocked(value);
      break;
    case kLineControl:
      lcr_ = value;
      break;
    case kModemControl:
      mcr_ = value & kMcrMask;
      UpdateModemStatusLocked();
      break;
    case kScratch:
      scr_ = value;
      break;
    default:  // The status registers are read-only.
      break;
  }
  UpdateIrqLocked();
}

bool Serial::TransmitLocked(uint8_t value) {
  // The register fills and is empty again: an interrupt that was pending ends
  // and comes again, which an edge-triggered line must show.
  thre_pending_ = false;
  UpdateIrqLocked();
  thre_pending_ = true;
  const bool loop = (mcr_ & kMcrLoop) != 0;
  if (loop) {
    if (receive_room_locked() == 0) {
      overrun_ = true;
      // With the FIFO off the byte before is lost, with it on this one is.
      if ((fcr_ & kFcrEnable) == 0) received_count_ = 0;
    }
    if (receive_room_locked() != 0) PushLocked(value);
  }
  UpdateIrqLocked();
  return !loop;
}

void Serial::WriteFifoControlLocked(uint8_t value) {
  // Switching the FIFO on or off empties it. While it is off the other bits
  // are ignored.
  const bool enable = (value & kFcrEnable) != 0;
  const bool changed = ((value ^ fcr_) & kFcrEnable) != 0;
  if (changed || (enable && (value & kFcrClearReceived) != 0)) {
    received_count_ = 0;
  }
  fcr_ = enable ? value : 0;
}

void Serial::UpdateModemStatusLocked() {
  uint8_t lines = kMsrCarrier | kMsrDsr | kMsrCts;
  if ((mcr_ & kMcrLoop) != 0) {
    lines = 0;
    if ((mcr_ & kMcrRts) != 0) lines |= kMsrCts;
    if ((mcr_ & kMcrDtr) != 0) lines |= kMsrDsr;
    if ((mcr_ & kMcrOut1) != 0) lines |= kMsrRing;
    if ((mcr_ & kMcrOut2) != 0) lines |= kMsrCarrier;
  }
  // A change of a line sets the bit four below it; but the ring's change
  // counts only when it stops.
  const auto old_lines = static_cast<uint8_t>(msr_ & ~kMsrDeltas);
  auto deltas = static_cast<uint8_t>((lines ^ old_lines) >> 4);
  if ((lines & kMsrRing) != 0) {
    deltas &= static_cast<uint8_t>(~kMsrRingStopped);
  }
  msr_ = static_cast<uint8_t>(lines | (msr_ & kMsrDeltas) | deltas);
}

uint8_t Serial::InterruptIdLocked() const {
  if ((ier_ & kIerLineStatus) != 0 && overrun_) return kIirLineStatus;
  if ((ier_ & kIerReceived) != 0 && received_count_ != 0) {
    if ((fcr_ & kFcrEnable) == 0) return kIirReceived;
    const size_t trigger = kTriggerBytes[fcr_ >> kFcrTriggerShift];
    // Below the trigger the interrupt comes when the line has been idle for
    // four characters. No time passes on our line: it comes at once.
    return received_count_ >= trigger ? kIirReceived : kIirTimeout;
  }
  if ((ier_ & kIerThrEmpty) != 0 && thre_pending_) return kIirThrEmpty;
  if ((ier_ & kIerModemStatus) != 0 && (msr_ & kMsrDeltas) != 0) {
    return kIirModemStatus;
  }
  return kIirNone;
}

void Serial::UpdateIrqLocked() {
  const bool pending = InterruptIdLocked() != kIirNone;
  if (pending == irq_asserted_) return;
  irq_asserted_ = pending;
  irq_->Set(pending);
}

bool Serial::dlab_locked() const { return (lcr_ & kLcrDlab) != 0; }

size_t Serial::receive_room_locked() const {
  const size_t capacity = (fcr_ & kFcrEnable) != 0 ? kFifoBytes : 1;
  return capacity - received_count_;
}

void Serial::PushLocked(uint8_t value) {
  received_[(received_head_ + received_count_) % kFifoBytes] = value;
  ++received_count_;
}

uint8_t Serial::PopLocked() {
  if (received_count_ == 0) return 0;
  const uint8_t value = received_[received_head_];
  received_head_ = (received_head_ + 1) % kFifoBytes;
  --received_count_;
  return value;
}

}  // namespace catnap::device
