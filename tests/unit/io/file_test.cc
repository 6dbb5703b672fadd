#include "io/file.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include "support/temporary_directory.h"

namespace catnap::io {
namespace {

using absl::StatusCode;
using test::TemporaryDirectory;

// Lowers RLIMIT_FSIZE: to a write, the same as a disk that fills up.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    before_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit lower = before_;
    lower.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &lower);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, before_handler_);
  }

 private:
  rlimit before_{};
  void (*before_handler_)(int) = SIG_DFL;
};

std::vector<std::string> NamesIn(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename());
  }
  return names;
}

void MakeFile(const std::string& path, const std::string& content) {
  const auto fd = OpenFile(path, O_WRONLY | O_CREAT | O_TRUNC);
  REQUIRE(fd.ok());
  REQUIRE(WriteFully(fd->get(), content.data(), content.size(), 0).ok());
}

TEST_CASE("OpenFile opens close-on-exec and says which file it was") {
  const TemporaryDirectory directory;
  const auto fd = OpenFile(directory.File("a"), O_RDWR | O_CREAT);
  REQUIRE(fd.ok());
  CHECK(::fcntl(fd->get(), F_GETFD) == FD_CLOEXEC);
  const auto missing = OpenFile(directory.File("missing"), O_RDONLY);
  CHECK(missing.status().code() == StatusCode::kNotFound);
  CHECK_THAT(missing.status().ToString(), Catch::Contains("missing"));
}

TEST_CASE("ReadFully returns exactly what WriteFully wrote") {
  const TemporaryDirectory directory;
  const auto fd = OpenFile(directory.File("a"), O_RDWR | O_CREAT);
  REQUIRE(fd.ok());
  REQUIRE(WriteFully(fd->get(), "abcdef", 6, 10).ok());
  std::string back(4, '?');
  REQUIRE(ReadFully(fd->get(), back.data(), back.size(), 11).ok());
  CHECK(back == "bcde");
}

TEST_CASE("ReadFully says OUT_OF_RANGE when the file ends before") {
  const TemporaryDirectory directory;
  MakeFile(directory.File("a"), "abc");
  const auto fd = OpenFile(directory.File("a"), O_RDONLY);
  REQUIRE(fd.ok());
  std::string back(4, '?');
  CHECK(ReadFully(fd->get(), back.data(), 4, 0).code() ==
        StatusCode::kOutOfRange);
}

TEST_CASE("Ranges that leave the offsets of files are refused") {
  char byte = 0;
  CHECK(ReadFully(0, &byte, 1, UINT64_MAX).code() ==
        StatusCode::kInvalidArgument);
  CHECK(WriteFully(0, &byte, 1, INT64_MAX).code() ==
        StatusCode::kInvalidArgument);
}

TEST_CASE("WriteFully says RESOURCE_EXHAUSTED on a full disk") {
  const auto full = OpenFile("/dev/full", O_WRONLY);
  REQUIRE(full.ok());
  const absl::Status status = WriteFully(full->get(), "abc", 3, 0);
  CHECK(status.code() == StatusCode::kResourceExhausted);
}

TEST_CASE("ReadFile returns a file that fits its bound exactly") {
  const TemporaryDirectory directory;
  const size_t size = GENERATE(0u, 1u, 65536u, 65537u, 300000u);
  const std::string content(size, 'x');
  MakeFile(directory.File("a"), content);
  const auto read = ReadFile(directory.File("a"), size);
  REQUIRE(read.ok());
  CHECK(*read == content);
}

TEST_CASE("ReadFile refuses a file beyond its bound, naming both sizes") {
  const TemporaryDirectory directory;
  MakeFile(directory.File("a"), std::string(1001, 'x'));
  const auto read = ReadFile(directory.File("a"), 1000);
  CHECK(read.status().code() == StatusCode::kInvalidArgument);
  CHECK_THAT(read.status().ToString(),
             Catch::Contains("1001") && Catch::Contains("1000"));
}

TEST_CASE("ReadFile refuses a sparse file of terabytes without reading it") {
  const TemporaryDirectory directory;
  MakeFile(directory.File("a"), "x");
  REQUIRE(::truncate(directory.File("a").c_str(), off_t{1} << 40) == 0);
  CHECK(ReadFile(directory.File("a"), 1 << 20).status().code() ==
        StatusCode::kInvalidArgument);
}

TEST_CASE("ReadFile bounds files that claim to be empty") {
  // Files of /proc have size 0 and content.
  CHECK(ReadFile("/proc/self/status", 1 << 20)->size() > 100);
  CHECK(ReadFile("/proc/self/status", 100).status().code() ==
        StatusCode::kInvalidArgument);
}

TEST_CASE("ReadFile neither reads devices nor waits on a FIFO") {
  const TemporaryDirectory directory;
  REQUIRE(::mkfifo(directory.File("fifo").c_str(), 0600) == 0);
  for (const std::string& path : {std::string("/dev/zero"), std::string("/tmp"),
                                  directory.File("fifo")}) {
    CAPTURE(path);
    CHECK(ReadFile(path, 1000).status().code() == StatusCode::kInvalidArgument);
  }
}

TEST_CASE("FsyncDirectory takes a directory and nothing else") {
  const TemporaryDirectory directory;
  MakeFile(directory.File("a"), "x");
  CHECK(FsyncDirectory(directory.path()).ok());
  CHECK_FALSE(FsyncDirectory(directory.File("a")).ok());
}

TEST_CASE("A committed AtomicFile replaces the name with the whole content") {
  const TemporaryDirectory directory;
  MakeFile(directory.File("a"), "old");
  auto file = AtomicFile::Create(directory.File("a"));
  REQUIRE(file.ok());
  CHECK(::fcntl((*file)->fd(), F_GETFD) == FD_CLOEXEC);
  REQUIRE((*file)->Append("new ", 4).ok());
  REQUIRE((*file)->Append("content", 7).ok());
  CHECK(*ReadFile(directory.File("a"), 100) == "old");
  REQUIRE((*file)->Commit().ok());
  CHECK(*ReadFile(directory.File("a"), 100) == "new content");
  CHECK((*file)->Commit().code() == StatusCode::kFailedPrecondition);
  file->reset();
  CHECK(NamesIn(directory.path()) == std::vector<std::string>{"a"});
}

TEST_CASE("An AtomicFile that is to be durable later has its name at once") {
  const TemporaryDirectory directory;
  MakeFile(directory.File("a"), "old");
  auto file = AtomicFile::Create(directory.File("a"));
  REQUIRE(file.ok());
  REQUIRE((*file)->Append("new", 3).ok());
  REQUIRE((*file)->CommitLater().ok());
  CHECK(*ReadFile(directory.File("a"), 100) == "new");
  CHECK((*file)->CommitLater().code() == StatusCode::kFailedPrecondition);
  CHECK((*file)->Commit().code() == StatusCode::kFailedPrecondition);
  file->reset();
  CHECK(NamesIn(directory.path()) == std::vector<std::string>{"a"});
}

TEST_CASE("An AtomicFile that is not committed leaves nothing behind") {
  const TemporaryDirectory directory;
  auto file = AtomicFile::Create(directory.File("a"));
  REQUIRE(file.ok());
  REQUIRE((*file)->Append("x", 1).ok());
  const auto names = NamesIn(directory.path());
  REQUIRE(names.size() == 1);
  CHECK(AtomicFile::IsTemporaryName(names[0]));
  file->reset();
  CHECK(NamesIn(directory.path()).empty());
}

TEST_CASE("A disk that fills up while writing leaves the old file") {
  const TemporaryDirectory directory;
  MakeFile(directory.File("a"), "old");
  absl::Status status;
  {
    auto file = AtomicFile::Create(directory.File("a"));
    REQUIRE(file.ok());
    const std::string much(100000, 'x');
    const FileSizeLimit limit(65536);
    status = (*file)->Append(much.data(), much.size());
  }
  CHECK(status.code() == StatusCode::kResourceExhausted);
  CHECK_THAT(status.ToString(), Catch::Contains("RLIMIT_FSIZE is 65536"));
  CHECK(*ReadFile(directory.File("a"), 100) == "old");
  CHECK(NamesIn(directory.path()) == std::vector<std::string>{"a"});
}

TEST_CASE("A rename that fails leaves no temporary file") {
  const TemporaryDirectory directory;
  const std::string taken = directory.File("taken");
  REQUIRE(::mkdir(taken.c_str(), 0700) == 0);
  {
    auto file = AtomicFile::Create(taken);
    REQUIRE(file.ok());
    CHECK_FALSE((*file)->Commit().ok());
    CHECK((*file)->Commit().code() == StatusCode::kFailedPrecondition);
  }
  CHECK(NamesIn(directory.path()) == std::vector<std::string>{"taken"});
}

TEST_CASE("AtomicFile refuses paths that name no file") {
  const std::string path = GENERATE("", "/", "/tmp/", "/tmp/.", "..");
  CHECK(AtomicFile::Create(path).status().code() ==
        StatusCode::kInvalidArgument);
}

TEST_CASE("AtomicFile does not confuse ordinary names with its own") {
  CHECK(AtomicFile::IsTemporaryName(".catnap-0123456789abcdef.tmp"));
  const std::string name =
      GENERATE("", "a.tmp", ".catnap-.tmp", ".catnap-0123456789abcdef",
               "catnap-0123456789abcdef.tmp");
  CHECK_FALSE(AtomicFile::IsTemporaryName(name));
}

}  // namespace
}  // namespace catnap::io
