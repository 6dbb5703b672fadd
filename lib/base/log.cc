#include "base/log.h"

#include <algorithm>
#include <array>
#include <deque>
#include <utility>

#include "base/log_text.h"
#include "base/mutex.h"
#include "base/token_bucket.h"

namespace catnap::base {

// Shared with the task in the executor, which may outlive every Logger.
class Logger::Core : public std::enable_shared_from_this<Core> {
 public:
  explicit Core(LoggerOptions options)
      : options_(std::move(options)),
        lines_(options_.bounds.lines_per_second, options_.bounds.burst_lines),
        bytes_(options_.bounds.bytes_per_second, options_.bounds.burst_bytes) {}

  // `text` is clean.
  void Submit(LogSeverity severity, std::string_view text) {
    Clock* clock = options_.clock != nullptr ? options_.clock : &system_clock_;
    const auto now = clock->Now();
    const auto wall_now = clock->WallNow();
    {
      const MutexLock lock(&mutex_);
      if (!MayTakeLocked(text.size(), now)) {
        ++dropped_;
        return;
      }
      waiting_.push_back({severity, wall_now, std::string(text), dropped_});
      lines_.Take(1);
      bytes_.Take(static_cast<double>(text.size()));
      waiting_bytes_ += text.size();
      dropped_ = 0;
      if (draining_) return;
      draining_ = true;
    }
    if (options_.executor == nullptr) return Drain();
    try {
      options_.executor->Post([self = shared_from_this()] { self->Drain(); });
    } catch (...) {
      // The line waits for the next one, which tries again.
      const MutexLock lock(&mutex_);
      draining_ = false;
    }
  }

  void CountDropped() noexcept {
    const MutexLock lock(&mutex_);
    ++dropped_;
  }

 private:
  struct Waiting {
    LogSeverity severity;
    std::chrono::system_clock::time_point time;
    std::string text;
    uint64_t dropped;
  };

  bool MayTakeLocked(size_t size, std::chrono::steady_clock::time_point now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const LogBounds& bounds = options_.bounds;
    return static_cast<double>(waiting_.size()) < bounds.burst_lines &&
           static_cast<double>(waiting_bytes_ + size) <= bounds.burst_bytes &&
           lines_.Has(1, now) && bytes_.Has(static_cast<double>(size), now);
  }

  // Gives the sink all that waits. One at a time: draining_ is set.
  void Drain() {
    while (true) {
      Waiting line;
      {
        const MutexLock lock(&mutex_);
        if (waiting_.empty()) {
          draining_ = false;
          return;
        }
        line = std::move(waiting_.front());
        waiting_.pop_front();
        waiting_bytes_ -= line.text.size();
      }
      Deliver(line);
    }
  }

  void Deliver(const Waiting& line) {
    LogRecord record;
    record.severity = line.severity;
    record.time = line.time;
    record.vm_id = options_.vm_id;
    record.source = options_.source;
    record.text = line.text;
    record.dropped = line.dropped;
    try {
      options_.sink->Write(record);
    } catch (...) {
      // A sink must not throw; one that does must not end this thread.
      CountDropped();
    }
  }

  const LoggerOptions options_;
  SystemClock system_clock_;
  Mutex mutex_;
  TokenBucket lines_ ABSL_GUARDED_BY(mutex_);
  TokenBucket bytes_ ABSL_GUARDED_BY(mutex_);
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  size_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t dropped_ ABSL_GUARDED_BY(mutex_) = 0;
  // Somebody is in Drain(), or it waits in the executor.
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

namespace {

// One byte more than fits, so that CleanLogText() sees that text was cut.
using FormatBuffer = std::array<char, kMaxLogTextBytes + 1>;

// Returns how much of `buffer` is text afterwards; starts at `used`.
size_t FormatInto(FormatBuffer* buffer, size_t used, fmt::string_view format,
                  fmt::format_args args) {
  const size_t room = buffer->size() - used;
  const auto result =
      fmt::vformat_to_n(buffer->data() + used, room, format, args);
  return used + std::min(result.size, room);
}

}  // namespace

Logger::Logger(LoggerOptions options) {
  if (options.sink == nullptr) return;
  core_ = std::make_shared<Core>(std::move(options));
}

void Logger::Line(LogSeverity severity, std::string_view text) const noexcept {
  if (core_ == nullptr) return;
  try {
    std::array<char, kMaxLogTextBytes> clean{};
    const size_t size = CleanLogText(text, clean);
    core_->Submit(severity, std::string_view(clean.data(), size));
  } catch (...) {
    core_->CountDropped();
  }
}

void Logger::Format(LogSeverity severity, fmt::string_view format,
                    fmt::format_args args) const noexcept {
  if (core_ == nullptr) return;
  try {
    FormatBuffer buffer{};
    const size_t size = FormatInto(&buffer, 0, format, args);
    Line(severity, std::string_view(buffer.data(), size));
  } catch (...) {
    core_->CountDropped();
  }
}

void Logger::FormatStatus(const absl::Status& status, fmt::string_view format,
                          fmt::format_args args) const noexcept {
  if (core_ == nullptr) return;
  try {
    FormatBuffer buffer{};
    size_t size = FormatInto(&buffer, 0, format, args);
    const std::string text = status.ToString();
    size = FormatInto(&buffer, size, ": {}", fmt::make_format_args(text));
    Line(LogSeverity::kWarning, std::string_view(buffer.data(), size));
  } catch (...) {
    core_->CountDropped();
  }
}

}  // namespace catnap::base
