#ifndef CATNAP_TESTS_SUPPORT_TEMPORARY_DIRECTORY_H_
#define CATNAP_TESTS_SUPPORT_TEMPORARY_DIRECTORY_H_

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

namespace catnap::test {

// A fresh directory in `parent` ($TMPDIR or /tmp), removed with its content.
class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::filesystem::path& parent =
                                  std::filesystem::temp_directory_path())
      : path_(parent / "catnap-test-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) path_.clear();
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }

  // Empty when it could not be made.
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_TEMPORARY_DIRECTORY_H_
