#include "guest/agent/users.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <string>
#include <vector>

#include "support/temporary_directory.h"

namespace catnap::guest {
namespace {

// Lines that are no users stand between those that are.
constexpr const char* kPasswd =
    "root:x:0:0:root:/root:/bin/sh\n"
    "short:x:7\n"
    "bad:x:minus:1::/:\n"
    "\n"
    "app:x:1000:1001:The app:/home/app:/bin/sh\n";
constexpr const char* kGroup =
    "root:x:0:\n"
    "app:x:1001:\n"
    "video:x:44:other,app\n"
    "audio:x:29:appendix\n";

TEST_CASE("Users are found as container images name them") {
  const test::TemporaryDirectory dir;
  std::ofstream(dir.File("passwd")) << kPasswd;
  std::ofstream(dir.File("group")) << kGroup;
  const auto [spec, uid, gid, home, groups] = GENERATE(
      table<std::string, uid_t, gid_t, std::string, std::vector<gid_t>>({
          {"", 0, 0, "/root", {}},
          {"root", 0, 0, "/root", {}},
          {"app", 1000, 1001, "/home/app", {44}},
          {"1000", 1000, 1001, "/home/app", {44}},
          {"app:video", 1000, 44, "/home/app", {44}},
          {"app:77", 1000, 77, "/home/app", {44}},
          {"4242", 4242, 0, "/", {}},
          {"4242:video", 4242, 44, "/", {}},
      }));
  CAPTURE(spec);
  const auto user = FindUser(spec, dir.File("passwd"), dir.File("group"));
  REQUIRE(user.has_value());
  CHECK(user->uid == uid);
  CHECK(user->gid == gid);
  CHECK(user->home == home);
  CHECK(user->groups == groups);
}

TEST_CASE("Users and groups that are not there are not made up") {
  const test::TemporaryDirectory dir;
  std::ofstream(dir.File("passwd")) << kPasswd;
  std::ofstream(dir.File("group")) << kGroup;
  const std::string spec = GENERATE("nobody", "short", "bad", "app:nogroup",
                                    "4294967295", "-1", "app:");
  CAPTURE(spec);
  CHECK_FALSE(
      FindUser(spec, dir.File("passwd"), dir.File("group")).has_value());
}

}  // namespace
}  // namespace catnap::guest
