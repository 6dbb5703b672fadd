#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "base/unique_fd.h"
#include "rootfs_test_support.h"
#include "support/lowered_limit.h"

namespace catnap::test {
namespace {

using Catch::Matchers::Contains;

void Write(const std::string& path, const std::string& content) {
  std::ofstream(path, std::ios::binary) << content;
}

std::string Number(uint32_t id) {
  std::string text = std::to_string(id);
  return std::string(5 - text.size(), ' ') + text;
}

TEST_CASE("a directory's files come with content, modes, times and links") {
  RootfsRun run;
  const std::string root = run.folder().File("root");
  std::filesystem::create_directories(root + "/usr/bin");
  Write(root + "/usr/bin/tool", std::string(2'000'000, 't'));
  REQUIRE(::chmod((root + "/usr/bin/tool").c_str(), 04751) == 0);
  const std::array<timespec, 2> times = {{{1, 0}, {1'000'000'000, 5}}};
  REQUIRE(::utimensat(AT_FDCWD, (root + "/usr/bin/tool").c_str(), times.data(),
                      0) == 0);
  std::filesystem::create_hard_link(root + "/usr/bin/tool",
                                    root + "/usr/again");
  std::filesystem::create_symlink("/etc", root + "/etc");
  REQUIRE(::mkfifo((root + "/pipe").c_str(), 0640) == 0);
  const bool has_attributes =
      ::setxattr((root + "/usr/again").c_str(), "user.color", "red", 3, 0) == 0;

  REQUIRE(run.RunDirectory(root) == 0);
  CHECK(run.image().Check().empty());
  CHECK(run.image().Content("usr/again", run.folder().File("dump")) ==
        std::string(2'000'000, 't'));
  const std::string tool = run.image().Stat("usr/bin/tool");
  CHECK_THAT(tool, Contains("Mode:  04751") && Contains("Links: 2") &&
                       Contains("mtime: 0x3b9aca00:00000014"));
  CHECK((tool.find("user.color (3) = \"red\"") != std::string::npos) ==
        has_attributes);
  CHECK_THAT(run.image().Stat("etc"), Contains("Fast link dest: \"/etc\""));
  CHECK_THAT(run.image().Stat("pipe"), Contains("Type: FIFO"));
}

TEST_CASE("what the caller owns is root's inside, unless numbers are kept") {
  RootfsRun run;
  const std::string root = run.folder().File("root");
  std::filesystem::create_directory(root);
  Write(root + "/file", "x");
  const std::string mine = "User: " + Number(::geteuid());
  REQUIRE(run.RunDirectory(root) == 0);
  CHECK_THAT(run.image().Stat("file"), Contains("User:     0   Group:     0"));
  REQUIRE(run.RunDirectory(root, 64 * kMiB, {"--owner", "keep"}) == 0);
  CHECK_THAT(run.image().Stat("file"), Contains(mine));
  REQUIRE(run.RunDirectory(root, 64 * kMiB, {"--owner", "root"}) == 0);
  CHECK_THAT(run.image().Stat("file"), Contains("User:     0   Group:     0"));
}

TEST_CASE("holes of a directory's file are holes of the image") {
  RootfsRun run;
  const std::string root = run.folder().File("root");
  std::filesystem::create_directory(root);
  Write(root + "/sparse", "a");
  std::filesystem::resize_file(root + "/sparse", 1 << 30);
  {
    std::ofstream out(root + "/sparse", std::ios::in | std::ios::binary);
    out.seekp(512 << 20);
    out << "b";
  }
  REQUIRE(run.RunDirectory(root) == 0);
  CHECK(run.image().Check().empty());
  CHECK_THAT(run.image().Stat("sparse"),
             Contains("Size: 1073741824") && Contains("Blockcount: 16"));
}

TEST_CASE("sockets are left out") {
  RootfsRun run;
  const std::string root = run.folder().File("root");
  std::filesystem::create_directory(root);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = root + "/socket";
  REQUIRE(path.size() < sizeof(address.sun_path));
  std::memcpy(address.sun_path, path.data(), path.size());
  const base::UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address),
                 sizeof(address)) == 0);
  REQUIRE(run.RunDirectory(root) == 0);
  CHECK(run.image().Check().empty());
  CHECK_FALSE(run.image().Has("socket"));
}

TEST_CASE("a tree deeper than the process has descriptors comes whole") {
  RootfsRun run;
  const std::string root = run.folder().File("root");
  std::string inside = "d";
  for (int i = 1; i < 200; ++i) inside += "/d";
  std::filesystem::create_directories(root + "/" + inside);
  const LoweredLimit limit(RLIMIT_NOFILE, 64);
  REQUIRE(run.RunDirectory(root) == 0);
  CHECK(run.image().Check().empty());
  CHECK(run.image().Has(inside));
}

TEST_CASE("a source that is not there or is none is named") {
  RootfsRun run;
  CHECK(run.RunDirectory(run.folder().File("nothing")) == 3);
  CHECK_THAT(run.errors(), Contains("nothing: No such file"));
  Write(run.folder().File("file"), "x");
  CHECK(run.RunDirectory(run.folder().File("file")) == 3);
  CHECK_THAT(run.errors(), Contains("file: Not a directory"));
  CHECK_FALSE(run.has_image());
}

TEST_CASE("an unreadable file of an ordinary user is named") {
  RootfsRun run;
  const std::string root = run.folder().File("root");
  std::filesystem::create_directories(root + "/etc");
  Write(root + "/etc/shadow", "x");
  REQUIRE(::chmod((root + "/etc/shadow").c_str(), 0) == 0);
  // Root reads it all the same.
  const int expected = ::geteuid() == 0 ? 0 : 3;
  CHECK(run.RunDirectory(root) == expected);
  CHECK((run.errors().find("etc/shadow: open: Permission denied") !=
         std::string::npos) == (expected == 3));
}

}  // namespace
}  // namespace catnap::test
