#include "vmm/console.h"

#include <algorithm>
#include <new>
#include <utility>

#include "base/log_text.h"

namespace catnap::vmm {

Console::Console(const ConsoleLimits& limits, base::Clock* clock)
    : clock_(clock != nullptr ? clock : &system_clock_),
      line_bucket_(limits.lines_per_second, limits.burst_lines),
      byte_bucket_(limits.bytes_per_second,
                   std::max<double>(limits.burst_bytes, kLineBytes)) {}

void Console::SetLineCallback(LineCallback on_line) {
  base::MutexLock lock(&line_mutex_);
  on_line_ = std::move(on_line);
}

void Console::Write(std::span<const uint8_t> bytes) {
  AppendToTail(bytes);
  base::MutexLock lock(&line_mutex_);
  for (const uint8_t byte : bytes) AppendToLineLocked(byte);
}

void Console::Flush() {
  base::MutexLock lock(&line_mutex_);
  if (line_size_ != 0 || dropped_ != 0) ForwardLineLocked();
}

void Console::AppendToLineLocked(uint8_t byte) {
  if (byte == '\r') return;
  if (byte == '\n') {
    EndLineLocked();
    return;
  }
  // Only now is it sure that the line is too long.
  if (line_size_ == kLineBytes) EndLineLocked();
  line_[line_size_] = static_cast<char>(byte);
  ++line_size_;
}

void Console::EndLineLocked() {
  if (!on_line_) {
    line_size_ = 0;
    return;
  }
  const auto now = clock_->Now();
  const auto bytes = static_cast<double>(line_size_);
  if (!line_bucket_.Has(1, now) || !byte_bucket_.Has(bytes, now)) {
    ++dropped_;
    line_size_ = 0;
    return;
  }
  line_bucket_.Take(1);
  byte_bucket_.Take(bytes);
  ForwardLineLocked();
}

void Console::ForwardLineLocked() {
  const std::string_view line(line_.data(), std::exchange(line_size_, 0));
  const uint64_t dropped = std::exchange(dropped_, 0);
  if (!on_line_) return;
  // Cleaning never makes a line longer, so this one fits.
  std::array<char, kLineBytes> clean{};
  const size_t size = base::CleanLogText(line, clean);
  on_line_(std::string_view(clean.data(), size), dropped);
}

void Console::AppendToTail(std::span<const uint8_t> bytes) {
  base::MutexLock lock(&tail_mutex_);
  if (tail_ == nullptr) tail_.reset(new (std::nothrow) char[kTailBytes]);
  if (tail_ == nullptr) return;
  bool found = false;
  for (const uint8_t byte : bytes) {
    tail_[written_ % kTailBytes] = static_cast<char>(byte);
    ++written_;
    // Looking here and not in the waiter finds text that is overwritten before
    // the waiter runs, and wakes nobody in vain.
    for (Waiter* waiter : waiters_) {
      if (!waiter->found && TailEndsWithLocked(waiter->text)) {
        waiter->found = true;
        found = true;
      }
    }
  }
  if (found) found_.NotifyAll();
}

std::string Console::Tail() const {
  base::MutexLock lock(&tail_mutex_);
  return TailLocked();
}

std::string Console::TailLocked() const {
  if (tail_ == nullptr) return {};
  if (written_ <= kTailBytes) return {tail_.get(), written_};
  const size_t start = written_ % kTailBytes;
  std::string tail(tail_.get() + start, kTailBytes - start);
  return tail.append(tail_.get(), start);
}

bool Console::TailEndsWithLocked(std::string_view text) const {
  if (text.size() > std::min<uint64_t>(written_, kTailBytes)) return false;
  // From the back: most output differs in the last byte.
  for (size_t i = 1; i <= text.size(); ++i) {
    if (tail_[(written_ - i) % kTailBytes] != text[text.size() - i]) {
      return false;
    }
  }
  return true;
}

bool Console::WaitForText(std::string_view text,
                          std::chrono::steady_clock::time_point deadline) {
  base::MutexLock lock(&tail_mutex_);
  if (TailLocked().find(text) != std::string::npos) return true;
  Waiter waiter{text};
  waiters_.push_back(&waiter);
  while (!waiter.found && found_.WaitUntil(&tail_mutex_, deadline)) {
  }
  waiters_.erase(std::find(waiters_.begin(), waiters_.end(), &waiter));
  return waiter.found;
}

}  // namespace catnap::vmm
