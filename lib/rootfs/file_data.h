#ifndef CATNAP_LIB_ROOTFS_FILE_DATA_H_
#define CATNAP_LIB_ROOTFS_FILE_DATA_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rootfs/ext4_image.h"

namespace catnap::rootfs {

// Puts the bytes of one file after another into an image, in large writes.
// What is left out stays a hole. Thread-compatible.
class FileData {
 public:
  // `image` is borrowed.
  explicit FileData(Ext4Image* image);

  // Appends `bytes` at `offset` of the file, not before the end of what came
  // before. An error ends the image.
  // Errors: INVALID_ARGUMENT, it is, or the file gets too large for ext4;
  // RESOURCE_EXHAUSTED.
  absl::Status Append(uint64_t offset, std::span<const uint8_t> bytes);

  // The blocks of a file of `size` bytes, and a new beginning.
  // Errors: INVALID_ARGUMENT, there is content behind `size`.
  absl::StatusOr<Ext4Image::Content> Finish(uint64_t size);

 private:
  // Writes the buffer's blocks, the last one filled up with zeros.
  absl::Status Flush();

  Ext4Image* const image_;  // Not owned.
  std::vector<uint8_t> buffer_;
  uint64_t buffer_start_ = 0;  // Where it lies in the file; whole blocks.
  size_t buffered_ = 0;
  std::vector<Extent> extents_;
};

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_FILE_DATA_H_
