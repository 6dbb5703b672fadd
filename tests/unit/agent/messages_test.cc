#include "agent/messages.h"

#include <catch2/catch.hpp>
#include <string>

#include "state/encoder.h"

namespace catnap::agent {
namespace {

TEST_CASE("An exec request survives the wire") {
  ExecRequest request;
  request.argv = {"sh", "-c", ""};
  request.env = {"A=b"};
  request.cwd = "/tmp";
  request.user = "nobody:users";
  request.stdin_data = std::string("a\0b", 3);
  request.stdin_open = true;
  request.pty = WindowSize{.rows = 50, .columns = 132};
  request.output_limit_bytes = 1;
  request.memory_limit_bytes = 2;
  request.timeout_ms = 3;
  request.capabilities = 4;
  request.report_start = true;
  ExecRequest read;
  REQUIRE(Decode(Encode(request), &read));
  CHECK(read.argv == request.argv);
  CHECK(read.env == request.env);
  CHECK(read.cwd == request.cwd);
  CHECK(read.user == request.user);
  CHECK(read.stdin_data == request.stdin_data);
  CHECK(read.stdin_open);
  REQUIRE(read.pty.has_value());
  CHECK(read.pty->rows == 50);
  CHECK(read.pty->columns == 132);
  CHECK(read.output_limit_bytes == 1);
  CHECK(read.memory_limit_bytes == 2);
  CHECK(read.timeout_ms == 3);
  CHECK(read.capabilities == 4);
  CHECK(read.report_start);
}

TEST_CASE("An exit report with numbers that no process has is refused") {
  Encoded bytes;
  state::StateEncoder out(&bytes);
  out.Unsigned(2, 256);
  ExitReport report;
  CHECK_FALSE(Decode(bytes, &report));
}

TEST_CASE("Arguments are bounded in number") {
  ExecRequest request;
  request.argv.assign(kMaxArguments + 1, "");
  ExecRequest read;
  CHECK_FALSE(Decode(Encode(request), &read));
}

TEST_CASE("Records come out however their bytes are cut") {
  const size_t cut = GENERATE(as<size_t>(), 1, 3, 4, 7, 1000);
  FileEntry entry;
  entry.type = EntryType::kFile;
  entry.path = "a/b";
  entry.mtime_ns = -1;
  Encoded stream;
  AppendRecord(Encode(entry), &stream);
  AppendRecord({}, &stream);
  RecordReader reader;
  int records = 0;
  for (size_t at = 0; at < stream.size(); at += cut) {
    reader.Feed(std::span<const uint8_t>(stream).subspan(
        at, std::min(cut, stream.size() - at)));
    while (const auto fields = reader.Next()) {
      FileEntry read;
      CHECK(Decode(*fields, &read));
      CHECK(read.path == (records == 0 ? "a/b" : ""));
      ++records;
    }
  }
  CHECK(records == 2);
  CHECK(reader.ok());
  CHECK(reader.empty());
}

TEST_CASE("A record longer than the bound is refused at its header") {
  const Encoded bytes = {0xff, 0xff, 0xff, 0xff};
  RecordReader reader;
  reader.Feed(bytes);
  CHECK_FALSE(reader.Next().has_value());
  CHECK_FALSE(reader.ok());
}

}  // namespace
}  // namespace catnap::agent
