#ifndef CATNAP_FILES_H_
#define CATNAP_FILES_H_

#include <chrono>
#include <cstdint>
#include <string>

namespace catnap {

// A file in a guest. The guest may say anything here.
struct FileInfo {
  std::string name{};  // Without folders.
  uint64_t size = 0;   // Bytes.
  uint32_t mode = 0;   // st_mode of stat(2): type and permissions.
  uint32_t uid = 0, gid = 0;
  std::chrono::system_clock::time_point mtime{};
  std::string link_target{};  // Of a symbolic link.
};

// What CopyIn() and CopyOut() move at most; beyond: OUT_OF_RANGE. Holes of
// sparse files count as bytes.
struct CopyLimits {
  uint64_t max_bytes = uint64_t{8} << 30;
  uint64_t max_files = 1'000'000;
};

}  // namespace catnap

#endif  // CATNAP_FILES_H_
