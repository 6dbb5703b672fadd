#ifndef CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_
#define CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_

#include <cstdlib>
#include <filesystem>

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

// A fresh directory where files can have holes. Tests run side by side: each
// has its own.
class RoomForFiles {
 public:
  const std::filesystem::path& path() const { return path_; }

 private:
  static std::filesystem::path Parent() {
    // NOLINTNEXTLINE(concurrency-mt-unsafe)
    return std::getenv("CATNAP_EMULATED_HOST") == nullptr
               ? std::filesystem::temp_directory_path()
               : "/scratch/ext4";
  }

  const TemporaryDirectory directory_{Parent()};
  const std::filesystem::path path_ = directory_.path();
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_
