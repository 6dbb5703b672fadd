#include "rootfs/extended.h"

#include <algorithm>
#include <string>
#include <tuple>

#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::rootfs {
namespace {

constexpr std::string_view kUserPrefix = "user.";
constexpr std::string_view kCapability = "security.capability";
constexpr std::string_view kAccessAcl = "system.posix_acl_access";
constexpr std::string_view kDefaultAcl = "system.posix_acl_default";

// What ext4 takes without a file for each value: all of an inode's attributes
// lie in one block. The library checks the sum.
constexpr size_t kMaxNameBytes = 255;
constexpr size_t kMaxValueBytes = kBlockBytes;
constexpr size_t kMaxAttributes = 128;

// Linux's form of a list: a version, then entries of tag, permissions and id.
constexpr uint32_t kAclVersion = 2;
constexpr size_t kAclHeaderBytes = 4;
constexpr size_t kAclEntryBytes = 8;

absl::Status CheckAcl(std::string_view value) {
  const auto bad = [] {
    return Error(absl::StatusCode::kInvalidArgument,
                 "its access control list is none");
  };
  if (value.size() <= kAclHeaderBytes ||
      (value.size() - kAclHeaderBytes) % kAclEntryBytes != 0 ||
      base::LoadLe<uint32_t>(value.data()) != kAclVersion) {
    return bad();
  }
  constexpr uint16_t kTags = kAclUserObject | kAclUser | kAclGroupObject |
                             kAclGroup | kAclMask | kAclOther;
  for (size_t at = kAclHeaderBytes; at < value.size(); at += kAclEntryBytes) {
    const auto tag = base::LoadLe<uint16_t>(value.data() + at);
    const bool one = tag != 0 && (tag & (tag - 1)) == 0;
    if (!one || (tag & ~kTags) != 0) return bad();
  }
  return absl::OkStatus();
}

}  // namespace

bool IsKeptAttribute(std::string_view name) {
  return name.starts_with(kUserPrefix) || name == kCapability ||
         name == kAccessAcl || name == kDefaultAcl;
}

absl::Status AddExtended(std::string_view name, std::string_view value,
                         Attributes* attributes) {
  if (name == kUserPrefix || name.size() > kMaxNameBytes ||
      value.size() > kMaxValueBytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "an extended attribute with a name of {} and a value of {} "
                 "bytes, must have at most {} and {}",
                 name.size(), value.size(), kMaxNameBytes, kMaxValueBytes);
  }
  if (name == kAccessAcl || name == kDefaultAcl) {
    CATNAP_RETURN_IF_ERROR(CheckAcl(value));
  }
  auto& all = attributes->extended;
  const auto same = std::find_if(
      all.begin(), all.end(),
      [name](const ExtendedAttribute& other) { return other.name == name; });
  if (same != all.end()) {
    same->value = std::string(value);
    return absl::OkStatus();
  }
  if (all.size() >= kMaxAttributes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "more than {} extended attributes", kMaxAttributes);
  }
  all.push_back({.name = std::string(name), .value = std::string(value)});
  return absl::OkStatus();
}

absl::Status AddAcl(bool is_default, std::vector<AclEntry> entries,
                    Attributes* attributes) {
  std::sort(entries.begin(), entries.end(),
            [](const AclEntry& a, const AclEntry& b) {
              return std::tie(a.tag, a.id) < std::tie(b.tag, b.id);
            });
  std::string value(kAclHeaderBytes + entries.size() * kAclEntryBytes, '\0');
  base::StoreLe<uint32_t>(value.data(), kAclVersion);
  char* at = value.data() + kAclHeaderBytes;
  for (const AclEntry& entry : entries) {
    const bool has_id = entry.tag == kAclUser || entry.tag == kAclGroup;
    base::StoreLe<uint16_t>(at, entry.tag);
    base::StoreLe<uint16_t>(at + 2, entry.permissions);
    base::StoreLe<uint32_t>(at + 4, has_id ? entry.id : UINT32_MAX);
    at += kAclEntryBytes;
  }
  return AddExtended(is_default ? kDefaultAcl : kAccessAcl, value, attributes);
}

}  // namespace catnap::rootfs
