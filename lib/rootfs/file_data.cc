#include "rootfs/file_data.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/checked.h"
#include "base/status.h"

namespace catnap::rootfs {
namespace {

// Large against a block, small against memory.
constexpr size_t kBufferBytes = 1 << 20;

}  // namespace

FileData::FileData(Ext4Image* image) : image_(image), buffer_(kBufferBytes) {}

absl::Status FileData::Append(uint64_t offset, std::span<const uint8_t> bytes) {
  if (!base::InRange<uint64_t>(offset, bytes.size(), kMaxFileBytes)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} bytes at offset {}: a file has at most {}", bytes.size(),
                 offset, kMaxFileBytes);
  }
  if (offset < buffer_start_ + buffered_) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "content at offset {} comes after that up to {}", offset,
                 buffer_start_ + buffered_);
  }
  while (!bytes.empty()) {
    const uint64_t block = base::AlignDown(offset, uint64_t{kBlockBytes});
    // Within the last block, or right behind it, the buffer goes on.
    const uint64_t reach =
        buffer_start_ +
        base::AlignDown(buffered_ + kBlockBytes - 1, size_t{kBlockBytes});
    if (buffered_ == 0) {
      buffer_start_ = block;
    } else if (block > reach || offset - buffer_start_ >= kBufferBytes) {
      CATNAP_RETURN_IF_ERROR(Flush());
      buffer_start_ = block;
    }
    const auto at = static_cast<size_t>(offset - buffer_start_);
    std::memset(buffer_.data() + buffered_, 0, at - buffered_);
    const size_t take = std::min(bytes.size(), kBufferBytes - at);
    std::memcpy(buffer_.data() + at, bytes.data(), take);
    buffered_ = at + take;
    offset += take;
    bytes = bytes.subspan(take);
  }
  return absl::OkStatus();
}

absl::Status FileData::Flush() {
  const size_t whole =
      base::AlignDown(buffered_ + kBlockBytes - 1, size_t{kBlockBytes});
  std::memset(buffer_.data() + buffered_, 0, whole - buffered_);
  size_t done = 0;
  while (done < whole) {
    CATNAP_ASSIGN_OR_RETURN(Extent extent,
                            image_->AllocateBlocks(static_cast<uint32_t>(
                                (whole - done) / kBlockBytes)));
    extent.logical =
        static_cast<uint32_t>((buffer_start_ + done) / kBlockBytes);
    const size_t length = size_t{extent.length} * kBlockBytes;
    CATNAP_RETURN_IF_ERROR(image_->WriteBlocks(
        extent.physical, std::span(buffer_).subspan(done, length)));
    done += length;
    Extent* last = extents_.empty() ? nullptr : &extents_.back();
    if (last != nullptr && last->logical + last->length == extent.logical &&
        last->physical + last->length == extent.physical &&
        last->length + extent.length <= kMaxExtentBlocks) {
      last->length += extent.length;
    } else {
      extents_.push_back(extent);
    }
  }
  buffer_start_ += whole;
  buffered_ = 0;
  return absl::OkStatus();
}

absl::StatusOr<Ext4Image::Content> FileData::Finish(uint64_t size) {
  // After content was appended some of it is still in the buffer.
  const uint64_t end = buffered_ == 0 ? 0 : buffer_start_ + buffered_;
  CATNAP_RETURN_IF_ERROR(Flush());
  if (size > kMaxFileBytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "size is {}, must be at most {}", size, kMaxFileBytes);
  }
  if (end > size) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "content up to {} in a file of {} bytes", end, size);
  }
  buffer_start_ = 0;
  return Ext4Image::Content{.extents = std::exchange(extents_, {}),
                            .size = size};
}

}  // namespace catnap::rootfs
