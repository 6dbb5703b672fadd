#include "rootfs/ext4_image.h"

#include <et/com_err.h>
#include <ext2fs/ext3_extents.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/status.h"

namespace catnap::rootfs {
namespace {

constexpr uint32_t kBlockBits = 12;
constexpr uint32_t kInodeBytes = 256;
// Of them those that Linux knows by name lie behind the first 128.
constexpr uint32_t kExtraInodeBytes = 32;
// As many inodes as mke2fs gives a disk of this kind.
constexpr uint64_t kBytesPerInode = 16384;
constexpr uint8_t kLogGroupsPerFlex = 4;
// A disk of a virtual machine that sleeps is stored with all that its guest
// ever wrote: a small journal is written over and over in the same place.
constexpr uint64_t kMinJournalBytes = uint64_t{4} << 20;
constexpr uint64_t kMaxJournalBytes = uint64_t{64} << 20;
constexpr uint64_t kJournalShare = 512;
// Extents that the inode itself has room for.
constexpr size_t kInodeExtents = 4;

// Cut to what ext4 keeps: 34 bits that start in 1901.
int64_t ClampTime(int64_t seconds) {
  constexpr int64_t kFirst = -(int64_t{1} << 31);
  constexpr int64_t kLast = (int64_t{1} << 34) + kFirst - 1;
  return std::clamp(seconds, kFirst, kLast);
}

// The upper half of a time: nanoseconds, and two bits by which the seconds,
// read as 32 signed bits, are too small.
uint32_t ExtraTime(int64_t seconds, uint32_t nanoseconds) {
  const auto low = static_cast<int32_t>(static_cast<uint32_t>(seconds));
  const auto epoch = static_cast<uint32_t>((seconds - low) >> 32) & 3;
  return (std::min(nanoseconds, uint32_t{999'999'999}) << 2) | epoch;
}

// A pointer to the structure's old half, which is what the library's
// functions take.
ext2_inode* Old(ext2_inode_large* inode) {
  return reinterpret_cast<ext2_inode*>(inode);
}

// For each block of an inode that goes, those of its extents too.
int FreeBlock(ext2_filsys fs, blk64_t* block, e2_blkcnt_t /*count*/,
              blk64_t /*parent*/, int /*offset*/, void* /*data*/) {
  ext2fs_block_alloc_stats2(fs, *block, -1);
  return 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ext4Image>> Ext4Image::Create(
    int fd, const ImageOptions& options) {
  if (options.bytes < kMinImageBytes || options.bytes > kMaxImageBytes ||
      !base::IsAligned(options.bytes, kBlockBytes)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "bytes is {}, must be a multiple of {} from {} to {}",
                 options.bytes, kBlockBytes, kMinImageBytes, kMaxImageBytes);
  }
  std::unique_ptr<Ext4Image> image(new Ext4Image(options.bytes, options.time));
  CATNAP_RETURN_IF_ERROR(image->Initialize(fd, options));
  CATNAP_RETURN_IF_ERROR(image->MakeJournal());
  return image;
}

Ext4Image::~Ext4Image() {
  if (fs_ != nullptr) ext2fs_free(fs_);
}

absl::Status Ext4Image::Fail(errcode_t error, const std::string& what) const {
  switch (error) {
    case EXT2_ET_BLOCK_ALLOC_FAIL:
      return Error(absl::StatusCode::kResourceExhausted,
                   "{}: the disk of {} bytes is full; make it larger", what,
                   bytes_);
    case EXT2_ET_INODE_ALLOC_FAIL:
      return Error(absl::StatusCode::kResourceExhausted,
                   "{}: all {} inodes of the disk of {} bytes are used; make "
                   "it larger",
                   what, inodes_, bytes_);
    case EXT2_ET_EA_NO_SPACE:
      return Error(absl::StatusCode::kInvalidArgument,
                   "{}: more extended attributes than fit into a block", what);
    case EXT2_ET_NO_MEMORY:
      return Error(absl::StatusCode::kResourceExhausted, "{}: out of memory",
                   what);
    default:
      break;
  }
  // Its own errors start far behind those of the system.
  if (error > 0 && error < 4096) {
    return ErrnoError(static_cast<int>(error), "{}", what);
  }
  return Error(absl::StatusCode::kUnknown, "{}: {}", what,
               error_message(error));
}

absl::Status Ext4Image::Initialize(int fd, const ImageOptions& options) {
  initialize_ext2_error_table();
  if (::ftruncate(fd, static_cast<off_t>(bytes_)) != 0) {
    return ErrnoError(errno, "make the image {} bytes long", bytes_);
  }
  ext2_super_block wanted{};
  ext2fs_blocks_count_set(&wanted, bytes_ / kBlockBytes);
  wanted.s_rev_level = EXT2_DYNAMIC_REV;
  wanted.s_log_block_size = kBlockBits - EXT2_MIN_BLOCK_LOG_SIZE;
  wanted.s_log_cluster_size = wanted.s_log_block_size;
  wanted.s_inode_size = kInodeBytes;
  wanted.s_inodes_count = static_cast<uint32_t>(bytes_ / kBytesPerInode);
  wanted.s_log_groups_per_flex = kLogGroupsPerFlex;
  wanted.s_errors = EXT2_ERRORS_RO;
  wanted.s_feature_compat =
      EXT2_FEATURE_COMPAT_EXT_ATTR | EXT2_FEATURE_COMPAT_DIR_INDEX;
  wanted.s_feature_incompat =
      EXT2_FEATURE_INCOMPAT_FILETYPE | EXT3_FEATURE_INCOMPAT_EXTENTS |
      EXT4_FEATURE_INCOMPAT_64BIT | EXT4_FEATURE_INCOMPAT_FLEX_BG;
  wanted.s_feature_ro_compat =
      EXT2_FEATURE_RO_COMPAT_SPARSE_SUPER | EXT2_FEATURE_RO_COMPAT_LARGE_FILE |
      EXT4_FEATURE_RO_COMPAT_HUGE_FILE | EXT4_FEATURE_RO_COMPAT_DIR_NLINK |
      EXT4_FEATURE_RO_COMPAT_EXTRA_ISIZE | EXT4_FEATURE_RO_COMPAT_METADATA_CSUM;

  // The library closes the descriptor it is given, and takes it as text.
  const int own = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own < 0) return ErrnoError(errno, "duplicate the image's descriptor");
  const std::string name = std::to_string(own);
  errcode_t error = ext2fs_initialize(name.c_str(), EXT2_FLAG_64BITS, &wanted,
                                      unixfd_io_manager, &fs_);
  if (error != 0) {
    fs_ = nullptr;
    return Fail(error, "make the file system");
  }
  // Not 0, which stands for the time that it is.
  fs_->now = std::max<time_t>(time_, 1);
  ext2_super_block* super = fs_->super;
  std::memcpy(super->s_uuid, options.uuid.data(), options.uuid.size());
  // Checksums depend on the UUID, so this comes before anything is written.
  super->s_checksum_type = EXT2_CRC32C_CHKSUM;
  ext2fs_init_csum_seed(fs_);
  std::memcpy(super->s_hash_seed, options.uuid.data(), options.uuid.size());
  super->s_def_hash_version = EXT2_HASH_HALF_MD4;
  super->s_flags |= EXT2_FLAGS_SIGNED_HASH;
  super->s_max_mnt_count = -1;
  super->s_checkinterval = 0;
  super->s_default_mount_opts = EXT2_DEFM_XATTR_USER | EXT2_DEFM_ACL;
  super->s_mkfs_time = time_;
  super->s_lastcheck = time_;
  super->s_min_extra_isize = kExtraInodeBytes;
  super->s_want_extra_isize = kExtraInodeBytes;

  error = ext2fs_allocate_tables(fs_);
  if (error != 0) return Fail(error, "place the tables of the file system");
  // The file is new and so reads as zeros: Linux's lazy initialisation would
  // fill the holes with zeros to no end.
  for (dgrp_t group = 0; group < fs_->group_desc_count; ++group) {
    ext2fs_bg_flags_set(fs_, group, EXT2_BG_INODE_ZEROED);
  }
  for (uint32_t inode = 1; inode < EXT2_FIRST_INODE(super); ++inode) {
    ext2fs_inode_alloc_stats2(fs_, inode, +1, inode == EXT2_ROOT_INO);
  }
  inodes_ = super->s_free_inodes_count;
  return absl::OkStatus();
}

absl::Status Ext4Image::MakeJournal() {
  const uint64_t journal_bytes = base::AlignDown(
      std::clamp(bytes_ / kJournalShare, kMinJournalBytes, kMaxJournalBytes),
      uint64_t{kBlockBytes});
  const errcode_t error = ext2fs_add_journal_inode2(
      fs_, static_cast<blk_t>(journal_bytes / kBlockBytes), ~blk64_t{0},
      EXT2_MKJOURNAL_LAZYINIT | EXT2_MKJOURNAL_NO_MNT_CHECK);
  if (error != 0) return Fail(error, "make the journal");
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> Ext4Image::AllocateInode(bool directory) {
  ext2_ino_t inode = 0;
  const errcode_t error = ext2fs_new_inode(
      fs_, 0, directory ? LINUX_S_IFDIR : LINUX_S_IFREG, nullptr, &inode);
  if (error != 0) return Fail(error, "take an inode");
  ext2fs_inode_alloc_stats2(fs_, inode, +1, directory ? 1 : 0);
  return inode;
}

absl::StatusOr<Extent> Ext4Image::AllocateBlocks(uint32_t blocks) {
  blk64_t physical = 0;
  blk64_t length = 0;
  const errcode_t error =
      ext2fs_new_range(fs_, 0, next_block_, std::min(blocks, kMaxExtentBlocks),
                       nullptr, &physical, &length);
  if (error != 0) return Fail(error, "take blocks");
  length = std::min<blk64_t>(length, blocks);
  ext2fs_block_alloc_stats_range(fs_, physical, static_cast<blk_t>(length), +1);
  next_block_ = physical + length;
  if (next_block_ >= ext2fs_blocks_count(fs_->super)) next_block_ = 0;
  return Extent{.length = static_cast<uint32_t>(length), .physical = physical};
}

absl::Status Ext4Image::WriteBlocks(uint64_t physical,
                                    std::span<const uint8_t> bytes) {
  // By the library, which may hold older content of these blocks.
  const errcode_t error = io_channel_write_blk64(
      fs_->io, physical, static_cast<int>(bytes.size() / kBlockBytes),
      bytes.data());
  if (error != 0) return Fail(error, "write to the image");
  return absl::OkStatus();
}

ext2_inode_large Ext4Image::NewInode(uint16_t type, uint32_t links,
                                     const Attributes& attributes) const {
  ext2_inode_large inode{};
  const int64_t mtime = ClampTime(attributes.mtime_seconds);
  const auto low = static_cast<uint32_t>(mtime);
  const uint32_t extra = ExtraTime(mtime, attributes.mtime_nanoseconds);
  inode.i_mode = static_cast<uint16_t>(type | (attributes.permissions & 07777));
  inode.i_uid = static_cast<uint16_t>(attributes.uid);
  inode.osd2.linux2.l_i_uid_high = static_cast<uint16_t>(attributes.uid >> 16);
  inode.i_gid = static_cast<uint16_t>(attributes.gid);
  inode.osd2.linux2.l_i_gid_high = static_cast<uint16_t>(attributes.gid >> 16);
  // Those that nobody told: as the content's, so that the same input gives the
  // same image.
  inode.i_mtime = inode.i_atime = inode.i_ctime = low;
  inode.i_mtime_extra = inode.i_atime_extra = inode.i_ctime_extra = extra;
  inode.i_crtime = time_;
  inode.i_extra_isize = kExtraInodeBytes;
  // A directory with more has 1, which says "many" (feature dir_nlink).
  inode.i_links_count = static_cast<uint16_t>(links > kMaxLinks ? 1 : links);
  return inode;
}

absl::Status Ext4Image::PutInode(uint32_t inode, ext2_inode_large* content) {
  // Whole, so that nothing of an inode that had the number before stays.
  std::array<uint8_t, kInodeBytes> bytes{};
  std::memcpy(bytes.data(), content, sizeof(*content));
  const errcode_t error = ext2fs_write_inode_full(
      fs_, inode, reinterpret_cast<ext2_inode*>(bytes.data()), kInodeBytes);
  if (error != 0) return Fail(error, "write an inode");
  return absl::OkStatus();
}

absl::Status Ext4Image::WriteInode(uint32_t inode, uint16_t type,
                                   uint32_t links, const Attributes& attributes,
                                   const Content& content) {
  ext2_inode_large large = NewInode(type, links, attributes);
  large.i_flags = EXT4_EXTENTS_FL;
  large.i_size = static_cast<uint32_t>(content.size);
  large.i_size_high = static_cast<uint32_t>(content.size >> 32);
  const bool fits = content.extents.size() <= kInodeExtents;
  auto* root = reinterpret_cast<uint8_t*>(large.i_block);
  const ext3_extent_header header{
      .eh_magic = EXT3_EXT_MAGIC,
      .eh_entries = static_cast<uint16_t>(fits ? content.extents.size() : 0),
      .eh_max = kInodeExtents,
      .eh_depth = 0,
      .eh_generation = 0};
  std::memcpy(root, &header, sizeof(header));
  uint64_t blocks = 0;
  for (size_t i = 0; i < content.extents.size(); ++i) {
    const Extent& extent = content.extents[i];
    blocks += extent.length;
    if (!fits) continue;
    const ext3_extent entry{
        .ee_block = extent.logical,
        .ee_len = static_cast<uint16_t>(extent.length),
        .ee_start_hi = static_cast<uint16_t>(extent.physical >> 32),
        .ee_start = static_cast<uint32_t>(extent.physical)};
    std::memcpy(root + sizeof(header) + i * sizeof(entry), &entry,
                sizeof(entry));
  }
  const errcode_t error = ext2fs_iblk_add_blocks(fs_, Old(&large), blocks);
  if (error != 0) return Fail(error, "count a file's blocks");
  CATNAP_RETURN_IF_ERROR(PutInode(inode, &large));
  if (!fits) CATNAP_RETURN_IF_ERROR(PutLongExtents(inode, content.extents));
  return PutExtended(inode, attributes);
}

absl::Status Ext4Image::PutLongExtents(uint32_t inode,
                                       const std::vector<Extent>& extents) {
  ext2_extent_handle_t handle = nullptr;
  errcode_t error = ext2fs_extent_open(fs_, inode, &handle);
  if (error != 0) return Fail(error, "open a file's extents");
  for (size_t i = 0; error == 0 && i < extents.size(); ++i) {
    ext2fs_extent entry{};
    entry.e_pblk = extents[i].physical;
    entry.e_lblk = extents[i].logical;
    entry.e_len = extents[i].length;
    error = ext2fs_extent_insert(handle, EXT2_EXTENT_INSERT_AFTER, &entry);
    if (error == 0) error = ext2fs_extent_fix_parents(handle);
  }
  ext2fs_extent_free(handle);
  if (error != 0) return Fail(error, "write a file's extents");
  return absl::OkStatus();
}

absl::Status Ext4Image::WriteFastLink(uint32_t inode, const std::string& target,
                                      const Attributes& attributes) {
  ext2_inode_large large = NewInode(LINUX_S_IFLNK, 1, attributes);
  large.i_size = static_cast<uint32_t>(target.size());
  std::memcpy(large.i_block, target.data(),
              std::min(target.size(), sizeof(large.i_block)));
  CATNAP_RETURN_IF_ERROR(PutInode(inode, &large));
  return PutExtended(inode, attributes);
}

absl::Status Ext4Image::WriteSpecial(uint32_t inode, uint16_t type,
                                     uint32_t major, uint32_t minor,
                                     const Attributes& attributes) {
  ext2_inode_large large = NewInode(type, 1, attributes);
  if (type == LINUX_S_IFBLK || type == LINUX_S_IFCHR) {
    // Linux reads the first form when it is not 0, and the second otherwise.
    if (major < 256 && minor < 256) {
      large.i_block[0] = (major << 8) | minor;
    } else {
      large.i_block[1] =
          (minor & 0xff) | (major << 8) | ((minor & ~uint32_t{0xff}) << 12);
    }
  }
  CATNAP_RETURN_IF_ERROR(PutInode(inode, &large));
  return PutExtended(inode, attributes);
}

absl::Status Ext4Image::PutExtended(uint32_t inode,
                                    const Attributes& attributes) {
  if (attributes.extended.empty()) return absl::OkStatus();
  ext2_xattr_handle* handle = nullptr;
  errcode_t error = ext2fs_xattrs_open(fs_, inode, &handle);
  if (error != 0) return Fail(error, "open extended attributes");
  error = ext2fs_xattrs_read(handle);
  for (size_t i = 0; error == 0 && i < attributes.extended.size(); ++i) {
    const ExtendedAttribute& attribute = attributes.extended[i];
    error = ext2fs_xattr_set(handle, attribute.name.c_str(),
                             attribute.value.data(), attribute.value.size());
  }
  const errcode_t closed = ext2fs_xattrs_close(&handle);
  if (error == 0) error = closed;
  if (error != 0) return Fail(error, "write extended attributes");
  return absl::OkStatus();
}

absl::Status Ext4Image::SetLinks(uint32_t inode, uint32_t links) {
  ext2_inode old{};
  errcode_t error = ext2fs_read_inode(fs_, inode, &old);
  if (error == 0) {
    old.i_links_count = static_cast<uint16_t>(links);
    error = ext2fs_write_inode(fs_, inode, &old);
  }
  if (error != 0) return Fail(error, "count an inode's links");
  return absl::OkStatus();
}

absl::Status Ext4Image::Free(uint32_t inode, bool directory) {
  ext2_inode_large large{};
  errcode_t error =
      ext2fs_read_inode_full(fs_, inode, Old(&large), sizeof(large));
  if (error == 0) error = ext2fs_free_ext_attr(fs_, inode, nullptr);
  if (error == 0 && (large.i_flags & EXT4_EXTENTS_FL) != 0) {
    error = ext2fs_block_iterate3(fs_, inode, BLOCK_FLAG_READ_ONLY, nullptr,
                                  FreeBlock, nullptr);
  }
  if (error != 0) return Fail(error, "free an inode");
  large = {};
  CATNAP_RETURN_IF_ERROR(PutInode(inode, &large));
  ext2fs_inode_alloc_stats2(fs_, inode, -1, directory ? 1 : 0);
  return absl::OkStatus();
}

absl::Status Ext4Image::SealDirectoryBlock(uint32_t inode,
                                           std::span<uint8_t> block) {
  uint8_t* tail = block.data() + kBlockBytes - kDirectoryTailBytes;
  ext2fs_initialize_dirent_tail(fs_,
                                reinterpret_cast<ext2_dir_entry_tail*>(tail));
  const errcode_t error = ext2fs_dir_block_csum_set(
      fs_, inode, reinterpret_cast<ext2_dir_entry*>(block.data()));
  if (error != 0) return Fail(error, "seal a directory");
  return absl::OkStatus();
}

absl::Status Ext4Image::Finish() {
  errcode_t error = ext2fs_set_gdt_csum(fs_);
  if (error == 0) {
    fs_->super->s_state |= EXT2_VALID_FS;
    ext2fs_mark_super_dirty(fs_);
    // Frees it also when it fails.
    error = ext2fs_close_free(&fs_);
  }
  if (error != 0) return Fail(error, "finish the file system");
  return absl::OkStatus();
}

}  // namespace catnap::rootfs
