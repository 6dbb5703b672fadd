#include "vmm/console.h"

#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <string>
#include <vector>

#include "base/thread.h"

namespace catnap::vmm {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class ManualClock final : public base::Clock {
 public:
  std::chrono::steady_clock::time_point Now() override { return now; }
  std::chrono::system_clock::time_point WallNow() override { return {}; }
  std::chrono::steady_clock::time_point now{seconds(1000)};
};

struct Line {
  std::string text;
  uint64_t dropped = 0;
};

// A console with a clock that stands still, and the lines it forwarded.
struct Fixture {
  explicit Fixture(const ConsoleLimits& limits = {}) : console(limits, &clock) {
    console.SetLineCallback([this](std::string_view line, uint64_t dropped) {
      lines.push_back({std::string(line), dropped});
    });
  }
  void Write(const std::string& text) {
    console.Write({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  // As a UART does: byte by byte.
  void WriteSlowly(const std::string& text) {
    for (const char c : text) Write(std::string(1, c));
  }
  std::vector<std::string> texts() const {
    std::vector<std::string> result;
    for (const Line& line : lines) result.push_back(line.text);
    return result;
  }

  ManualClock clock;
  std::vector<Line> lines;
  Console console;
};

std::chrono::steady_clock::time_point In(milliseconds delay) {
  return std::chrono::steady_clock::now() + delay;
}

// Long enough that it only passes when something is broken.
constexpr milliseconds kLong = seconds(60);

TEST_CASE("Console forwards whole lines without their ends") {
  Fixture fixture;
  fixture.WriteSlowly("one\r\n\ntw");
  CHECK(fixture.texts() == std::vector<std::string>{"one", ""});
  fixture.Write("o\nthree\nfour");
  CHECK(fixture.texts() == std::vector<std::string>{"one", "", "two", "three"});
  fixture.console.Flush();
  CHECK(fixture.lines.back().text == "four");
  const size_t count = fixture.lines.size();
  fixture.console.Flush();  // Nothing is left.
  CHECK(fixture.lines.size() == count);
}

TEST_CASE("Console replaces control characters in lines, not in the tail") {
  Fixture fixture;
  const std::string red = "\x1b[31mred\x1b[0m\tx\r\n";
  fixture.Write(red);
  CHECK(fixture.texts() == std::vector<std::string>{"?[31mred?[0m x"});
  CHECK(fixture.console.Tail() == red);
}

TEST_CASE("Console cuts long lines into pieces") {
  Fixture fixture;
  fixture.Write(std::string(Console::kLineBytes, 'a') + "\n");
  CHECK(fixture.texts() ==
        std::vector<std::string>{std::string(Console::kLineBytes, 'a')});
  fixture.lines.clear();
  fixture.Write(std::string(Console::kLineBytes + 1, 'b') + "\n");
  CHECK(fixture.texts() ==
        std::vector<std::string>{std::string(Console::kLineBytes, 'b'), "b"});
}

TEST_CASE("Console::Tail holds the newest bytes only") {
  Fixture fixture;
  CHECK(fixture.console.Tail().empty());
  std::string all;
  for (int i = 0; all.size() < 3 * Console::kTailBytes; ++i) {
    const std::string line = std::to_string(i) + "\n";
    fixture.Write(line);
    all += line;
  }
  CHECK(fixture.console.Tail() == all.substr(all.size() - Console::kTailBytes));
}

TEST_CASE("Console::Tail is everything until exactly its size was written") {
  Fixture fixture;
  const std::string full(Console::kTailBytes, 'x');
  fixture.Write(full);
  CHECK(fixture.console.Tail() == full);
  fixture.Write("y");
  CHECK(fixture.console.Tail() == full.substr(1) + "y");
}

TEST_CASE("Console takes more than its tail in one write") {
  Fixture fixture;
  fixture.Write(std::string(Console::kTailBytes, 'x') + "end");
  CHECK(fixture.console.Tail().size() == Console::kTailBytes);
  CHECK(fixture.console.Tail().substr(Console::kTailBytes - 4) == "xend");
}

TEST_CASE("Console drops lines beyond the limit and says how many") {
  Fixture fixture({.lines_per_second = 1, .burst_lines = 2});
  fixture.Write("1\n2\n3\n4\n5\n");
  CHECK(fixture.texts() == std::vector<std::string>{"1", "2"});
  fixture.clock.now += seconds(1);
  fixture.Write("6\n7\n");
  REQUIRE(fixture.lines.size() == 3);
  CHECK(fixture.lines[2].text == "6");
  CHECK(fixture.lines[2].dropped == 3);
  fixture.clock.now += seconds(1);
  fixture.Write("8\n");
  CHECK(fixture.lines.back().dropped == 1);
  fixture.clock.now += seconds(1);
  fixture.Write("9\n");
  CHECK(fixture.lines.back().dropped == 0);
}

TEST_CASE("Console bounds bytes as well as lines") {
  Fixture fixture({.lines_per_second = 1000,
                   .burst_lines = 1000,
                   .bytes_per_second = 100,
                   .burst_bytes = Console::kLineBytes});
  fixture.Write(std::string(Console::kLineBytes, 'a') + "\n");
  fixture.Write("b\n");
  CHECK(fixture.lines.size() == 1);
  fixture.clock.now += seconds(1);
  fixture.Write(std::string(101, 'c') + "\n");  // One byte too many
  CHECK(fixture.lines.size() == 1);
  fixture.Write(std::string(100, 'd') + "\n");  // and just right.
  REQUIRE(fixture.lines.size() == 2);
  CHECK(fixture.lines[1].dropped == 2);
}

TEST_CASE("Console passes a line of full length under the smallest limit") {
  Fixture fixture({.burst_bytes = 0});
  fixture.Write(std::string(Console::kLineBytes, 'a') + "\n");
  CHECK(fixture.lines.size() == 1);
}

TEST_CASE("Console::Flush forwards the count of dropped lines at the end") {
  Fixture fixture({.lines_per_second = 1, .burst_lines = 1});
  fixture.Write("1\n2\n3\npanic");
  fixture.console.Flush();
  REQUIRE(fixture.lines.size() == 2);
  CHECK(fixture.lines[1].text == "panic");
  CHECK(fixture.lines[1].dropped == 2);
  fixture.Write("4\n");
  fixture.console.Flush();
  REQUIRE(fixture.lines.size() == 3);
  CHECK(fixture.lines[2].text.empty());
  CHECK(fixture.lines[2].dropped == 1);
}

TEST_CASE("A guest that writes for a minute is forwarded at a bounded rate") {
  static constexpr int kMilliseconds = 60'000;
  const ConsoleLimits limits;
  Fixture fixture(limits);
  uint64_t written = 0;
  for (int i = 0; i < kMilliseconds; ++i) {
    fixture.Write("spam spam\nspam spam spam\n");
    written += 2;
    fixture.clock.now += milliseconds(1);
  }
  fixture.console.Flush();
  uint64_t dropped = 0;
  uint64_t bytes = 0;
  for (const Line& line : fixture.lines) {
    dropped += line.dropped;
    bytes += line.text.size();
  }
  const auto forwarded = static_cast<double>(fixture.lines.size());
  CHECK(forwarded <= limits.burst_lines + 60 * limits.lines_per_second + 1);
  CHECK(forwarded >= 60 * limits.lines_per_second);
  CHECK(static_cast<double>(bytes) <=
        limits.burst_bytes + 60 * limits.bytes_per_second);
  // Flush() forwarded one empty line, only to tell the count.
  CHECK(fixture.lines.size() - 1 + dropped == written);
}

TEST_CASE("Console without a callback forwards and counts nothing") {
  Fixture fixture({.lines_per_second = 1, .burst_lines = 1});
  fixture.console.SetLineCallback(nullptr);
  fixture.Write("1\n2\n3\nhalf");
  fixture.console.Flush();
  fixture.console.SetLineCallback([&](std::string_view line, uint64_t dropped) {
    fixture.lines.push_back({std::string(line), dropped});
  });
  fixture.Write("4\n");
  REQUIRE(fixture.lines.size() == 1);
  CHECK(fixture.lines[0].text == "4");
  CHECK(fixture.lines[0].dropped == 0);
}

TEST_CASE("A line callback may read the tail and wait for text in it") {
  Fixture fixture;
  std::string tail;
  bool found = false;
  fixture.console.SetLineCallback([&](std::string_view, uint64_t) {
    tail = fixture.console.Tail();
    found = fixture.console.WaitForText("hello", In(kLong));
  });
  fixture.Write("hello\n");
  CHECK(tail == "hello\n");
  CHECK(found);
}

TEST_CASE("Console::WaitForText finds what stands in the tail already") {
  Fixture fixture;
  fixture.Write("login: ");
  CHECK(fixture.console.WaitForText("login: ", In(milliseconds(0))));
  CHECK(fixture.console.WaitForText("", In(milliseconds(0))));
  CHECK_FALSE(fixture.console.WaitForText("logout", In(milliseconds(0))));
}

TEST_CASE("Console::WaitForText returns when the deadline passes") {
  Fixture fixture;
  const auto start = std::chrono::steady_clock::now();
  CHECK_FALSE(fixture.console.WaitForText("never", In(milliseconds(30))));
  CHECK(std::chrono::steady_clock::now() - start >= milliseconds(30));
  CHECK_FALSE(fixture.console.WaitForText(
      std::string(Console::kTailBytes + 1, 'x'), In(milliseconds(0))));
}

TEST_CASE("Console::WaitForText finds text that is overwritten at once") {
  Fixture fixture;
  bool found = false;
  auto waiter = base::Thread::Start("waiter", [&] {
    found = fixture.console.WaitForText("needle", In(kLong));
  });
  REQUIRE(waiter.ok());
  // The waiter may come late: repeat until it must have seen one. The needle
  // never stays in the tail.
  const std::string haystack(2 * Console::kTailBytes, '.');
  std::atomic<bool> stop = false;
  auto writer = base::Thread::Start("writer", [&] {
    while (!stop) {
      fixture.WriteSlowly("nee");
      fixture.Write("dle" + haystack);
    }
  });
  REQUIRE(writer.ok());
  waiter->Join();
  stop = true;
  writer->Join();
  CHECK(found);
  CHECK(fixture.console.Tail().find("needle") == std::string::npos);
}

TEST_CASE("Several threads wait for different text") {
  Fixture fixture;
  std::array<bool, 2> found{};
  auto one = base::Thread::Start("one", [&] {
    found[0] = fixture.console.WaitForText("alpha", In(kLong));
  });
  auto two = base::Thread::Start("two", [&] {
    found[1] = fixture.console.WaitForText("beta", In(kLong));
  });
  REQUIRE(one.ok());
  REQUIRE(two.ok());
  fixture.WriteSlowly("beta\n");
  two->Join();
  fixture.WriteSlowly("alpha\n");
  one->Join();
  CHECK(found == std::array<bool, 2>{true, true});
}

}  // namespace
}  // namespace catnap::vmm
