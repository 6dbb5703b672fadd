#ifndef CATNAP_LIB_VMM_CONSOLE_H_
#define CATNAP_LIB_VMM_CONSOLE_H_

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/log_text.h"
#include "base/mutex.h"
#include "base/token_bucket.h"
#include "device/output_sink.h"

namespace catnap::vmm {

// How much of a guest's console is forwarded: a burst at once (a whole boot
// fits), then so much each second.
struct ConsoleLimits {
  double lines_per_second = 100;
  double burst_lines = 2'000;
  double bytes_per_second = 16 << 10;
  double burst_bytes = 256 << 10;  // At least Console::kLineBytes.
};

// What a guest writes on its serial console: keeps the end of it, forwards it
// line by line at a bounded rate, and finds text in it. Uses the same memory
// however much the guest writes.
//
// Thread safety: thread-safe.
class Console final : public device::OutputSink {
 public:
  static constexpr size_t kTailBytes = 64 << 10;
  static constexpr size_t kLineBytes = base::kMaxLogTextBytes;

  // `line` has no line end, is safe to show (base::CleanLogText) and at most
  // kLineBytes long; longer ones come in pieces. `dropped` lines before it
  // were left out, as they came faster than the limits. Called on the thread
  // that writes (a vCPU's), or in Flush(); calls come in order and never
  // overlap. Must not throw, nor call the console's Write(), Flush() or
  // SetLineCallback(). While it blocks, so does the vCPU.
  using LineCallback =
      std::function<void(std::string_view line, uint64_t dropped)>;

  // `clock` is borrowed and must outlive this; null: the system's.
  explicit Console(const ConsoleLimits& limits = {},
                   base::Clock* clock = nullptr);

  // Replaces the callback; empty: lines are not forwarded, nor counted as
  // dropped. When this returns the one before is not called any more.
  void SetLineCallback(LineCallback on_line);

  void Write(std::span<const uint8_t> bytes) override;

  // Forwards, past the limits, what stands in the last line, and how many
  // lines were dropped before it. For when the guest has ended: without it a
  // last line without its end, and a last count, stay here.
  void Flush();

  // The last kTailBytes that the guest wrote, as it wrote them: control
  // characters included. Without what was written while there was no memory
  // for the first of them.
  std::string Tail() const;

  // Blocks until `text` stands in what Tail() returns or comes later, or until
  // `deadline`, by the system's clock. Returns whether it was found. Text
  // longer than kTailBytes never is.
  bool WaitForText(std::string_view text,
                   std::chrono::steady_clock::time_point deadline);

 private:
  struct Waiter {
    std::string_view text;
    bool found = false;
  };

  void AppendToTail(std::span<const uint8_t> bytes);
  std::string TailLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(tail_mutex_);
  bool TailEndsWithLocked(std::string_view text) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(tail_mutex_);
  void AppendToLineLocked(uint8_t byte)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(line_mutex_);
  // Ends the line, and forwards it when the limits allow.
  void EndLineLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(line_mutex_);
  void ForwardLineLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(line_mutex_);

  base::SystemClock system_clock_;
  base::Clock* const clock_;  // Not owned, or system_clock_.

  // Held while the callback runs, so that lines keep their order; only who
  // writes waits for it. Never held together with tail_mutex_.
  base::Mutex line_mutex_;
  LineCallback on_line_ ABSL_GUARDED_BY(line_mutex_);
  base::TokenBucket line_bucket_ ABSL_GUARDED_BY(line_mutex_);
  base::TokenBucket byte_bucket_ ABSL_GUARDED_BY(line_mutex_);
  uint64_t dropped_ ABSL_GUARDED_BY(line_mutex_) = 0;
  size_t line_size_ ABSL_GUARDED_BY(line_mutex_) = 0;
  std::array<char, kLineBytes> line_ ABSL_GUARDED_BY(line_mutex_);

  mutable base::Mutex tail_mutex_;
  base::CondVar found_;
  // kTailBytes, allocated once, for the first byte: most guests are woken ones
  // that never write, and many of these among what machines have on the heap
  // made the kernel give it huge pages, all of them memory. Byte n of the
  // output is at n modulo kTailBytes.
  std::unique_ptr<char[]> tail_ ABSL_GUARDED_BY(tail_mutex_);
  uint64_t written_ ABSL_GUARDED_BY(tail_mutex_) = 0;
  // One for each thread in WaitForText(), on its stack.
  std::vector<Waiter*> waiters_ ABSL_GUARDED_BY(tail_mutex_);
};

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_CONSOLE_H_
