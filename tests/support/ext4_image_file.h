#ifndef CATNAP_TESTS_SUPPORT_EXT4_IMAGE_FILE_H_
#define CATNAP_TESTS_SUPPORT_EXT4_IMAGE_FILE_H_

#include <chrono>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/tool_process.h"

namespace catnap::test {

// Looks at the image of a file system with the programs of e2fsprogs.
class Ext4ImageFile {
 public:
  explicit Ext4ImageFile(std::string path) : path_(std::move(path)) {}

  // "" when all is well, or else what e2fsck has to say.
  std::string Check() const {
    const auto end = Run({"/sbin/e2fsck", "-fn", path_});
    if (!end.ok()) return end.status().ToString();
    return end->exit_code == 0 ? "" : end->output + end->errors;
  }

  // What debugfs prints for one command.
  std::string Ask(const std::string& command) const {
    const auto end = Run({"/sbin/debugfs", "-R", command, path_});
    return end.ok() ? end->output : end.status().ToString();
  }
  std::string Stat(const std::string& path) const {
    return Ask("stat \"" + path + "\"");
  }
  bool Has(const std::string& path) const {
    return Stat(path).find("Inode:") != std::string::npos;
  }
  // The content of a file, by way of one at `scratch`.
  std::string Content(const std::string& path,
                      const std::string& scratch) const {
    std::ofstream(scratch, std::ios::trunc).close();
    Ask("dump \"" + path + "\" " + scratch);
    std::ifstream in(scratch, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

 private:
  static absl::StatusOr<runtime::ToolEnd> Run(std::vector<std::string> words) {
    const std::string path = words.front();
    return runtime::RunTool(
        {.path = path,
         .arguments = std::move(words),
         .descriptors = {},
         .deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1),
         .stop = {}});
  }

  const std::string path_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_EXT4_IMAGE_FILE_H_
