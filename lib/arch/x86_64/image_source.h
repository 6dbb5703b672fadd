#ifndef CATNAP_LIB_ARCH_X86_64_IMAGE_SOURCE_H_
#define CATNAP_LIB_ARCH_X86_64_IMAGE_SOURCE_H_

#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace catnap::arch {

// A file whose bytes go into guest memory: a kernel or an initramfs, either in
// a descriptor or in memory. Its content is not trusted, and a file may change
// while it is read: copy out, check the copy, use the copy.
//
// Does not own the descriptor or the bytes; both must outlive it.
// Thread-compatible.
class ImageSource {
 public:
  // `name` says in messages what the file is. The descriptor's offset is
  // neither used nor moved.
  // Errors: INVALID_ARGUMENT (not a regular file or memfd), or fstat's.
  static absl::StatusOr<ImageSource> FromFd(int fd, std::string name);
  static ImageSource FromBytes(std::span<const uint8_t> bytes,
                               std::string name);

  uint64_t size() const { return size_; }
  const std::string& name() const { return name_; }

  // Fills `into` from `offset` on. Blocks on the disk.
  // Errors: INVALID_ARGUMENT (the file ends before), or pread's.
  absl::Status ReadAt(uint64_t offset, std::span<uint8_t> into) const;

 private:
  ImageSource(int fd, std::span<const uint8_t> bytes, uint64_t size,
              std::string name)
      : fd_(fd), bytes_(bytes), size_(size), name_(std::move(name)) {}

  int fd_;  // -1: the content is in `bytes_`.
  std::span<const uint8_t> bytes_;
  uint64_t size_;
  std::string name_;
};

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_IMAGE_SOURCE_H_
