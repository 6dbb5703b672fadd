#include <sys/resource.h>

#include <catch2/catch.hpp>
#include <string>
#include <utility>
#include <vector>

#include "rootfs_test_support.h"
#include "support/lowered_limit.h"
#include "support/tar_writer.h"

namespace catnap::test {
namespace {

using Catch::Matchers::Contains;

// What the program is to say of an archive: the exit code, part of the text.
struct Refusal {
  const char* what;
  std::string tar;
  int code;
  const char* text;
};

std::string Tar(const std::vector<TarMember>& members) {
  TarWriter tar;
  for (const TarMember& member : members) tar.Add(member);
  return tar.Finish();
}

std::string LongTar(const std::string& name) {
  return TarWriter().AddLongName(name).Add({.name = "cut"}).Finish();
}

std::string DamagedHeader() {
  std::string tar = Tar({{.name = "a", .content = "1"}, {.name = "b"}});
  tar[2 * TarWriter::kBlock + 150] ^= 1;  // A digit of b's checksum.
  return tar;
}

std::vector<Refusal> Refusals() {
  const std::string part = std::string(200, 'd') + "/";
  std::string deep;
  while (deep.size() < 4096) deep += part;
  return {
      {"a way up", Tar({{.name = "a/../../etc/passwd"}}), 3, "a \"..\""},
      {"a way up in a link's target",
       Tar({{.name = "a"}, {.name = "b", .type = '1', .link = "../a"}}), 3,
       "does not come before"},
      {"a path through a symbolic link",
       Tar({{.name = "link", .type = '2', .link = "/etc"},
            {.name = "link/passwd"}}),
       3, "link/passwd: the path goes through a symbolic link"},
      {"a path through a file", Tar({{.name = "a"}, {.name = "a/b"}}), 3,
       "a/b: the path goes through something that is no directory"},
      {"a hard link to nothing",
       Tar({{.name = "a", .type = '1', .link = "nothing"}}), 3,
       "a: link to nothing"},
      {"a hard link to what comes later",
       Tar({{.name = "a", .type = '1', .link = "b"}, {.name = "b"}}), 3,
       "does not come before"},
      {"a hard link to a directory",
       Tar({{.name = "d", .type = '5'},
            {.name = "d/again", .type = '1', .link = "d"}}),
       3, "a hard link to a directory"},
      {"a file in place of a full directory",
       Tar({{.name = "d/file"}, {.name = "d"}}), 3,
       "d: it was a directory with entries"},
      {"a file in place of the root", Tar({{.name = "./."}}), 3,
       "the root must be a directory"},
      {"a link in place of lost+found",
       Tar({{.name = "lost+found", .type = '2', .link = "/tmp"}}), 3,
       "lost+found must be a directory"},
      {"a name of 256 bytes", LongTar(std::string(256, 'n')), 3,
       "a name of 256 bytes"},
      {"a path without end", LongTar(deep), 3, "must have at most 4095"},
      {"an owner that is none",
       Tar({{.name = "a", .pax = {{"uid", "4294967295"}}}}), 3, "a: owner"},
      {"a device that Linux has not",
       Tar({{.name = "a", .type = '3', .major = 5000}}), 3, "5000:0"},
      {"attributes larger than a block",
       Tar({{.name = "a",
             .pax = {{"SCHILY.xattr.user.a", std::string(3000, 'x')},
                     {"SCHILY.xattr.user.b", std::string(3000, 'x')}}}}),
       3, "a: write extended attributes"},
      {"an access list that is none",
       Tar({{.name = "a",
             .pax = {{"SCHILY.xattr.system.posix_acl_access", "rubbish"}}}}),
       3, "access control list"},
      {"an access list of names only",
       Tar({{.name = "a",
             .pax = {{"SCHILY.acl.access",
                      "user::rwx,user:joe:r-x,group::r-x,mask::r-x,other::--"
                      "-"}}}}),
       3, "names without numbers"},
      {"a file cut off",
       TarWriter().Add({.name = "a", .size = 100'000}).bytes(), 6, "a: its"},
      {"an archive cut off between files",
       TarWriter().Add({.name = "a", .content = "1"}).bytes(), 6, "no end"},
      {"a damaged header", DamagedHeader(), 6, "the archive"},
      {"an empty file", "", 6, "the archive"},
      {"no archive", std::string(10'000, 'x'), 6, "the archive"},
  };
}

TEST_CASE("what an archive must not have ends in one line and no image") {
  const auto refusal = GENERATE(from_range(Refusals()));
  CAPTURE(refusal.what);
  RootfsRun run;
  CHECK(run.RunTar(refusal.tar) == refusal.code);
  CHECK_THAT(run.errors(), Contains(refusal.text));
  CHECK(run.errors().find('\n') == run.errors().size() - 1);
  CHECK_FALSE(run.has_image());
}

TEST_CASE("control characters of names are not shown") {
  RootfsRun run;
  REQUIRE(run.RunTar(Tar({{.name = "a\n\x1b[31m/../b"}})) == 3);
  CHECK(run.errors().find('\n') == run.errors().size() - 1);
  CHECK(run.errors().find('\x1b') == std::string::npos);
}

TEST_CASE("more content than fits or is allowed is refused") {
  RootfsRun run;
  const std::string tar =
      Tar({{.name = "large", .content = std::string(20 << 20, 'x')}});
  CHECK(run.RunTar(tar, 16 * kMiB) == 4);
  CHECK_THAT(run.errors(), Contains("large: take blocks") &&
                               Contains("16777216 bytes is full"));
  CHECK(run.RunTar(tar, 64 * kMiB, {"--max-bytes", "20971519"}) == 4);
  CHECK_THAT(run.errors(), Contains("large: more than 20971519 bytes"));
  CHECK(run.RunTar(tar, 64 * kMiB, {"--max-bytes", "20971520"}) == 0);
}

TEST_CASE("more files than fit or are allowed are refused") {
  RootfsRun run;
  const std::string two = Tar({{.name = "made/a"}, {.name = "made/b"}});
  CHECK(run.RunTar(two, 64 * kMiB, {"--max-files", "3"}) == 0);
  // The parent counts, or a long path would be a thousand for one.
  CHECK(run.RunTar(two, 64 * kMiB, {"--max-files", "2"}) == 4);
  CHECK_THAT(run.errors(), Contains("made/b: more than 2 files"));
  // A file that comes again and again is no way around the limit.
  const std::string same = Tar({{.name = "a"}, {.name = "a"}, {.name = "a"}});
  CHECK(run.RunTar(same, 64 * kMiB, {"--max-files", "2"}) == 4);
  std::vector<TarMember> many(2000);
  for (size_t i = 0; i < many.size(); ++i) many[i].name = std::to_string(i);
  CHECK(run.RunTar(Tar(many), 16 * kMiB, {"--max-files", "5000"}) == 4);
  CHECK_THAT(run.errors(), Contains("inodes"));
}

TEST_CASE("a limit of file sizes is an error like others") {
  const LoweredLimit limit(RLIMIT_FSIZE, 32 << 20);
  RootfsRun run;
  CHECK(run.RunTar(Tar({{.name = "a"}}), 64 * kMiB) == 4);
  CHECK_THAT(run.errors(), Contains("RLIMIT_FSIZE"));
  CHECK_FALSE(run.has_image());
}

TEST_CASE("a file of very many pieces is sound") {
  RootfsRun run;
  constexpr size_t kPieces = 3000;  // More than one block of extents has.
  std::string map = std::to_string(kPieces) + "\n";
  std::string data;
  for (size_t i = 0; i < kPieces; ++i) {
    map += std::to_string(i * 8192) + "\n512\n";
    data += std::string(512, static_cast<char>('a' + i % 26));
  }
  map.resize((map.size() + 511) / 512 * 512);
  const uint64_t size = kPieces * 8192;
  REQUIRE(
      run.RunTar(Tar({{.name = "pieces",
                       .content = map + data,
                       .pax = {{"GNU.sparse.major", "1"},
                               {"GNU.sparse.minor", "0"},
                               {"GNU.sparse.name", "pieces"},
                               {"GNU.sparse.realsize", std::to_string(size)}}},
                      {.name = "again", .content = "x"},
                      {.name = "again", .content = "y"}})) == 0);
  CHECK(run.image().Check().empty());
  const std::string content =
      run.image().Content("pieces", run.folder().File("dump"));
  REQUIRE(content.size() == size);
  CHECK(content[(kPieces - 1) * 8192] == 'a' + (kPieces - 1) % 26);
  CHECK(content[(kPieces - 1) * 8192 + 512] == '\0');
}

TEST_CASE("a file of many pieces that is replaced gives all of them back") {
  RootfsRun run;
  std::string map = "500\n";
  std::string data;
  for (int i = 0; i < 500; ++i) {
    map += std::to_string(i * 8192) + "\n512\n";
    data += std::string(512, 'x');
  }
  map.resize((map.size() + 511) / 512 * 512);
  const TarMember pieces{.name = "pieces",
                         .content = map + data,
                         .pax = {{"GNU.sparse.major", "1"},
                                 {"GNU.sparse.minor", "0"},
                                 {"GNU.sparse.name", "pieces"},
                                 {"GNU.sparse.realsize", "4096000"}}};
  // 2 MB each: together more than the disk.
  REQUIRE(run.RunTar(Tar(std::vector<TarMember>(20, pieces)), 16 * kMiB) == 0);
  CHECK(run.image().Check().empty());
}

TEST_CASE("wrong words on the command line end with 2") {
  RootfsRun run;
  const std::string image = run.image_path();
  const auto words =
      GENERATE_COPY(from_range(std::vector<std::vector<std::string>>{
          {},
          {"--tar"},
          {"--output", image, "--tar", "x"},
          {"--output", image, "--bytes", "16777216"},
          {"--output", image, "--bytes", "16777215", "--tar", "x"},
          {"--output", image, "--bytes", "1099511631872", "--tar", "x"},
          {"--output", image, "--bytes", "-1", "--tar", "x"},
          {"--output", image, "--bytes", "16777216", "--tar", "x",
           "--directory", "x"},
          {"--output", image, "--bytes", "16777216", "--tar", "x", "--uuid",
           "1"},
          {"--output", image, "--bytes", "16777216", "--tar", "x", "--owner",
           "me"},
          {"--teleport", "x"}}));
  CHECK(run.Run(words) == 2);
  CHECK_FALSE(run.has_image());
}

TEST_CASE("a file that is there already is not touched") {
  RootfsRun run;
  REQUIRE(run.RunTar(Tar({{.name = "a"}})) == 0);
  CHECK(run.Run({"--output", run.image_path(), "--bytes", "16777216", "--tar",
                 run.folder().File("source.tar")}) == 5);
  CHECK_THAT(run.errors(), Contains("File exists"));
  CHECK(run.image().Check().empty());
}

}  // namespace
}  // namespace catnap::test
