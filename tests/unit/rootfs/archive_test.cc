#include <archive.h>
#include <archive_entry.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "rootfs_test_support.h"
#include "support/tar_writer.h"

namespace catnap::test {
namespace {

using Catch::Matchers::Contains;

std::string Pattern(size_t bytes) {
  std::string text(bytes, '\0');
  uint32_t state = 1;
  for (char& c : text) {
    state = state * 1664525 + 1013904223;
    c = static_cast<char>(state >> 24);
  }
  return text;
}

// `bytes` as one of libarchive's filters writes them.
std::string Compressed(const std::string& bytes, int (*add)(archive*)) {
  archive* writer = archive_write_new();
  std::string result(bytes.size() + 65536, '\0');
  size_t used = 0;
  add(writer);
  archive_write_set_format_raw(writer);
  archive_write_set_bytes_in_last_block(writer, 1);
  archive_write_open_memory(writer, result.data(), result.size(), &used);
  archive_entry* entry = archive_entry_new();
  archive_entry_set_filetype(entry, AE_IFREG);
  archive_write_header(writer, entry);
  archive_write_data(writer, bytes.data(), bytes.size());
  archive_entry_free(entry);
  archive_write_close(writer);
  archive_write_free(writer);
  return result.substr(0, used);
}

TEST_CASE("a tar's files come with content, modes, owners and times") {
  RootfsRun run;
  const std::string content = Pattern(3'000'001);  // Some blocks and a rest.
  TarWriter tar;
  tar.Add({.name = "./", .type = '5', .mode = 0711})
      .Add({.name = "./bin/", .type = '5', .mode = 01777, .uid = 7})
      .Add({.name = "./bin/tool",
            .content = content,
            .mode = 06755,
            .uid = 70'000,
            .gid = 80'000})
      .Add({.name = "./empty"});
  REQUIRE(run.RunTar(tar.Finish()) == 0);
  CHECK(run.image().Check().empty());
  CHECK(run.image().Content("/bin/tool", run.folder().File("dump")) == content);
  CHECK_THAT(run.image().Stat("/"), Contains("Mode:  0711"));
  CHECK_THAT(run.image().Stat("/bin"),
             Contains("Mode:  01777") && Contains("User:     7   Group:"));
  CHECK_THAT(run.image().Stat("/bin/tool"),
             Contains("Mode:  06755") && Contains("User: 70000") &&
                 Contains("Group: 80000") && Contains("Size: 3000001") &&
                 Contains("mtime: 0x3b9aca00:00000000"));
  CHECK_THAT(run.image().Stat("/empty"), Contains("Size: 0"));
  CHECK(run.image().Has("/lost+found"));
}

TEST_CASE("a tar's links, FIFOs and devices come as they are") {
  RootfsRun run;
  const std::string far(90, 'x');  // Does not fit into an inode.
  TarWriter tar;
  tar.Add({.name = "file", .content = "abc"})
      .Add({.name = "other", .type = '1', .link = "./file"})
      .Add({.name = "near", .type = '2', .link = "../../etc/passwd"})
      .Add({.name = "far", .type = '2', .link = far})
      .Add({.name = "pipe", .type = '6'})
      .Add({.name = "tty", .type = '3', .major = 5, .minor = 1})
      .Add({.name = "disk", .type = '4', .major = 259, .minor = 70'000});
  REQUIRE(run.RunTar(tar.Finish()) == 0);
  CHECK(run.image().Check().empty());
  CHECK_THAT(run.image().Stat("other"), Contains("Links: 2"));
  CHECK(run.image().Content("other", run.folder().File("dump")) == "abc");
  CHECK_THAT(run.image().Stat("near"),
             Contains("Fast link dest: \"../../etc/passwd\""));
  CHECK(run.image().Content("far", run.folder().File("dump")) == far);
  CHECK_THAT(run.image().Stat("pipe"), Contains("Type: FIFO"));
  CHECK_THAT(run.image().Stat("tty"),
             Contains("Type: character special") && Contains("05:01"));
  CHECK_THAT(run.image().Stat("disk"),
             Contains("Type: block special") && Contains("259:70000"));
}

TEST_CASE("names longer than a header come whole") {
  RootfsRun run;
  const std::string name(255, 'n');
  const std::string path = std::string(200, 'd') + "/" + name;
  TarWriter tar;
  tar.AddLongName(path + "gnu").Add({.name = "cut", .content = "1"});
  REQUIRE(run.RunTar(tar.Finish()) == 3);  // 258 bytes: not a name of Linux.
  CHECK_THAT(run.errors(), Contains("a name of 258 bytes"));
  TarWriter good;
  good.AddLongName(path)
      .Add({.name = "cut", .content = "1"})
      .Add({.name = "cut",
            .content = "2",
            .pax = {{"path", "p/\xc3\xa9" + name.substr(2)}}});
  REQUIRE(run.RunTar(good.Finish()) == 0);
  CHECK(run.image().Check().empty());
  CHECK(run.image().Content(path, run.folder().File("dump")) == "1");
  CHECK(run.image().Content("p/\xc3\xa9" + name.substr(2),
                            run.folder().File("dump")) == "2");
}

TEST_CASE("extended attributes, capabilities and access lists come along") {
  RootfsRun run;
  const std::string capability(
      "\x01\0\0\x02\x00\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
  TarWriter tar;
  tar.Add({.name = "ping",
           .pax = {{"SCHILY.xattr.security.capability", capability},
                   {"SCHILY.xattr.user.color", "blue"},
                   {"SCHILY.xattr.security.selinux", "left_out"}}})
      .Add({.name = "large",
            .pax = {{"SCHILY.xattr.user.large", std::string(3000, 'x')}}})
      .Add(
          {.name = "shared",
           .type = '5',
           .pax = {{"SCHILY.acl.access",
                    "user::rwx,user:joe:r-x:1000,group::r-x,mask::r-x,other::"
                    "---"},
                   {"SCHILY.acl.default", "user::rwx,group::r-x,other::---"}}});
  REQUIRE(run.RunTar(tar.Finish()) == 0);
  CHECK(run.image().Check().empty());
  const std::string ping = run.image().Stat("ping");
  CHECK_THAT(ping, Contains("security.capability (20)") &&
                       Contains("user.color (4) = \"blue\""));
  CHECK_THAT(ping, !Contains("selinux"));
  CHECK_THAT(run.image().Stat("large"), Contains("user.large (3000)"));
  CHECK_THAT(run.image().Stat("shared"),
             Contains("system.posix_acl_access (28)") &&
                 Contains("system.posix_acl_default (16)"));
}

TEST_CASE("times before 1970 and after 2038 come with their nanoseconds") {
  RootfsRun run;
  TarWriter tar;
  tar.Add({.name = "old", .pax = {{"mtime", "-2"}}})
      .Add({.name = "new", .pax = {{"mtime", "5000000000.000000007"}}});
  REQUIRE(run.RunTar(tar.Finish()) == 0);
  CHECK(run.image().Check().empty());
  // Seconds, then nanoseconds times four and two bits more of the seconds.
  CHECK_THAT(run.image().Stat("old"), Contains("mtime: 0xfffffffe:00000000"));
  CHECK_THAT(run.image().Stat("new"), Contains("mtime: 0x2a05f200:0000001d"));
}

TEST_CASE("entries may come in any order, without parents and twice") {
  RootfsRun run;
  TarWriter tar;
  tar.Add({.name = "a/b/c", .content = "first"})
      .Add({.name = "/a/b/", .type = '5', .mode = 0700})
      .Add({.name = "a/b/c", .content = Pattern(100'000)})
      .Add({.name = "a/./b//c", .content = "last"})
      .Add({.name = "becomes", .content = "a file"})
      .Add({.name = "becomes", .type = '2', .link = "link"})
      .Add({.name = "becomes", .type = '5'})
      .Add({.name = "gone", .type = '5'})
      .Add({.name = "gone", .content = "file"})
      .Add({.name = "one", .content = "kept"})
      .Add({.name = "two", .type = '1', .link = "one"})
      .Add({.name = "one", .content = "new"})
      .Add({.name = "two", .type = '1', .link = "two"});
  REQUIRE(run.RunTar(tar.Finish()) == 0);
  CHECK(run.image().Check().empty());
  CHECK_THAT(run.image().Stat("a"), Contains("Mode:  0755"));
  CHECK_THAT(run.image().Stat("a/b"), Contains("Mode:  0700"));
  CHECK(run.image().Content("a/b/c", run.folder().File("dump")) == "last");
  CHECK_THAT(run.image().Stat("becomes"), Contains("Type: directory"));
  CHECK(run.image().Content("gone", run.folder().File("dump")) == "file");
  CHECK(run.image().Content("one", run.folder().File("dump")) == "new");
  CHECK(run.image().Content("two", run.folder().File("dump")) == "kept");
}

TEST_CASE("files that are marked as gone are files like others") {
  RootfsRun run;
  TarWriter tar;
  tar.Add({.name = "etc/.wh.passwd"}).Add({.name = "etc/.wh..wh..opq"});
  REQUIRE(run.RunTar(tar.Finish()) == 0);
  CHECK(run.image().Has("etc/.wh.passwd"));
  CHECK(run.image().Has("etc/.wh..wh..opq"));
}

TEST_CASE("a tar may be compressed with gzip, xz, zstd or bzip2") {
  const auto add =
      GENERATE(archive_write_add_filter_gzip, archive_write_add_filter_xz,
               archive_write_add_filter_zstd, archive_write_add_filter_bzip2);
  RootfsRun run;
  TarWriter tar;
  tar.Add({.name = "file", .content = std::string(100'000, 'z')});
  const std::string whole = Compressed(tar.Finish(), add);
  REQUIRE(run.RunTar(whole) == 0);
  CHECK(run.image().Check().empty());
  CHECK(run.image().Content("file", run.folder().File("dump")) ==
        std::string(100'000, 'z'));
  CHECK(run.RunTar(whole.substr(0, whole.size() - 20)) == 6);
}

TEST_CASE("holes of a tar's file are holes of the image") {
  RootfsRun run;
  // One data block of 512 bytes at each end of 10 MiB.
  const std::string map = "2\n0\n512\n10485248\n512\n";
  TarWriter tar;
  tar.Add({.name = "GNUSparseFile.0/sparse",
           .content = map + std::string(512 - map.size(), '\0') +
                      std::string(512, 'a') + std::string(512, 'b'),
           .pax = {{"GNU.sparse.major", "1"},
                   {"GNU.sparse.minor", "0"},
                   {"GNU.sparse.name", "sparse"},
                   {"GNU.sparse.realsize", "10485760"}}});
  REQUIRE(run.RunTar(tar.Finish()) == 0);
  CHECK(run.image().Check().empty());
  // Two blocks of 4 KiB, counted as 512 bytes.
  CHECK_THAT(run.image().Stat("sparse"),
             Contains("Size: 10485760") && Contains("Blockcount: 16"));
  const std::string content =
      run.image().Content("sparse", run.folder().File("dump"));
  CHECK(content == std::string(512, 'a') +
                       std::string((10 << 20) - 1024, '\0') +
                       std::string(512, 'b'));
}

TEST_CASE("a folder of many names and directories is sound") {
  RootfsRun run;
  TarWriter tar;
  for (size_t i = 0; i < 20'000; ++i) {
    tar.Add({.name = "many/name" + std::to_string(i) + std::string(i % 60, 'x'),
             .type = i % 3 == 0 ? '5' : '0'});
  }
  REQUIRE(run.RunTar(tar.Finish(), 512 * kMiB) == 0);
  CHECK(run.image().Check().empty());
  CHECK(run.image().Has("many/name12345" + std::string(12345 % 60, 'x')));
}

TEST_CASE("the same input with a UUID and a time gives the same image") {
  RootfsRun run;
  TarWriter tar;
  tar.Add(
      {.name = "a/b", .content = "c", .pax = {{"SCHILY.xattr.user.x", "y"}}});
  const std::vector<std::string> fixed = {
      "--uuid", "550e8400-e29b-41d4-a716-446655440000", "--time", "1700000000"};
  const auto build = [&] {
    REQUIRE(run.RunTar(tar.Finish(), 64 * kMiB, fixed) == 0);
    std::ifstream in(run.image_path(), std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(in), {});
  };
  const std::string first = build();
  CHECK(build() == first);
  CHECK_THAT(run.image().Ask("stats"),
             Contains("550e8400-e29b-41d4-a716-446655440000"));
}

TEST_CASE("all files become root's when that is asked for") {
  RootfsRun run;
  TarWriter tar;
  tar.Add({.name = "file", .uid = 1000, .gid = 1000});
  REQUIRE(run.RunTar(tar.Finish(), 64 * kMiB, {"--owner", "root"}) == 0);
  CHECK_THAT(run.image().Stat("file"), Contains("User:     0   Group:     0"));
}

}  // namespace
}  // namespace catnap::test
