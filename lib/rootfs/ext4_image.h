#ifndef CATNAP_LIB_ROOTFS_EXT4_IMAGE_H_
#define CATNAP_LIB_ROOTFS_EXT4_IMAGE_H_

#include <ext2fs/ext2fs.h>

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace catnap::rootfs {

inline constexpr uint32_t kBlockBytes = 4096;
inline constexpr uint64_t kMinImageBytes = uint64_t{16} << 20;
inline constexpr uint64_t kMaxImageBytes = uint64_t{1} << 40;
// What ext4 can address in one file with blocks of this size.
inline constexpr uint64_t kMaxFileBytes =
    (uint64_t{1} << 32) * kBlockBytes - kBlockBytes;
inline constexpr uint32_t kMaxLinks = 65000;
// Blocks of one extent that holds content.
inline constexpr uint32_t kMaxExtentBlocks = 32768;

// One `user.*`, `security.capability` or `system.posix_acl_*` attribute, the
// latter two as the kernel's calls show them.
struct ExtendedAttribute {
  std::string name;
  std::string value;
};

// What an inode says besides its content.
struct Attributes {
  uint16_t permissions = 0755;  // 07777
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t mtime_seconds = 0;
  uint32_t mtime_nanoseconds = 0;
  std::vector<ExtendedAttribute> extended{};
};

struct ImageOptions {
  uint64_t bytes = 0;  // A multiple of kBlockBytes.
  std::array<uint8_t, 16> uuid{};
  // When the file system was made, seconds since 1970.
  uint32_t time = 0;
};

// A run of blocks of a file that lies in one piece.
struct Extent {
  uint32_t logical = 0;
  uint32_t length = 0;
  uint64_t physical = 0;
};

// A new ext4 file system in a sparse file: inodes and blocks, without names.
// Linux from 4.4 on mounts it. What nothing was written to stays a hole of the
// file, and the kernel is told that it need not write there either: the inode
// tables and the journal cost nothing until they are used.
//
// After an error the image is not worth keeping. Thread-compatible.
class Ext4Image {
 public:
  // Makes the file behind `fd`, which is borrowed, an image. REQUIRES: it is a
  // regular file, open for reading and writing, and empty.
  // Errors: INVALID_ARGUMENT, `options.bytes`; RESOURCE_EXHAUSTED, the host's
  // disk or a limit of the process.
  static absl::StatusOr<std::unique_ptr<Ext4Image>> Create(
      int fd, const ImageOptions& options);
  Ext4Image(const Ext4Image&) = delete;
  Ext4Image& operator=(const Ext4Image&) = delete;
  ~Ext4Image();

  uint64_t bytes() const { return bytes_; }
  uint32_t time() const { return time_; }
  // Inodes for the caller, at first.
  uint32_t inodes() const { return inodes_; }

  // The lowest free inode.
  // Errors: RESOURCE_EXHAUSTED.
  absl::StatusOr<uint32_t> AllocateInode(bool directory);

  // `blocks` free blocks at most, in one piece, near those given out before.
  // Errors: RESOURCE_EXHAUSTED.
  absl::StatusOr<Extent> AllocateBlocks(uint32_t blocks);

  // Writes whole blocks.
  absl::Status WriteBlocks(uint64_t physical, std::span<const uint8_t> bytes);

  // A regular file, directory or long symbolic link: `type` is one of S_IFMT.
  struct Content {
    std::vector<Extent> extents{};  // In logical order.
    uint64_t size = 0;
  };
  absl::Status WriteInode(uint32_t inode, uint16_t type, uint32_t links,
                          const Attributes& attributes, const Content& content);
  // One whose target is shorter than kFastLinkBytes.
  static constexpr size_t kFastLinkBytes = 60;
  absl::Status WriteFastLink(uint32_t inode, const std::string& target,
                             const Attributes& attributes);
  // A device, FIFO or socket. REQUIRES: major < 4096, minor < 2^20.
  absl::Status WriteSpecial(uint32_t inode, uint16_t type, uint32_t major,
                            uint32_t minor, const Attributes& attributes);

  absl::Status SetLinks(uint32_t inode, uint32_t links);

  // Gives an inode back, with its blocks.
  absl::Status Free(uint32_t inode, bool directory);

  // Puts the checksum of the directory `inode` into one of its blocks, whose
  // last kDirectoryTailBytes are free.
  static constexpr size_t kDirectoryTailBytes = 12;
  absl::Status SealDirectoryBlock(uint32_t inode, std::span<uint8_t> block);

  // Writes what is left of the file system's own data. Last call.
  absl::Status Finish();

 private:
  explicit Ext4Image(uint64_t bytes, uint32_t time)
      : bytes_(bytes), time_(time) {}

  absl::Status Initialize(int fd, const ImageOptions& options);
  absl::Status MakeJournal();
  ext2_inode_large NewInode(uint16_t type, uint32_t links,
                            const Attributes& attributes) const;
  absl::Status PutInode(uint32_t inode, ext2_inode_large* content);
  absl::Status PutLongExtents(uint32_t inode,
                              const std::vector<Extent>& extents);
  absl::Status PutExtended(uint32_t inode, const Attributes& attributes);
  // Adds what the library's error says, and what to do, to `what`.
  absl::Status Fail(errcode_t error, const std::string& what) const;

  const uint64_t bytes_;
  const uint32_t time_;
  uint32_t inodes_ = 0;
  ext2_filsys fs_ = nullptr;  // Owned.
  uint64_t next_block_ = 0;
};

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_EXT4_IMAGE_H_
