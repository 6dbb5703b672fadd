#include "rootfs/archive_source.h"

#include <archive.h>
#include <archive_entry.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/status.h"
#include "rootfs/extended.h"
#include "rootfs/text.h"

namespace catnap::rootfs {
namespace {

// How much of a compressed file is read at once.
constexpr size_t kReadBytes = 256 << 10;

struct FreeArchive {
  void operator()(archive* reader) const { archive_read_free(reader); }
};
using Reader = std::unique_ptr<archive, FreeArchive>;

absl::Status Damaged(archive* reader, const std::string& what) {
  const char* text = archive_error_string(reader);
  return Error(absl::StatusCode::kDataLoss, "{}: {}", what,
               Quote(text == nullptr ? "no reason given" : text));
}

// A reader that knows what may come, and nothing that starts programs.
Reader NewReader() {
  Reader reader(archive_read_new());
  if (reader == nullptr) return nullptr;
  archive_read_support_filter_bzip2(reader.get());
  archive_read_support_filter_gzip(reader.get());
  archive_read_support_filter_xz(reader.get());
  archive_read_support_filter_zstd(reader.get());
  archive_read_support_format_tar(reader.get());
  return reader;
}

absl::Status ReadAcl(archive_entry* entry, bool is_default,
                     Attributes* attributes) {
  const int type = is_default ? ARCHIVE_ENTRY_ACL_TYPE_DEFAULT
                              : ARCHIVE_ENTRY_ACL_TYPE_ACCESS;
  if (archive_entry_acl_reset(entry, type) == 0) return absl::OkStatus();
  std::vector<AclEntry> list;
  while (true) {
    int got_type = 0;
    int permissions = 0;
    int tag = 0;
    int id = 0;
    const char* name = nullptr;
    const int result = archive_entry_acl_next(entry, type, &got_type,
                                              &permissions, &tag, &id, &name);
    if (result == ARCHIVE_EOF) break;
    if (result != ARCHIVE_OK) {
      return Error(absl::StatusCode::kDataLoss,
                   "its access control list cannot be read");
    }
    AclEntry item{.permissions = static_cast<uint16_t>(permissions & 7)};
    switch (tag) {
      case ARCHIVE_ENTRY_ACL_USER_OBJ:
        item.tag = kAclUserObject;
        break;
      case ARCHIVE_ENTRY_ACL_USER:
        item.tag = kAclUser;
        break;
      case ARCHIVE_ENTRY_ACL_GROUP_OBJ:
        item.tag = kAclGroupObject;
        break;
      case ARCHIVE_ENTRY_ACL_GROUP:
        item.tag = kAclGroup;
        break;
      case ARCHIVE_ENTRY_ACL_MASK:
        item.tag = kAclMask;
        break;
      case ARCHIVE_ENTRY_ACL_OTHER:
        item.tag = kAclOther;
        break;
      default:
        return Error(absl::StatusCode::kInvalidArgument,
                     "an access control list of a kind that Linux has not");
    }
    if (item.tag == kAclUser || item.tag == kAclGroup) {
      if (id < 0) {
        return Error(absl::StatusCode::kInvalidArgument,
                     "its access control list has names without numbers");
      }
      item.id = static_cast<uint32_t>(id);
    }
    list.push_back(item);
  }
  if (list.empty()) return absl::OkStatus();
  return AddAcl(is_default, std::move(list), attributes);
}

absl::Status ReadExtended(archive_entry* entry, Attributes* attributes) {
  archive_entry_xattr_reset(entry);
  const char* name = nullptr;
  const void* value = nullptr;
  size_t size = 0;
  while (archive_entry_xattr_next(entry, &name, &value, &size) == ARCHIVE_OK) {
    if (name == nullptr || !IsKeptAttribute(name)) continue;
    CATNAP_RETURN_IF_ERROR(AddExtended(
        name, {static_cast<const char*>(value), value == nullptr ? 0 : size},
        attributes));
  }
  CATNAP_RETURN_IF_ERROR(ReadAcl(entry, false, attributes));
  if (archive_entry_filetype(entry) == AE_IFDIR) {
    CATNAP_RETURN_IF_ERROR(ReadAcl(entry, true, attributes));
  }
  return absl::OkStatus();
}

absl::StatusOr<Attributes> ReadAttributes(archive_entry* entry,
                                          const Owners& owners) {
  Attributes attributes;
  attributes.permissions =
      static_cast<uint16_t>(archive_entry_perm(entry) & 07777);
  const auto uid = base::CheckedCast<uint32_t>(archive_entry_uid(entry));
  const auto gid = base::CheckedCast<uint32_t>(archive_entry_gid(entry));
  // The last number stands for "nobody" in the calls that take one.
  if (!uid.has_value() || !gid.has_value() || *uid == UINT32_MAX ||
      *gid == UINT32_MAX) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "owner {}:{}, must be numbers from 0 to {}",
                 archive_entry_uid(entry), archive_entry_gid(entry),
                 UINT32_MAX - 1);
  }
  attributes.uid = *uid;
  attributes.gid = *gid;
  attributes.mtime_seconds = archive_entry_mtime(entry);
  attributes.mtime_nanoseconds =
      static_cast<uint32_t>(archive_entry_mtime_nsec(entry));
  owners.Apply(&attributes);
  CATNAP_RETURN_IF_ERROR(ReadExtended(entry, &attributes));
  return attributes;
}

absl::Status ReadContent(archive* reader, archive_entry* entry, uint64_t size,
                         Tree* tree) {
  while (true) {
    const void* data = nullptr;
    size_t length = 0;
    la_int64_t offset = 0;
    const int result = archive_read_data_block(reader, &data, &length, &offset);
    if (result == ARCHIVE_EOF) return absl::OkStatus();
    if (result != ARCHIVE_OK) return Damaged(reader, "its content");
    if (length == 0) continue;
    if (offset < 0 ||
        !base::InRange<uint64_t>(static_cast<uint64_t>(offset), length, size)) {
      return Error(absl::StatusCode::kDataLoss,
                   "{} bytes at offset {} of a file of {}", length, offset,
                   archive_entry_size(entry));
    }
    CATNAP_RETURN_IF_ERROR(
        tree->Append(static_cast<uint64_t>(offset),
                     {static_cast<const uint8_t*>(data), length}));
  }
}

absl::Status AddEntry(archive* reader, archive_entry* entry, const char* path,
                      const Owners& owners, Tree* tree) {
  if (const char* target = archive_entry_hardlink(entry); target != nullptr) {
    return AddContext(tree->AddHardLink(path, target),
                      "link to " + Quote(target));
  }
  CATNAP_ASSIGN_OR_RETURN(Attributes attributes, ReadAttributes(entry, owners));
  const auto type = archive_entry_filetype(entry);
  switch (type) {
    case AE_IFDIR:
      return tree->AddDirectory(path, std::move(attributes));
    case AE_IFLNK: {
      const char* target = archive_entry_symlink(entry);
      return tree->AddLink(path, target == nullptr ? "" : target, attributes);
    }
    case AE_IFREG: {
      const la_int64_t size = archive_entry_size(entry);
      if (size < 0) {
        return Error(absl::StatusCode::kDataLoss, "a size of {} bytes", size);
      }
      CATNAP_RETURN_IF_ERROR(tree->BeginFile(path));
      CATNAP_RETURN_IF_ERROR(
          ReadContent(reader, entry, static_cast<uint64_t>(size), tree));
      return tree->EndFile(static_cast<uint64_t>(size), attributes);
    }
    case AE_IFIFO:
    case AE_IFSOCK:
    case AE_IFCHR:
    case AE_IFBLK:
      return tree->AddSpecial(path, static_cast<uint16_t>(type),
                              archive_entry_rdevmajor(entry),
                              archive_entry_rdevminor(entry), attributes);
    default:
      return Error(absl::StatusCode::kInvalidArgument,
                   "a kind of file ({:o}) that Linux has not", type);
  }
}

// A tar that was cut off between two entries reads like a whole one, but for
// the empty block that should follow the last.
absl::Status CheckEnd(archive* reader) {
  if (archive_filter_bytes(reader, 0) > archive_read_header_position(reader)) {
    return absl::OkStatus();
  }
  return Error(absl::StatusCode::kDataLoss,
               "the archive has no end; it was cut off after {} bytes",
               archive_filter_bytes(reader, 0));
}

absl::Status AddAll(archive* reader, const Owners& owners, Tree* tree) {
  while (true) {
    archive_entry* entry = nullptr;
    const int result = archive_read_next_header(reader, &entry);
    if (result == ARCHIVE_EOF) return CheckEnd(reader);
    const char* path = result == ARCHIVE_OK || result == ARCHIVE_WARN
                           ? archive_entry_pathname(entry)
                           : nullptr;
    // A warning, too: something of the entry was not understood.
    if (result != ARCHIVE_OK || path == nullptr) {
      return Damaged(reader, path == nullptr ? "the archive" : Quote(path));
    }
    CATNAP_RETURN_IF_ERROR(
        AddContext(AddEntry(reader, entry, path, owners, tree), Quote(path)));
  }
}

}  // namespace

absl::Status AddArchive(int fd, const Owners& owners, Tree* tree) {
  const Reader reader = NewReader();
  if (reader == nullptr) return absl::ResourceExhaustedError("out of memory");
  if (archive_read_open_fd(reader.get(), fd, kReadBytes) != ARCHIVE_OK) {
    return Damaged(reader.get(), "the archive");
  }
  return AddAll(reader.get(), owners, tree);
}

absl::Status AddArchive(std::span<const uint8_t> bytes, const Owners& owners,
                        Tree* tree) {
  const Reader reader = NewReader();
  if (reader == nullptr) return absl::ResourceExhaustedError("out of memory");
  if (archive_read_open_memory(reader.get(), bytes.data(), bytes.size()) !=
      ARCHIVE_OK) {
    return Damaged(reader.get(), "the archive");
  }
  return AddAll(reader.get(), owners, tree);
}

}  // namespace catnap::rootfs
