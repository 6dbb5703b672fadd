#ifndef CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_
#define CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_

#include <cstdlib>
#include <filesystem>
#include <string>

#include "support/temporary_directory.h"

namespace catnap::test {

// busybox and nothing else: the smallest system that is of use.
inline std::filesystem::path MakeBusyboxRoot(
    const std::filesystem::path& directory) {
  auto root = directory / "root";
  for (const char* name : {"bin", "etc", "tmp", "proc", "sys", "dev", "run"}) {
    std::filesystem::create_directories(root / name);
  }
  std::filesystem::copy("/bin/busybox", root / "bin" / "busybox");
  for (const char* name :
       {"sh", "cat", "nc", "httpd", "sleep", "sync", "wc", "echo", "poweroff",
        "dd", "hostname", "md5sum", "dmesg", "mkdir"}) {
    std::filesystem::create_symlink("busybox", root / "bin" / name);
  }
  return root;
}

// Where files can have holes.
inline std::filesystem::path RoomForFiles(const TemporaryDirectory& directory,
                                          const std::string& name) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  if (std::getenv("CATNAP_EMULATED_HOST") == nullptr) return directory.path();
  auto room = std::filesystem::path("/scratch/ext4") / name;
  std::filesystem::remove_all(room);
  std::filesystem::create_directories(room);
  return room;
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_
