#ifndef CATNAP_TESTS_UNIT_ROOTFS_ROOTFS_TEST_SUPPORT_H_
#define CATNAP_TESTS_UNIT_ROOTFS_ROOTFS_TEST_SUPPORT_H_

#include <unistd.h>

#include <chrono>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "runtime/tool_process.h"
#include "support/ext4_image_file.h"
#include "support/temporary_directory.h"

namespace catnap::test {

inline constexpr uint64_t kMiB = uint64_t{1} << 20;

// A folder with the program's input and its image.
class RootfsRun {
 public:
  const TemporaryDirectory& folder() const { return folder_; }
  const std::string& image_path() const { return image_path_; }
  const Ext4ImageFile& image() const { return image_; }
  bool has_image() const { return ::access(image_path_.c_str(), F_OK) == 0; }

  // Runs catnap-rootfs; its exit code, or -1. What it wrote is in errors().
  int Run(std::vector<std::string> words) {
    words.insert(words.begin(), "catnap-rootfs");
    const auto end = runtime::RunTool(
        {.path = CATNAP_ROOTFS_PROGRAM,
         .arguments = std::move(words),
         .descriptors = {},
         .deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1),
         .stop = {}});
    if (!end.ok()) return -1;
    errors_ = end->errors;
    return end->exit_code.value_or(-1);
  }
  // From a tar of these bytes.
  int RunTar(const std::string& tar, uint64_t bytes = 64 * kMiB,
             const std::vector<std::string>& more = {}) {
    const std::string path = folder_.File("source.tar");
    std::ofstream(path, std::ios::binary | std::ios::trunc) << tar;
    return RunSource("--tar", path, bytes, more);
  }
  int RunDirectory(const std::string& path, uint64_t bytes = 64 * kMiB,
                   const std::vector<std::string>& more = {}) {
    return RunSource("--directory", path, bytes, more);
  }
  const std::string& errors() const { return errors_; }

 private:
  int RunSource(const char* kind, const std::string& path, uint64_t bytes,
                const std::vector<std::string>& more) {
    std::vector<std::string> words = {
        "--output", image_path_, "--bytes", std::to_string(bytes), kind, path};
    words.insert(words.end(), more.begin(), more.end());
    ::unlink(image_path_.c_str());
    return Run(std::move(words));
  }

  const TemporaryDirectory folder_;
  const std::string image_path_ = folder_.File("image");
  const Ext4ImageFile image_{image_path_};
  std::string errors_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_UNIT_ROOTFS_ROOTFS_TEST_SUPPORT_H_
