#include "agent/log_lines.h"

#include <catch2/catch.hpp>
#include <chrono>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/log_text.h"

namespace catnap::agent {
namespace {

class Sink final : public LogSink {
 public:
  void Write(const LogRecord& record) override {
    lines.emplace_back(record.text);
    dropped += record.dropped;
  }
  std::vector<std::string> lines;
  uint64_t dropped = 0;
};

// Stands still, so that no bound lets more through than a burst.
class StoppedClock final : public base::Clock {
 public:
  std::chrono::steady_clock::time_point Now() override { return now; }
  std::chrono::system_clock::time_point WallNow() override { return {}; }
  std::chrono::steady_clock::time_point now{};
};

base::Logger LoggerOf(const std::shared_ptr<Sink>& sink,
                      base::Clock* clock = nullptr) {
  base::LoggerOptions options;
  options.sink = sink;
  options.source = "app";
  options.bounds.burst_lines = 10;
  options.bounds.burst_bytes = 1 << 20;
  options.clock = clock;
  return base::Logger(options);
}

void Feed(LogLines* lines, std::string_view text) {
  lines->Feed({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

TEST_CASE("Output becomes the same lines however it is cut") {
  const size_t piece = GENERATE(size_t{1}, size_t{2}, size_t{3}, size_t{100});
  const auto sink = std::make_shared<Sink>();
  LogLines lines(LoggerOf(sink), LogSeverity::kInfo);
  const std::string text = "one\n\ntwo\r\n\x1b[31mthree\nrest";
  for (size_t at = 0; at < text.size(); at += piece) {
    Feed(&lines, std::string_view(text).substr(at, piece));
  }
  lines.End();
  lines.End();
  CHECK(sink->lines ==
        std::vector<std::string>{"one", "", "two", "?[31mthree", "rest"});
}

TEST_CASE("A line that is too long comes in pieces, and none of it is lost") {
  const size_t piece = GENERATE(size_t{1}, size_t{4095}, size_t{1} << 20);
  const auto sink = std::make_shared<Sink>();
  LogLines lines(LoggerOf(sink), LogSeverity::kInfo);
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "\u20ac";  // Three bytes.
  const std::string all = text + "\nnext\n";
  for (size_t at = 0; at < all.size(); at += piece) {
    Feed(&lines, std::string_view(all).substr(at, piece));
  }
  REQUIRE(sink->lines.size() == 5);
  CHECK(sink->lines[0].size() == 4095);  // 4,096 is inside a character.
  CHECK(sink->lines[0] + sink->lines[1] + sink->lines[2] + sink->lines[3] ==
        text);
  CHECK(sink->lines[4] == "next");
}

TEST_CASE("A line that just fits is one record") {
  const auto sink = std::make_shared<Sink>();
  LogLines lines(LoggerOf(sink), LogSeverity::kInfo);
  const std::string text(base::kMaxLogTextBytes, 'x');
  Feed(&lines, text + "\n" + text + "y\n");
  CHECK(sink->lines == std::vector<std::string>{text, text, "y"});
}

TEST_CASE("Bytes that are no text are cut and cleaned like any") {
  const auto sink = std::make_shared<Sink>();
  LogLines lines(LoggerOf(sink), LogSeverity::kInfo);
  Feed(&lines, std::string(10'000, '\x80'));
  lines.End();
  CHECK(sink->lines ==
        std::vector<std::string>{std::string(4096, '?'), std::string(4096, '?'),
                                 std::string(10'000 - 2 * 4096, '?')});
}

TEST_CASE("Lines that come too fast are counted") {
  const auto sink = std::make_shared<Sink>();
  StoppedClock clock;
  LogLines lines(LoggerOf(sink, &clock), LogSeverity::kInfo);
  for (int i = 0; i < 1000; ++i) Feed(&lines, "line\n");
  CHECK(sink->lines.size() == 10);
  clock.now += std::chrono::seconds(10);
  Feed(&lines, "later\n");
  CHECK(sink->lines.back() == "later");
  CHECK(sink->dropped == 990);
}

}  // namespace
}  // namespace catnap::agent
