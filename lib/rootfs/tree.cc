#include "rootfs/tree.h"

#include <cstring>

#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::rootfs {
namespace {

constexpr size_t kMaxNameBytes = 255;
// PATH_MAX less its end: what a program can name from the root directory.
constexpr size_t kMaxPathBytes = 4095;
constexpr std::string_view kLostAndFound = "lost+found";
// e2fsck does not grow it while it repairs.
constexpr uint64_t kLostAndFoundBlocks = 4;

// An entry of a directory: inode, length, length of the name, type, the name.
constexpr size_t kEntryHeaderBytes = 8;
constexpr size_t kEntryAlignment = 4;
constexpr size_t kUsableBytes = kBlockBytes - Ext4Image::kDirectoryTailBytes;

size_t EntryBytes(size_t name_bytes) {
  return (kEntryHeaderBytes + name_bytes + kEntryAlignment - 1) &
         ~(kEntryAlignment - 1);
}

// Lays entries into blocks of a directory, one after another.
class DirectoryBlocks {
 public:
  void Add(uint32_t inode, uint8_t type, std::string_view name) {
    const size_t length = EntryBytes(name.size());
    if (bytes_.empty() || used_ + length > kUsableBytes) NewBlock();
    uint8_t* entry = bytes_.data() + start_ + used_;
    base::StoreLe<uint32_t>(entry, inode);
    base::StoreLe<uint16_t>(entry + 4, static_cast<uint16_t>(length));
    entry[6] = static_cast<uint8_t>(name.size());
    entry[7] = type;
    std::memcpy(entry + kEntryHeaderBytes, name.data(), name.size());
    last_ = used_;
    used_ += length;
  }
  // A block without entries; or the rest of this one goes to its last entry.
  void NewBlock() {
    EndBlock();
    start_ = bytes_.size();
    bytes_.resize(bytes_.size() + kBlockBytes);
    last_ = used_ = 0;
    base::StoreLe<uint16_t>(bytes_.data() + start_ + 4,
                            static_cast<uint16_t>(kUsableBytes));
  }
  void EndBlock() {
    if (bytes_.empty()) return;
    base::StoreLe<uint16_t>(bytes_.data() + start_ + last_ + 4,
                            static_cast<uint16_t>(kUsableBytes - last_));
  }
  std::vector<uint8_t>* bytes() { return &bytes_; }

 private:
  std::vector<uint8_t> bytes_;
  size_t start_ = 0;  // Of the last block.
  size_t last_ = 0;   // Of its last entry.
  size_t used_ = 0;
};

uint8_t EntryType(uint16_t type) {
  switch (type) {
    case LINUX_S_IFCHR:
      return EXT2_FT_CHRDEV;
    case LINUX_S_IFBLK:
      return EXT2_FT_BLKDEV;
    case LINUX_S_IFIFO:
      return EXT2_FT_FIFO;
    default:
      return EXT2_FT_SOCK;
  }
}

// Takes the next name off `path`; empty at its end.
std::string_view NextName(std::string_view* path) {
  while (true) {
    while (path->starts_with('/')) path->remove_prefix(1);
    const std::string_view name = path->substr(0, path->find('/'));
    path->remove_prefix(name.size());
    if (name != ".") return name;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tree>> Tree::Create(Ext4Image* image,
                                                   const TreeLimits& limits) {
  std::unique_ptr<Tree> tree(new Tree(image, limits));
  Attributes attributes{.mtime_seconds = image->time()};
  tree->nodes_.push_back({.inode = EXT2_ROOT_INO, .type = EXT2_FT_DIR});
  tree->nodes_[kRoot].directory = std::make_unique<Directory>();
  tree->nodes_[kRoot].directory->attributes = attributes;
  attributes.permissions = 0700;
  CATNAP_RETURN_IF_ERROR(
      tree->NewDirectory(kRoot, kLostAndFound, std::move(attributes)).status());
  tree->files_ = 0;
  return tree;
}

absl::Status Tree::CountFile() {
  if (files_ >= limits_.files) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "more than {} files, which is the limit", limits_.files);
  }
  ++files_;
  return absl::OkStatus();
}

absl::StatusOr<Tree::Index> Tree::NewDirectory(Index parent,
                                               std::string_view name,
                                               Attributes attributes) {
  CATNAP_ASSIGN_OR_RETURN(const uint32_t inode, image_->AllocateInode(true));
  const auto index = static_cast<Index>(nodes_.size());
  nodes_.push_back({.inode = inode, .type = EXT2_FT_DIR});
  nodes_[index].directory = std::make_unique<Directory>();
  nodes_[index].directory->parent = parent;
  nodes_[index].directory->attributes = std::move(attributes);
  nodes_[parent].directory->entries.insert_or_assign(std::string(name), index);
  return index;
}

absl::StatusOr<Tree::Place> Tree::Locate(std::string_view path,
                                         bool make_parents) {
  if (path.size() > kMaxPathBytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "the path has {} bytes, must have at most {}", path.size(),
                 kMaxPathBytes);
  }
  Place place{.parent = kRoot, .name = {}};
  std::string_view name = NextName(&path);
  while (!name.empty()) {
    if (name == "..") {
      return Error(absl::StatusCode::kInvalidArgument,
                   "the path has a \"..\", which could lead out of the tree");
    }
    if (name.size() > kMaxNameBytes) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "a name of {} bytes, must have at most {}", name.size(),
                   kMaxNameBytes);
    }
    place.name = name;
    name = NextName(&path);
    if (name.empty()) break;
    std::optional<Index> next = Find(place);
    if (!next.has_value()) {
      if (!make_parents) {
        return Error(absl::StatusCode::kInvalidArgument,
                     "there is no such file");
      }
      CATNAP_RETURN_IF_ERROR(CountFile());
      CATNAP_ASSIGN_OR_RETURN(next,
                              NewDirectory(place.parent, place.name,
                                           {.mtime_seconds = image_->time()}));
    } else if (nodes_[*next].directory == nullptr) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "the path goes through {}",
                   nodes_[*next].type == EXT2_FT_SYMLINK
                       ? "a symbolic link, which is not followed"
                       : "something that is no directory");
    }
    place.parent = *next;
  }
  return place;
}

std::optional<Tree::Index> Tree::Find(const Place& place) const {
  if (place.name.empty()) return kRoot;
  const auto& entries = nodes_[place.parent].directory->entries;
  const auto found = entries.find(place.name);
  if (found == entries.end()) return std::nullopt;
  return found->second;
}

absl::Status Tree::Drop(Index index) {
  Node& node = nodes_[index];
  if (--node.links > 0) return absl::OkStatus();
  CATNAP_RETURN_IF_ERROR(image_->Free(node.inode, node.directory != nullptr));
  node.directory = nullptr;
  node.inode = 0;
  return absl::OkStatus();
}

absl::Status Tree::MakeRoom(const Place& place) {
  if (place.name.empty() ||
      (place.parent == kRoot && place.name == kLostAndFound)) {
    return Error(absl::StatusCode::kInvalidArgument, "{} must be a directory",
                 place.name.empty() ? "the root" : "lost+found");
  }
  const std::optional<Index> old = Find(place);
  if (!old.has_value()) return absl::OkStatus();
  const Directory* directory = nodes_[*old].directory.get();
  if (directory != nullptr && !directory->entries.empty()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "it was a directory with entries before");
  }
  auto& entries = nodes_[place.parent].directory->entries;
  entries.erase(entries.find(place.name));
  return Drop(*old);
}

absl::StatusOr<uint32_t> Tree::PrepareFile(const Place& place) {
  CATNAP_RETURN_IF_ERROR(MakeRoom(place));
  return image_->AllocateInode(false);
}

void Tree::Enter(const Place& place, uint32_t inode, uint8_t type) {
  nodes_[place.parent].directory->entries.insert_or_assign(
      std::string(place.name), static_cast<Index>(nodes_.size()));
  nodes_.push_back({.inode = inode, .type = type});
}

absl::Status Tree::AddDirectory(std::string_view path, Attributes attributes) {
  CATNAP_RETURN_IF_ERROR(CountFile());
  CATNAP_ASSIGN_OR_RETURN(const Place place, Locate(path, true));
  const std::optional<Index> old = Find(place);
  if (old.has_value() && nodes_[*old].directory != nullptr) {
    nodes_[*old].directory->attributes = std::move(attributes);
    return absl::OkStatus();
  }
  CATNAP_RETURN_IF_ERROR(MakeRoom(place));
  return NewDirectory(place.parent, place.name, std::move(attributes)).status();
}

absl::Status Tree::AddLink(std::string_view path, const std::string& target,
                           const Attributes& attributes) {
  if (target.empty() || target.size() > kMaxPathBytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "a symbolic link to {} bytes, must be 1 to {}", target.size(),
                 kMaxPathBytes);
  }
  CATNAP_RETURN_IF_ERROR(CountFile());
  CATNAP_ASSIGN_OR_RETURN(const Place place, Locate(path, true));
  CATNAP_ASSIGN_OR_RETURN(const uint32_t inode, PrepareFile(place));
  if (target.size() < Ext4Image::kFastLinkBytes) {
    CATNAP_RETURN_IF_ERROR(image_->WriteFastLink(inode, target, attributes));
  } else {
    // Linux wants the end of the text in the block, too; the padding is it.
    CATNAP_RETURN_IF_ERROR(data_.Append(
        0, {reinterpret_cast<const uint8_t*>(target.data()), target.size()}));
    CATNAP_ASSIGN_OR_RETURN(const auto content, data_.Finish(target.size()));
    CATNAP_RETURN_IF_ERROR(
        image_->WriteInode(inode, LINUX_S_IFLNK, 1, attributes, content));
  }
  Enter(place, inode, EXT2_FT_SYMLINK);
  return absl::OkStatus();
}

absl::Status Tree::AddSpecial(std::string_view path, uint16_t type,
                              uint64_t major, uint64_t minor,
                              const Attributes& attributes) {
  constexpr uint64_t kMajors = 1 << 12;
  constexpr uint64_t kMinors = 1 << 20;
  if (major >= kMajors || minor >= kMinors) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "device number {}:{}, must be at most {}:{}", major, minor,
                 kMajors - 1, kMinors - 1);
  }
  CATNAP_RETURN_IF_ERROR(CountFile());
  CATNAP_ASSIGN_OR_RETURN(const Place place, Locate(path, true));
  CATNAP_ASSIGN_OR_RETURN(const uint32_t inode, PrepareFile(place));
  CATNAP_RETURN_IF_ERROR(
      image_->WriteSpecial(inode, type, static_cast<uint32_t>(major),
                           static_cast<uint32_t>(minor), attributes));
  Enter(place, inode, EntryType(type));
  return absl::OkStatus();
}

absl::Status Tree::AddHardLink(std::string_view path, std::string_view target) {
  CATNAP_RETURN_IF_ERROR(CountFile());
  const auto from = Locate(target, false);
  const std::optional<Index> index =
      from.ok() ? Find(*from) : std::optional<Index>();
  if (!index.has_value()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "a hard link to what does not come before it");
  }
  if (nodes_[*index].directory != nullptr) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "a hard link to a directory");
  }
  CATNAP_ASSIGN_OR_RETURN(const Place place, Locate(path, true));
  if (Find(place) == index) return absl::OkStatus();  // Another name of itself.
  if (nodes_[*index].links >= kMaxLinks) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "more than {} names of one file", kMaxLinks);
  }
  CATNAP_RETURN_IF_ERROR(MakeRoom(place));
  ++nodes_[*index].links;
  nodes_[place.parent].directory->entries.emplace(std::string(place.name),
                                                  *index);
  return absl::OkStatus();
}

absl::Status Tree::BeginFile(std::string_view path) {
  CATNAP_RETURN_IF_ERROR(CountFile());
  CATNAP_ASSIGN_OR_RETURN(const Place place, Locate(path, true));
  // Before the content comes, so that the old one's blocks are free for it.
  CATNAP_RETURN_IF_ERROR(MakeRoom(place));
  file_parent_ = place.parent;
  file_name_ = std::string(place.name);
  return absl::OkStatus();
}

absl::Status Tree::Append(uint64_t offset, std::span<const uint8_t> bytes) {
  if (bytes.size() > limits_.bytes - bytes_) {
    return Error(absl::StatusCode::kResourceExhausted,
                 "more than {} bytes of content, which is the limit",
                 limits_.bytes);
  }
  bytes_ += bytes.size();
  return data_.Append(offset, bytes);
}

absl::Status Tree::EndFile(uint64_t size, const Attributes& attributes) {
  CATNAP_ASSIGN_OR_RETURN(const auto content, data_.Finish(size));
  CATNAP_ASSIGN_OR_RETURN(const uint32_t inode, image_->AllocateInode(false));
  CATNAP_RETURN_IF_ERROR(
      image_->WriteInode(inode, LINUX_S_IFREG, 1, attributes, content));
  Enter({.parent = file_parent_, .name = file_name_}, inode, EXT2_FT_REG_FILE);
  return absl::OkStatus();
}

absl::Status Tree::WriteDirectory(Index index) {
  const uint32_t inode = nodes_[index].inode;
  const Directory& directory = *nodes_[index].directory;
  DirectoryBlocks blocks;
  blocks.Add(inode, EXT2_FT_DIR, ".");
  blocks.Add(nodes_[directory.parent].inode, EXT2_FT_DIR, "..");
  uint32_t links = 2;
  for (const auto& [name, child] : directory.entries) {
    blocks.Add(nodes_[child].inode, nodes_[child].type, name);
    if (nodes_[child].directory != nullptr && links <= kMaxLinks) ++links;
  }
  const bool lost_and_found =
      directory.parent == kRoot && index != kRoot &&
      Find({.parent = kRoot, .name = kLostAndFound}) == index;
  while (lost_and_found &&
         blocks.bytes()->size() < kLostAndFoundBlocks * kBlockBytes) {
    blocks.NewBlock();
  }
  blocks.EndBlock();
  std::vector<uint8_t>* bytes = blocks.bytes();
  for (size_t at = 0; at < bytes->size(); at += kBlockBytes) {
    CATNAP_RETURN_IF_ERROR(image_->SealDirectoryBlock(
        inode, std::span(*bytes).subspan(at, kBlockBytes)));
  }
  CATNAP_RETURN_IF_ERROR(data_.Append(0, *bytes));
  CATNAP_ASSIGN_OR_RETURN(const auto content, data_.Finish(bytes->size()));
  return image_->WriteInode(inode, LINUX_S_IFDIR, links, directory.attributes,
                            content);
}

absl::Status Tree::Finish() {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const auto index = static_cast<Index>(i);
    if (nodes_[index].directory != nullptr) {
      CATNAP_RETURN_IF_ERROR(WriteDirectory(index));
    } else if (nodes_[index].links > 1) {
      CATNAP_RETURN_IF_ERROR(
          image_->SetLinks(nodes_[index].inode, nodes_[index].links));
    }
  }
  return absl::OkStatus();
}

}  // namespace catnap::rootfs
