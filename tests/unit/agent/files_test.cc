#include "agent/files.h"

#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <future>
#include <string>

#include "catnap/errors.h"
#include "support/running_agent.h"
#include "support/temporary_directory.h"

namespace catnap::agent {
namespace {

namespace fs = std::filesystem;
using testing::RunningAgent;

template <typename T>
struct Result {
  std::promise<absl::StatusOr<T>> promise;
  FileDone<T> done() {
    return [this](absl::StatusOr<T> value) {
      promise.set_value(std::move(value));
    };
  }
  absl::StatusOr<T> Get() { return promise.get_future().get(); }
};

struct Outcome {
  std::promise<absl::Status> promise;
  FileStatus done() {
    return
        [this](absl::Status status) { promise.set_value(std::move(status)); };
  }
  absl::Status Get() { return promise.get_future().get(); }
};

void Put(const fs::path& path, const std::string& text) {
  std::ofstream(path) << text;
}

std::string Content(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct stat Info(const fs::path& path) {
  struct stat info {};
  ::lstat(path.c_str(), &info);
  return info;
}

TEST_CASE("A file is written and read back, small and large") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const test::TemporaryDirectory dir;
  const std::string path = fs::path(dir.path()) / "file";
  const size_t size = GENERATE(as<size_t>(), 0, 5, 65'536, 65'537, 3'000'000);
  std::string data(size, 'x');
  for (size_t i = 0; i < size; i += 1000) data[i] = static_cast<char>(i / 1000);
  Outcome written;
  WriteFile(agent.client(), path, data, 0640, {}, written.done());
  CHECK(written.Get().ok());
  CHECK((Info(path).st_mode & 07777) == 0640);
  Result<std::string> read;
  ReadFile(agent.client(), path, 4 << 20, {}, read.done());
  const auto content = read.Get();
  REQUIRE(content.ok());
  CHECK(*content == data);
}

TEST_CASE("What is not there, too large or no file says so") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const test::TemporaryDirectory dir;
  Put(fs::path(dir.path()) / "file", "12345");
  const auto code = [&](const std::string& path) {
    Result<std::string> read;
    ReadFile(agent.client(), path, 4, {}, read.done());
    return read.Get().status();
  };
  CHECK(code("/no/such").code() == absl::StatusCode::kNotFound);
  CHECK(ReasonOf(code("/no/such")) == ErrorReason::kGuestPath);
  CHECK(code(fs::path(dir.path()) / "file").code() ==
        absl::StatusCode::kOutOfRange);
  CHECK(code(dir.path()).code() == absl::StatusCode::kFailedPrecondition);
  CHECK(code("/dev/zero").code() == absl::StatusCode::kFailedPrecondition);
  Outcome written;
  WriteFile(agent.client(), "/no/such", std::string(1'000'000, 'x'), 0600, {},
            written.done());
  CHECK(written.Get().code() == absl::StatusCode::kNotFound);
}

TEST_CASE("Directories are made, listed and removed") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const test::TemporaryDirectory dir;
  const std::string root = fs::path(dir.path()) / "a/b";
  Outcome made;
  MakeDirectory(agent.client(), root, 0750, {}, made.done());
  CHECK(made.Get().ok());
  CHECK((Info(root).st_mode & 07777) == 0750);
  for (int i = 0; i < 3000; ++i) Put(root + "/" + std::to_string(i), "");
  fs::create_symlink("target", root + "/link");
  Result<std::vector<FileEntry>> listed;
  ListDirectory(agent.client(), root, 10'000, {}, listed.done());
  const auto entries = listed.Get();
  REQUIRE(entries.ok());
  REQUIRE(entries->size() == 3001);
  CHECK(entries->back().path == "link");
  CHECK(entries->back().link == "target");
  CHECK(entries->back().type == EntryType::kSymlink);
  Result<std::vector<FileEntry>> bounded;
  ListDirectory(agent.client(), root, 10, {}, bounded.done());
  CHECK(bounded.Get().status().code() == absl::StatusCode::kOutOfRange);
  Result<FileEntry> stat;
  Stat(agent.client(), root, {}, stat.done());
  const auto entry = stat.Get();
  REQUIRE(entry.ok());
  CHECK(entry->type == EntryType::kDirectory);
  CHECK(entry->path == "b");
  Outcome kept;
  Remove(agent.client(), root, false, {}, kept.done());
  CHECK(kept.Get().code() == absl::StatusCode::kFailedPrecondition);
  Outcome removed;
  Remove(agent.client(), root, true, {}, removed.done());
  CHECK(removed.Get().ok());
  CHECK_FALSE(fs::exists(root));
}

// A tree with all that trees can have, and many small files.
void MakeTree(const fs::path& root) {
  fs::create_directories(root / "deep/er");
  Put(root / "deep/file", "text");
  fs::permissions(root / "deep/file", fs::perms{0600});
  fs::permissions(root / "deep", fs::perms{0710});
  fs::create_symlink("deep/file", root / "link");
  fs::create_hard_link(root / "deep/file", root / "hard");
  for (int i = 0; i < 2000; ++i) {
    Put(root / "deep/er" / std::to_string(i), std::to_string(i));
  }
  Put(root / "large", std::string(300'000, 'l'));
  Put(root / "empty", "");
  Put(root / "sparse", "");
  fs::resize_file(root / "sparse", 64 << 20);
  std::ofstream(root / "sparse", std::ios::in | std::ios::out)
      .seekp(32 << 20)
      .write("data", 4);
}

void CheckTree(const fs::path& root) {
  CHECK(Content(root / "deep/file") == "text");
  CHECK((Info(root / "deep/file").st_mode & 07777) == 0600);
  CHECK((Info(root / "deep").st_mode & 07777) == 0710);
  CHECK(fs::read_symlink(root / "link") == "deep/file");
  CHECK(Info(root / "hard").st_ino == Info(root / "deep/file").st_ino);
  CHECK(Content(root / "deep/er/1999") == "1999");
  CHECK(Content(root / "large") == std::string(300'000, 'l'));
  CHECK(fs::file_size(root / "empty") == 0);
  CHECK(fs::file_size(root / "sparse") == 64 << 20);
  CHECK(Info(root / "sparse").st_blocks < 2048);
  std::string middle(4, ' ');
  std::ifstream(root / "sparse").seekg(32 << 20).read(middle.data(), 4);
  CHECK(middle == "data");
}

TEST_CASE("A tree goes into the guest and comes out again") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const test::TemporaryDirectory dir;
  MakeTree(fs::path(dir.path()) / "from");
  const std::string guest = fs::path(dir.path()) / "guest";
  const absl::Status in =
      CopyIn(agent.client(), fs::path(dir.path()) / "from", guest, {}, {});
  INFO(in.ToString());
  REQUIRE(in.ok());
  CheckTree(guest);
  CHECK(Info(guest + "/large").st_mtim.tv_sec ==
        Info(fs::path(dir.path()) / "from/large").st_mtim.tv_sec);
  const absl::Status out =
      CopyOut(agent.client(), guest, fs::path(dir.path()) / "back", {}, {});
  INFO(out.ToString());
  REQUIRE(out.ok());
  CheckTree(fs::path(dir.path()) / "back");
}

TEST_CASE("A single file is copied under the name that is asked for") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const test::TemporaryDirectory dir;
  Put(fs::path(dir.path()) / "from", "text");
  const std::string guest = fs::path(dir.path()) / "guest";
  CHECK(CopyIn(agent.client(), fs::path(dir.path()) / "from", guest, {}, {})
            .ok());
  CHECK(CopyOut(agent.client(), guest, fs::path(dir.path()) / "back", {}, {})
            .ok());
  CHECK(Content(fs::path(dir.path()) / "back") == "text");
}

TEST_CASE("Copies stop at their limits and at what is missing") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const test::TemporaryDirectory dir;
  MakeTree(fs::path(dir.path()) / "from");
  const std::string from = fs::path(dir.path()) / "from";
  const fs::path to = fs::path(dir.path()) / "to";
  const TreeLimits few{.max_files = 10};
  const TreeLimits small{.max_bytes = 1000};
  CHECK(CopyIn(agent.client(), from, to, few, {}).code() ==
        absl::StatusCode::kOutOfRange);
  CHECK(CopyIn(agent.client(), from, to, small, {}).code() ==
        absl::StatusCode::kOutOfRange);
  CHECK(CopyOut(agent.client(), from, to, few, {}).code() ==
        absl::StatusCode::kOutOfRange);
  CHECK(CopyOut(agent.client(), from, to, small, {}).code() ==
        absl::StatusCode::kOutOfRange);
  CHECK(CopyOut(agent.client(), "/no/such", to, {}, {}).code() ==
        absl::StatusCode::kNotFound);
  CHECK(CopyIn(agent.client(), "/no/such", to, {}, {}).code() ==
        absl::StatusCode::kNotFound);
  CHECK(CopyIn(agent.client(), from, "/no/such/place", {}, {}).code() ==
        absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace catnap::agent
