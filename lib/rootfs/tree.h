#ifndef CATNAP_LIB_ROOTFS_TREE_H_
#define CATNAP_LIB_ROOTFS_TREE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "rootfs/ext4_image.h"
#include "rootfs/file_data.h"

namespace catnap::rootfs {

struct TreeLimits {
  uint64_t bytes = 0;  // Of content, holes left out.
  // Everything that is added, what is replaced later and missing parents too.
  uint64_t files = 0;
};

// The names of a new file system. Content and inodes go to the image at once;
// names are kept in memory and written last, so that they may come in any
// order. Trusts nothing that it is given.
//
// A path is made relative: leading slashes, empty names and "." mean nothing.
// It must not have a ".." or go through something that is no directory: nothing
// here follows a symbolic link. Missing parents are made, as root's and 0755.
// What comes again replaces what was there, except that a directory keeps its
// entries, and one that has some is not replaced by something else.
//
// Errors of all functions: INVALID_ARGUMENT, of the path or of what is added;
// RESOURCE_EXHAUSTED, the image is full, or a limit reached. Statuses name no
// path: the caller knows it as the source wrote it. After an error the image
// is not worth keeping. Thread-compatible.
class Tree {
 public:
  // `image` is borrowed. It is new. Makes the root directory and lost+found.
  static absl::StatusOr<std::unique_ptr<Tree>> Create(Ext4Image* image,
                                                      const TreeLimits& limits);

  absl::Status AddDirectory(std::string_view path, Attributes attributes);
  absl::Status AddLink(std::string_view path, const std::string& target,
                       const Attributes& attributes);
  // `type` is S_IFIFO, S_IFSOCK, S_IFCHR or S_IFBLK.
  absl::Status AddSpecial(std::string_view path, uint16_t type, uint64_t major,
                          uint64_t minor, const Attributes& attributes);
  // One more name for what is at `target` now, which is no directory.
  absl::Status AddHardLink(std::string_view path, std::string_view target);

  // A regular file: BeginFile(), Append() in the order of offsets, EndFile().
  absl::Status BeginFile(std::string_view path);
  absl::Status Append(uint64_t offset, std::span<const uint8_t> bytes);
  absl::Status EndFile(uint64_t size, const Attributes& attributes);

  // Writes the directories. The image is to be finished after that.
  absl::Status Finish();

 private:
  using Index = uint32_t;  // Of a node.
  struct Directory {
    Index parent = 0;
    Attributes attributes{};
    std::map<std::string, Index, std::less<>> entries{};
  };
  struct Node {
    uint32_t inode = 0;
    uint32_t links = 1;
    uint8_t type = 0;  // As in directory entries.
    std::unique_ptr<Directory> directory{};
  };
  struct Place {
    Index parent = 0;
    std::string_view name{};  // Empty: the root directory.
  };
  static constexpr Index kRoot = 0;

  Tree(Ext4Image* image, const TreeLimits& limits)
      : image_(image), limits_(limits), data_(image) {}

  absl::Status CountFile();
  absl::StatusOr<Index> NewDirectory(Index parent, std::string_view name,
                                     Attributes attributes);
  // Where `path` is; makes its parents if `make_parents`.
  absl::StatusOr<Place> Locate(std::string_view path, bool make_parents);
  std::optional<Index> Find(const Place& place) const;
  // Takes away what has the name, for something that is no directory.
  absl::Status MakeRoom(const Place& place);
  // Makes room and gives the inode for a new file.
  absl::StatusOr<uint32_t> PrepareFile(const Place& place);
  absl::Status Drop(Index index);
  void Enter(const Place& place, uint32_t inode, uint8_t type);
  absl::Status WriteDirectory(Index index);

  Ext4Image* const image_;  // Not owned.
  const TreeLimits limits_;
  FileData data_;
  uint64_t files_ = 0;
  uint64_t bytes_ = 0;
  std::vector<Node> nodes_;
  // The file between BeginFile() and EndFile().
  Index file_parent_ = 0;
  std::string file_name_;
};

}  // namespace catnap::rootfs

#endif  // CATNAP_LIB_ROOTFS_TREE_H_
