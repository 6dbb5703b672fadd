#include <ext2fs/ext2fs.h>
#include <unistd.h>

#include <memory>
#include <string>

#include "base/unique_fd.h"
#include "fuzz/fuzz_target.h"
#include "rootfs/archive_source.h"
#include "rootfs/ext4_image.h"
#include "rootfs/tree.h"

// A hostile archive on its way to a small image in memory. When all of it is
// taken the image must be one that opens, with a directory as its root.

namespace catnap::rootfs {
namespace {

constexpr uint64_t kImageBytes = kMinImageBytes;
constexpr uint64_t kMaxContentBytes = uint64_t{1} << 20;
constexpr uint64_t kMaxFiles = 300;

absl::Status Build(int fd, std::span<const uint8_t> archive) {
  const auto image = Ext4Image::Create(fd, {.bytes = kImageBytes, .time = 1});
  FUZZ_CHECK(image.ok());
  const auto tree = Tree::Create(
      image->get(), {.bytes = kMaxContentBytes, .files = kMaxFiles});
  FUZZ_CHECK(tree.ok());
  absl::Status status = AddArchive(archive, {}, tree->get());
  if (!status.ok()) return status;
  status = (*tree)->Finish();
  if (!status.ok()) return status;
  return (*image)->Finish();
}

int CountEntry(ext2_ino_t /*directory*/, int /*entry*/, ext2_dir_entry* entry,
               int /*offset*/, int /*blocksize*/, char* /*buffer*/,
               void* count) {
  FUZZ_CHECK(entry->inode != 0);
  ++*static_cast<uint64_t*>(count);
  return 0;
}

void Look(int fd) {
  const std::string name = std::to_string(::dup(fd));
  ext2_filsys fs = nullptr;
  FUZZ_CHECK(ext2fs_open(name.c_str(), EXT2_FLAG_64BITS, 0, 0,
                         unixfd_io_manager, &fs) == 0);
  FUZZ_CHECK(ext2fs_read_bitmaps(fs) == 0);
  uint64_t count = 0;
  // ".", ".." and lost+found at least; more than the limit never.
  FUZZ_CHECK(ext2fs_dir_iterate2(fs, EXT2_ROOT_INO, 0, nullptr, CountEntry,
                                 &count) == 0);
  FUZZ_CHECK(count >= 3 && count <= kMaxFiles + 3);
  ext2fs_free(fs);
}

}  // namespace
}  // namespace catnap::rootfs

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto fd = catnap::base::CreateMemFd("rootfs_fuzz", 0);
  FUZZ_CHECK(fd.ok());
  const absl::Status status = catnap::rootfs::Build(fd->get(), {data, size});
  FUZZ_CHECK(!absl::IsInternal(status) && !absl::IsUnknown(status));
  if (status.ok()) catnap::rootfs::Look(fd->get());
  return 0;
}
