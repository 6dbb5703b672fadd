#include "guest/agent/hosts.h"

#include <sys/stat.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <iterator>
#include <string>

#include "support/temporary_directory.h"

namespace catnap::guest {
namespace {

std::string ContentOf(const std::string& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

TEST_CASE("The host's name is added behind what is there, once") {
  const auto [before, after] = GENERATE(table<std::string, std::string>({
      {"1.2.3.4 a\n", "1.2.3.4 a\n127.0.0.2\thost.catnap\n"},
      {"1.2.3.4 a", "1.2.3.4 a\n127.0.0.2\thost.catnap\n"},
      {"# 127.0.0.2 host.catnap\n",
       "# 127.0.0.2 host.catnap\n127.0.0.2\thost.catnap\n"},
      {"host.catnap a\n", "host.catnap a\n127.0.0.2\thost.catnap\n"},
      {"1.2.3.4 my.host.catnap\n",
       "1.2.3.4 my.host.catnap\n127.0.0.2\thost.catnap\n"},
      {"1.2.3.4\ta  host.catnap # ours\r\n",
       "1.2.3.4\ta  host.catnap # ours\r\n"},
      {"",
       "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
       "127.0.0.2\thost.catnap\n"},
  }));
  const test::TemporaryDirectory directory;
  const std::string path = directory.path() + "/hosts";
  std::ofstream(path) << before;
  CHECK(NameTheHost(path));
  CHECK(ContentOf(path) == after);
  CHECK(NameTheHost(path));
  CHECK(ContentOf(path) == after);
}

TEST_CASE("A file of names that is missing is made") {
  const test::TemporaryDirectory directory;
  const std::string path = directory.path() + "/hosts";
  CHECK(NameTheHost(path));
  CHECK_THAT(ContentOf(path), Catch::Contains("127.0.0.2\thost.catnap\n") &&
                                  Catch::Contains("127.0.0.1\tlocalhost\n"));
}

TEST_CASE("What cannot be a file of names is left alone") {
  const test::TemporaryDirectory directory;
  CHECK_FALSE(NameTheHost(directory.path() + "/no/such/hosts"));
  CHECK_FALSE(NameTheHost(directory.path()));
  const std::string pipe = directory.path() + "/pipe";
  REQUIRE(::mkfifo(pipe.c_str(), 0644) == 0);
  CHECK_FALSE(NameTheHost(pipe));  // And does not wait for a reader.
  const std::string large = directory.path() + "/large";
  std::ofstream(large) << std::string(2 << 20, '\n');
  CHECK_FALSE(NameTheHost(large));
  CHECK(ContentOf(large).size() == 2 << 20);
}

}  // namespace
}  // namespace catnap::guest
