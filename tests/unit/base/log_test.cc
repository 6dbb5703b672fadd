#include "base/log.h"

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <future>
#include <new>
#include <thread>
#include <vector>

#include "base/log_text.h"
#include "base/mutex.h"
#include "base/thread_executor.h"

namespace catnap::base {
namespace {

struct Seen {
  LogSeverity severity;
  std::chrono::system_clock::time_point time;
  std::string vm_id;
  std::string source;
  std::string text;
  uint64_t dropped;
};

class RecordingSink final : public LogSink {
 public:
  void Write(const LogRecord& record) override {
    const MutexLock lock(&mutex_);
    seen_.push_back({record.severity, record.time, std::string(record.vm_id),
                     std::string(record.source), std::string(record.text),
                     record.dropped});
  }
  std::vector<Seen> seen() {
    const MutexLock lock(&mutex_);
    return seen_;
  }

 private:
  Mutex mutex_;
  std::vector<Seen> seen_ ABSL_GUARDED_BY(mutex_);
};

class ManualClock final : public Clock {
 public:
  std::chrono::steady_clock::time_point Now() override { return now_; }
  std::chrono::system_clock::time_point WallNow() override {
    return std::chrono::system_clock::time_point(std::chrono::seconds(77));
  }
  void Advance(std::chrono::milliseconds by) { now_ += by; }

 private:
  std::chrono::steady_clock::time_point now_{std::chrono::hours(1)};
};

TEST_CASE("Logger fills in the record") {
  const auto sink = std::make_shared<RecordingSink>();
  ManualClock clock;
  LoggerOptions options;
  options.sink = sink;
  options.vm_id = "vm7";
  options.source = "vcpu";
  options.clock = &clock;
  const Logger logger(options);
  logger.Debug("a {}", 1);
  logger.Info("b {}", "x");
  logger.Warning("c");
  logger.Error("d {:#x}", 255);
  logger.Line(LogSeverity::kInfo, "e\x1b\n");
  const std::vector<Seen> seen = sink->seen();
  REQUIRE(seen.size() == 5);
  CHECK(seen[0].severity == LogSeverity::kDebug);
  CHECK(seen[0].text == "a 1");
  CHECK(seen[0].vm_id == "vm7");
  CHECK(seen[0].source == "vcpu");
  CHECK(seen[0].time == clock.WallNow());
  CHECK(seen[0].dropped == 0);
  CHECK(seen[1].severity == LogSeverity::kInfo);
  CHECK(seen[2].severity == LogSeverity::kWarning);
  CHECK(seen[3].severity == LogSeverity::kError);
  CHECK(seen[3].text == "d 0xff");
  CHECK(seen[4].text == "e?");
}

TEST_CASE("Logger without a sink is silent") {
  const Logger none;
  none.Info("nobody hears {}", "this");
  none.Line(LogSeverity::kInfo, "this");
  none.LogIfError(absl::InternalError("x"), "or this");
  const Logger null_sink{LoggerOptions{}};
  null_sink.Info("nobody hears {}", "this");
}

TEST_CASE("LogIfError logs errors only, with the status behind the text") {
  const auto sink = std::make_shared<RecordingSink>();
  LoggerOptions options;
  options.sink = sink;
  const Logger logger(options);
  logger.LogIfError(absl::OkStatus(), "close {}", 1);
  logger.LogIfError(absl::DataLossError("bad sum"), "close {}", 2);
  const std::vector<Seen> seen = sink->seen();
  REQUIRE(seen.size() == 1);
  CHECK(seen[0].severity == LogSeverity::kWarning);
  CHECK(seen[0].text == "close 2: DATA_LOSS: bad sum");
}

TEST_CASE("Logger cuts a line to what a record may hold") {
  const auto sink = std::make_shared<RecordingSink>();
  LoggerOptions options;
  options.sink = sink;
  const Logger logger(options);
  const std::string fits(kMaxLogTextBytes, 'x');
  const std::string too_long = fits + "x";
  logger.Info("{}", fits);
  logger.Info("{}", too_long);
  logger.Line(LogSeverity::kInfo, std::string(1 << 20, 'x'));
  logger.LogIfError(absl::InternalError("lost"), "{}", fits);
  std::string cut(kMaxLogTextBytes - 3, 'x');
  cut += "...";
  const std::vector<Seen> seen = sink->seen();
  REQUIRE(seen.size() == 4);
  CHECK(seen[0].text == fits);
  CHECK(seen[1].text == cut);
  CHECK(seen[2].text == cut);
  CHECK(seen[3].text == cut);
}

TEST_CASE("Logger bounds lines and counts what it left out") {
  const auto sink = std::make_shared<RecordingSink>();
  ManualClock clock;
  LoggerOptions options;
  options.sink = sink;
  options.clock = &clock;
  options.bounds.burst_lines = 3;
  options.bounds.lines_per_second = 2;
  const Logger logger(options);
  for (int i = 0; i < 10; ++i) logger.Info("{}", i);
  CHECK(sink->seen().size() == 3);
  clock.Advance(std::chrono::milliseconds(500));  // Time for one line.
  logger.Info("later");
  logger.Info("too soon");
  const std::vector<Seen> seen = sink->seen();
  REQUIRE(seen.size() == 4);
  CHECK(seen[3].text == "later");
  CHECK(seen[3].dropped == 7);
}

TEST_CASE("Logger bounds bytes") {
  const auto sink = std::make_shared<RecordingSink>();
  ManualClock clock;
  LoggerOptions options;
  options.sink = sink;
  options.clock = &clock;
  options.bounds.burst_bytes = 10;
  options.bounds.bytes_per_second = 10;
  const Logger logger(options);
  logger.Info("12345678");
  logger.Info("123");  // Two bytes are left.
  CHECK(sink->seen().size() == 1);
  clock.Advance(std::chrono::milliseconds(200));
  logger.Info("1234");
  const std::vector<Seen> seen = sink->seen();
  REQUIRE(seen.size() == 2);
  CHECK(seen[1].dropped == 1);
}

TEST_CASE("Logger calls the sink on the executor, in order") {
  const auto sink = std::make_shared<RecordingSink>();
  auto executor = *ThreadExecutor::Create("log");
  std::promise<void> go;
  executor->Post([wait = go.get_future()] { wait.wait(); });
  {
    LoggerOptions options;
    options.sink = sink;
    options.executor = std::shared_ptr<Executor>(executor.get(), [](auto*) {});
    const Logger logger(options);
    for (int i = 0; i < 10; ++i) logger.Info("{}", i);
    CHECK(sink->seen().empty());
  }
  // The logger is gone; its last lines are not.
  go.set_value();
  executor.reset();
  const std::vector<Seen> seen = sink->seen();
  REQUIRE(seen.size() == 10);
  CHECK(seen[0].text == "0");
  CHECK(seen[9].text == "9");
}

TEST_CASE("What waits for a slow sink is bounded") {
  const auto sink = std::make_shared<RecordingSink>();
  auto executor = *ThreadExecutor::Create("log");
  std::promise<void> go;
  executor->Post([wait = go.get_future()] { wait.wait(); });
  LoggerOptions options;
  options.sink = sink;
  options.executor = std::shared_ptr<Executor>(executor.get(), [](auto*) {});
  options.bounds.burst_lines = 5;
  options.bounds.lines_per_second = 1e9;  // Only the queue bounds here.
  const Logger logger(options);
  for (int i = 0; i < 1000; ++i) logger.Info("{}", i);
  go.set_value();
  executor.reset();
  CHECK(sink->seen().size() == 5);
}

// Notices two calls at once; logs from inside Write(), as a sink may that
// calls the library.
class BusySink final : public LogSink {
 public:
  void Write(const LogRecord& record) override {
    if (inside_.fetch_add(1) != 0) overlapped = true;
    if (record.text == "ask") logger.Info("answer");
    if (record.text == "answer") answered = true;
    inside_.fetch_sub(1);
  }
  Logger logger;
  std::atomic<bool> overlapped = false;
  std::atomic<bool> answered = false;

 private:
  std::atomic<int> inside_ = 0;
};

TEST_CASE("Calls of a sink never overlap, whichever threads log") {
  const auto sink = std::make_shared<BusySink>();
  LoggerOptions options;
  options.sink = sink;
  const Logger logger(options);
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&logger] {
      for (int i = 0; i < 200; ++i) logger.Info("x");
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_FALSE(sink->overlapped);
}

TEST_CASE("A sink may log from inside Write") {
  const auto sink = std::make_shared<BusySink>();
  LoggerOptions options;
  options.sink = sink;
  const Logger logger(options);
  sink->logger = logger;
  logger.Info("ask");
  CHECK(sink->answered);
  CHECK_FALSE(sink->overlapped);
  sink->logger = Logger();  // Breaks the cycle of owners.
}

class ThrowingSink final : public LogSink {
 public:
  void Write(const LogRecord& record) override {
    dropped = record.dropped;
    if (record.text == "throw") throw std::bad_alloc();
  }
  uint64_t dropped = 0;
};

TEST_CASE("Nothing that goes wrong in a log call comes out of it") {
  const auto sink = std::make_shared<ThrowingSink>();
  LoggerOptions options;
  options.sink = sink;
  const Logger logger(options);
  logger.Info("throw");
  // fmt throws on a width that is negative.
  logger.Info("{:{}}", "x", -1);
  logger.LogIfError(absl::InternalError("x"), "{:{}}", "x", -1);
  logger.Info("next");
  CHECK(sink->dropped == 3);
}

}  // namespace
}  // namespace catnap::base
