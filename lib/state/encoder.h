#ifndef CATNAP_LIB_STATE_ENCODER_H_
#define CATNAP_LIB_STATE_ENCODER_H_

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "state/wire.h"

namespace catnap::state {

// Appends tagged fields to a buffer that the caller may use again and again.
//
//   StateEncoder out(&buffer);
//   out.Unsigned(kDivisor, divisor_);
//   out.Bytes(kFifo, fifo_);
//   for (const Queue& queue : queues_) {
//     const auto nested = out.Message(kQueue);  // Ends with its scope.
//     queue.SaveState(out);
//   }
//   return out.status();
//
// A field may be left out when it has its default, and may be written several
// times to make a list. After the first error nothing more is appended, and
// status() keeps it; the buffer then holds nothing useful. Thread-compatible.
class StateEncoder {
 public:
  // Closes its message when destroyed. Messages close in reverse order.
  class Nested {
   public:
    Nested(Nested&& other) noexcept
        : encoder_(std::exchange(other.encoder_, nullptr)),
          start_(other.start_) {}
    Nested& operator=(Nested&&) = delete;
    ~Nested() {
      if (encoder_ != nullptr) encoder_->EndMessage(start_);
    }

   private:
    friend class StateEncoder;
    Nested(StateEncoder* encoder, size_t start)
        : encoder_(encoder), start_(start) {}

    StateEncoder* encoder_;
    size_t start_;  // Of the fields in the buffer.
  };

  // `out` is borrowed; what it holds stays in front.
  explicit StateEncoder(std::vector<uint8_t>* out) : out_(out) {}
  StateEncoder(const StateEncoder&) = delete;
  StateEncoder& operator=(const StateEncoder&) = delete;

  // `id` is 1 to kMaxFieldId, and never changes its meaning.
  void Unsigned(uint32_t id, uint64_t value);
  // Read it with StateDecoder::Signed(): small negative numbers stay short.
  void Signed(uint32_t id, int64_t value);
  void Bool(uint32_t id, bool value) { Unsigned(id, value ? 1 : 0); }
  // For values that use all their bits, such as checksums and addresses. The
  // decoder takes them for integers like any other.
  void Fixed32(uint32_t id, uint32_t value);
  void Fixed64(uint32_t id, uint64_t value);
  void Bytes(uint32_t id, std::span<const uint8_t> bytes);
  void Text(uint32_t id, std::string_view text);
  // What is written until the result dies is the nested message's.
  [[nodiscard]] Nested Message(uint32_t id);

  // Errors: RESOURCE_EXHAUSTED (no memory, or a field above kMaxFieldBytes),
  // INTERNAL (a bad id, nested too deep, or a message still open).
  absl::Status status() const;
  // Whether no field failed. Says nothing about messages still open.
  bool ok() const { return failure_ == Failure::kNone; }

 private:
  enum class Failure { kNone, kNoMemory, kTooLong, kBadId, kTooDeep };

  // Makes room at the end, null after a failure.
  uint8_t* Grow(size_t size);
  void Fail(Failure failure, uint32_t id);
  bool PutKey(uint32_t id, WireType type);
  bool PutVarint(uint64_t value);
  void EndMessage(size_t start);

  std::vector<uint8_t>* const out_;  // Not owned.
  int depth_ = 0;
  Failure failure_ = Failure::kNone;
  uint32_t failed_id_ = 0;
};

}  // namespace catnap::state

#endif  // CATNAP_LIB_STATE_ENCODER_H_
