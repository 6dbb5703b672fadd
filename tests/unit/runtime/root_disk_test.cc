#include "runtime/root_disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "base/unique_fd.h"
#include "support/ext4_image_file.h"
#include "support/lowered_limit.h"
#include "support/tar_writer.h"
#include "support/temporary_directory.h"

namespace catnap::runtime {
namespace {

using absl::StatusCode;
using Catch::Matchers::Contains;
using test::Ext4ImageFile;
using test::TarWriter;
using test::TemporaryDirectory;

constexpr uint64_t kGiB = uint64_t{1} << 30;

// A variable of the environment, while it lives. (No test has threads then.)
class Variable {
 public:
  Variable(const char* name, const std::string& value) : name_(name) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe)
    ::setenv(name_, value.c_str(), 1);
  }
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  ~Variable() { ::unsetenv(name_); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  const char* name_;
};

// Says where the programs are.
class LibexecDirectory : public Variable {
 public:
  explicit LibexecDirectory(const std::string& path)
      : Variable("CATNAP_LIBEXEC_DIR", path) {}
};

// A folder with a source, and one that only the image should appear in.
struct Place {
  Place() { std::filesystem::create_directory(out); }

  RootSource Tar(const std::string& bytes) const {
    std::ofstream(folder.File("tar"), std::ios::binary) << bytes;
    return {.kind = RootSource::Kind::kTar, .path = folder.File("tar")};
  }
  RootSource GoodTar() const {
    return Tar(TarWriter().Add({.name = "etc/motd", .content = "hi"}).Finish());
  }
  // A program in the place of catnap-rootfs.
  std::string Fake(const std::string& script) const {
    const std::string path = folder.File("catnap-rootfs");
    std::ofstream(path) << "#!/bin/sh\n" << script;
    ::chmod(path.c_str(), 0755);
    return folder.path();
  }
  size_t FilesOut() const {
    return static_cast<size_t>(
        std::distance(std::filesystem::directory_iterator(out), {}));
  }

  TemporaryDirectory folder;
  std::string out = folder.File("out");
  std::string image = out + "/disk";
};

std::string Message(const absl::Status& status) { return status.ToString(); }

// No child of this process is left, not even its end.
bool NoChild() { return ::waitpid(-1, nullptr, WNOHANG) < 0; }

TEST_CASE("a root disk is made from a tar and takes the place of a file") {
  const LibexecDirectory tool(CATNAP_BUILT_LIBEXEC_DIR);
  const Place place;
  std::ofstream(place.image) << "before";
  const absl::Status status = BuildRootDisk(place.GoodTar(), place.image, kGiB);
  REQUIRE(Message(status) == "OK");
  CHECK(std::filesystem::file_size(place.image) == kGiB);
  CHECK(place.FilesOut() == 1);
  const Ext4ImageFile image(place.image);
  CHECK(image.Check().empty());
  CHECK(image.Content("etc/motd", place.folder.File("dump")) == "hi");
  struct stat info {};
  REQUIRE(::stat(place.image.c_str(), &info) == 0);
  CHECK(info.st_blocks * 512 < 2 << 20);  // Thin.
  CHECK(NoChild());
}

TEST_CASE("a root disk is made from a directory of the caller") {
  const LibexecDirectory tool(CATNAP_BUILT_LIBEXEC_DIR);
  const Place place;
  const std::string root = place.folder.File("root");
  std::filesystem::create_directories(root + "/etc");
  std::ofstream(root + "/etc/motd") << "hi";
  REQUIRE(Message(BuildRootDisk({.path = root}, place.image, kGiB)) == "OK");
  const Ext4ImageFile image(place.image);
  CHECK(image.Check().empty());
  CHECK_THAT(image.Stat("etc/motd"), Contains("User:     0   Group:     0"));
  REQUIRE(
      Message(BuildRootDisk({.path = root, .owner = RootSource::Owner::kKeep},
                            place.image, kGiB)) == "OK");
  CHECK_THAT(image.Stat("etc/motd"),
             Contains(fmt::format("User: {:5}", ::geteuid())));
}

TEST_CASE("what is wrong with the source has a code and leaves no file") {
  const LibexecDirectory tool(CATNAP_BUILT_LIBEXEC_DIR);
  const Place place;
  const RootSource good = place.GoodTar();
  const auto build = [&place](const RootSource& source,
                              const RootLimits& limits = {}) {
    return BuildRootDisk(source, place.image, kGiB, limits);
  };
  absl::Status status = build({.path = place.folder.File("nothing")});
  CHECK(status.code() == StatusCode::kNotFound);
  CHECK_THAT(Message(status), Contains("nothing"));
  status = build({.path = good.path});
  CHECK(status.code() == StatusCode::kInvalidArgument);
  CHECK_THAT(Message(status), Contains("Not a directory"));
  status = build(good, {.max_files = 1});
  CHECK(status.code() == StatusCode::kResourceExhausted);
  CHECK_THAT(Message(status), Contains("more than 1 files"));
  status = build(good, {.max_bytes = 1});
  CHECK(status.code() == StatusCode::kResourceExhausted);
  status = build(place.Tar(TarWriter().Add({.name = "../a"}).Finish()));
  CHECK(status.code() == StatusCode::kInvalidArgument);
  CHECK_THAT(Message(status), Contains("../a: the path has a"));
  status = build(place.Tar("rubbish"));
  CHECK(status.code() == StatusCode::kDataLoss);
  CHECK(place.FilesOut() == 0);
  CHECK(NoChild());
}

TEST_CASE("sizes of disks have limits") {
  const LibexecDirectory tool(CATNAP_BUILT_LIBEXEC_DIR);
  const Place place;
  const RootSource good = place.GoodTar();
  const uint64_t bytes =
      GENERATE(uint64_t{0}, kGiB - 4096, kGiB + 1, 1024 * kGiB + 4096);
  const absl::Status status = BuildRootDisk(good, place.image, bytes);
  CHECK(status.code() == StatusCode::kInvalidArgument);
  CHECK_THAT(Message(status), Contains("disk_bytes"));
}

TEST_CASE("a folder that is not there is not found") {
  const LibexecDirectory tool(CATNAP_BUILT_LIBEXEC_DIR);
  const Place place;
  CHECK(BuildRootDisk(place.GoodTar(), place.out + "/no/disk", kGiB).code() ==
        StatusCode::kNotFound);
}

TEST_CASE("without the program the error says what to install") {
  const Place place;
  const LibexecDirectory tool(place.out);
  const absl::Status status = BuildRootDisk(place.GoodTar(), place.image, kGiB);
  CHECK(status.code() == StatusCode::kFailedPrecondition);
  CHECK_THAT(Message(status), Contains("CATNAP_ROOTFS_TOOL=ON") &&
                                  Contains("CATNAP_LIBEXEC_DIR"));
}

TEST_CASE("a program that is none, or another, is told so") {
  const Place place;
  const RootSource good = place.GoodTar();
  const LibexecDirectory tool(place.Fake("exit 0\n"));
  CHECK(BuildRootDisk(good, place.image, kGiB).code() ==
        StatusCode::kFailedPrecondition);
  std::ofstream(place.folder.File("catnap-rootfs")) << "no script";
  CHECK(BuildRootDisk(good, place.image, kGiB).code() ==
        StatusCode::kFailedPrecondition);
  CHECK(place.FilesOut() == 0);
}

TEST_CASE("a program that is killed leaves nothing behind") {
  const Place place;
  const LibexecDirectory tool(place.Fake("kill -9 $$\n"));
  const absl::Status status = BuildRootDisk(place.GoodTar(), place.image, kGiB);
  CHECK(status.code() == StatusCode::kUnavailable);
  CHECK(place.FilesOut() == 0);
  CHECK(NoChild());
}

TEST_CASE("a deadline ends the program, also one that writes without end") {
  const Place place;
  const LibexecDirectory tool(place.Fake(GENERATE(
      "exec sleep 1000\n", "while :; do echo yyyyyyyyyyyyyyyyyyy >&2; done\n",
      // Whoever closes its pipes cannot stay either.
      "exec >&- 2>&-; sleep 1000\n")));
  const absl::Status status =
      BuildRootDisk(place.GoodTar(), place.image, kGiB, {},
                    {.deadline = std::chrono::steady_clock::now() +
                                 std::chrono::milliseconds(200)});
  CHECK((status.code() == StatusCode::kDeadlineExceeded ||
         status.code() == StatusCode::kUnavailable));
  CHECK(place.FilesOut() == 0);
  CHECK(NoChild());
}

TEST_CASE("a stop from another thread ends the program") {
  const Place place;
  const LibexecDirectory tool(place.Fake(
      "echo started >" + place.folder.File("started") + "\nexec sleep 1000\n"));
  const RootSource good = place.GoodTar();
  std::stop_source stop;
  std::thread stopper([&] {
    while (!std::filesystem::exists(place.folder.File("started"))) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    stop.request_stop();
  });
  const absl::Status status =
      BuildRootDisk(good, place.image, kGiB, {}, {.stop = stop.get_token()});
  stopper.join();
  CHECK(status.code() == StatusCode::kCancelled);
  CHECK(place.FilesOut() == 0);
  CHECK(NoChild());
  // And before it is started.
  CHECK(BuildRootDisk(good, place.image, kGiB, {}, {.stop = stop.get_token()})
            .code() == StatusCode::kCancelled);
}

TEST_CASE("the program gets nothing of the host program") {
  const Place place;
  const LibexecDirectory tool(place.Fake(
      "echo \"$SECRET\" $(ls /proc/$$/fd) >&2; kill -TERM $$; exit 3\n"));
  const Variable secret("SECRET", "password");
  // Not close-on-exec, as of a host program that does not care.
  const base::UniqueFd leak(::fcntl(STDIN_FILENO, F_DUPFD, 77));
  sigset_t blocked;
  sigset_t before;
  ::sigemptyset(&blocked);
  ::sigaddset(&blocked, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &blocked, &before);
  const absl::Status status = BuildRootDisk(place.GoodTar(), place.image, kGiB);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  // Ended by SIGTERM: it did not inherit that this is blocked.
  CHECK(status.code() == StatusCode::kUnavailable);
  CHECK_THAT(Message(status), Contains(" 0 1 10 2 3 4") || Contains(" 0 1 2"));
  CHECK_THAT(Message(status), !Contains("password") && !Contains("77"));
}

TEST_CASE("a host program that ignores its children's ends gets its disk") {
  const LibexecDirectory tool(CATNAP_BUILT_LIBEXEC_DIR);
  const Place place;
  const RootSource good = place.GoodTar();
  const auto before = std::signal(SIGCHLD, SIG_IGN);
  const absl::Status done = BuildRootDisk(good, place.image, kGiB);
  const absl::Status failed =
      BuildRootDisk(place.Tar("rubbish"), place.image, kGiB);
  std::signal(SIGCHLD, before);
  CHECK(Message(done) == "OK");
  CHECK(failed.code() == StatusCode::kUnavailable);
  CHECK_THAT(Message(failed), Contains("Unrecognized archive format"));
}

TEST_CASE("at the limit of descriptors nothing is left open or behind") {
  const LibexecDirectory tool(CATNAP_BUILT_LIBEXEC_DIR);
  const Place place;
  const RootSource good = place.GoodTar();
  const auto count = [] {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"),
                         {});
  };
  const auto open = count();
  for (rlim_t room = 0; room < 16; ++room) {
    const test::LoweredLimit limit(RLIMIT_NOFILE,
                                   static_cast<rlim_t>(open) + room);
    const absl::Status status = BuildRootDisk(good, place.image, kGiB);
    CAPTURE(Message(status), room);
    CHECK((status.ok() || status.code() == StatusCode::kResourceExhausted));
  }
  CHECK(count() == open);
  CHECK(NoChild());
}

}  // namespace
}  // namespace catnap::runtime
