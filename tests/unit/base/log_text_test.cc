#include "base/log_text.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

namespace catnap::base {
namespace {

std::string Clean(std::string_view text, size_t room = kMaxLogTextBytes) {
  std::string out(room, '\0');
  out.resize(CleanLogText(text, out));
  return out;
}

TEST_CASE("CleanLogText replaces what must not reach a terminal or a parser") {
  using namespace std::string_literals;
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"plain text", "plain text"},
      {"", ""},
      {"line\r\n", "line"},
      {"two\nlines", "two?lines"},
      {"a\tb", "a b"},
      {"\x1b[31mred", "?[31mred"},
      {"nul\0nul"s, "nul?nul"},
      {"\x7f", "?"},
      {"K\xc3\xa4se \xe2\x82\xac \xf0\x9f\x90\xb1",
       "K\xc3\xa4se \xe2\x82\xac \xf0\x9f\x90\xb1"},
      {"\xc2\x9b", "??"},                 // A control sequence introducer.
      {"\xe2\x80\xa8", "???"},            // Line separator.
      {"\xe2\x80\xae", "???"},            // Right-to-left override.
      {"\xe2\x81\xa6", "???"},            // Left-to-right isolate.
      {"\xff\xfe", "??"},                 // Never UTF-8.
      {"\xc0\x80", "??"},                 // An overlong NUL.
      {"\xed\xa0\x80", "???"},            // A surrogate.
      {"\xf4\x90\x80\x80", "????"},       // Above U+10FFFF.
      {"\xf8\x88\x80\x80\x80", "?????"},  // Five bytes.
      {"x\xe2\x82", "x??"},               // Ends early.
      {"\xe2\x41", "?A"},                 // Another character inside.
  };
  for (const auto& [text, expected] : cases) CHECK(Clean(text) == expected);
}

TEST_CASE("CleanLogText marks text that does not fit") {
  CHECK(Clean("12345678", 8) == "12345678");
  CHECK(Clean("123456789", 8) == "12345...");
  CHECK(Clean("1234", 3) == "...");
}

TEST_CASE("CleanLogText cuts between characters") {
  // The character stands over the place of the cut, one byte to either side.
  CHECK(Clean("123\xe2\x82\xac"
              "6789",
              8) == "123...");
  CHECK(Clean("12\xe2\x82\xac"
              "6789",
              8) == "12\xe2\x82\xac...");
}

}  // namespace
}  // namespace catnap::base
