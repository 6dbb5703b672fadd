#ifndef CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_
#define CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_

#include <cstdlib>
#include <filesystem>
#include <system_error>

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

// A fresh directory where files can have holes, removed with its content. Tests
// run side by side: each has its own.
class RoomForFiles {
 public:
  RoomForFiles() : room_(directory_.path()) {
    // NOLINTNEXTLINE(concurrency-mt-unsafe)
    if (std::getenv("CATNAP_EMULATED_HOST") == nullptr) return;
    room_ = "/scratch/ext4" / room_.filename();
    std::filesystem::create_directories(room_);
  }
  RoomForFiles(const RoomForFiles&) = delete;
  RoomForFiles& operator=(const RoomForFiles&) = delete;
  ~RoomForFiles() {
    std::error_code ignored;
    std::filesystem::remove_all(room_, ignored);
  }

  const std::filesystem::path& path() const { return room_; }

 private:
  const TemporaryDirectory directory_;
  std::filesystem::path room_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_BUSYBOX_ROOT_H_
