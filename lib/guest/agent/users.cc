#include "guest/agent/users.h"

#include <algorithm>
#include <charconv>
#include <cstdint>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

constexpr size_t kMaxFileBytes = 1 << 20;
constexpr size_t kMaxGroups = 1024;

std::optional<uint32_t> Number(std::string_view text) {
  uint32_t value = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() ||
      end != text.data() + text.size() || value == UINT32_MAX) {
    return std::nullopt;
  }
  return value;
}

}  // namespace

std::optional<User> FindUser(std::string_view spec, const std::string& passwd,
                             const std::string& group) {
  User user;
  const size_t colon = spec.find(':');
  const std::string_view name = spec.substr(0, colon);
  const std::optional<uint32_t> uid = name.empty() ? 0 : Number(name);
  bool found = false;
  std::string login;
  const std::string users = ReadText(passwd, kMaxFileBytes);
  for (std::string_view line : Split(users, '\n')) {
    const auto fields = Split(line, ':');
    if (fields.size() < 6) continue;
    const auto its_uid = Number(fields[2]);
    const auto its_gid = Number(fields[3]);
    if (!its_uid.has_value() || !its_gid.has_value()) continue;
    if (uid.has_value() ? *its_uid != *uid : fields[0] != name) continue;
    login = fields[0];
    user.uid = *its_uid;
    user.gid = *its_gid;
    if (!fields[5].empty()) user.home = fields[5];
    found = true;
    break;
  }
  if (!found) {
    if (!uid.has_value()) return std::nullopt;
    user.uid = *uid;
  }
  const bool own_group = colon != std::string_view::npos;
  const std::string_view wanted = own_group ? spec.substr(colon + 1) : "";
  std::optional<uint32_t> gid = Number(wanted);
  const std::string groups = ReadText(group, kMaxFileBytes);
  for (std::string_view line : Split(groups, '\n')) {
    const auto fields = Split(line, ':');
    if (fields.size() < 4) continue;
    const auto its_gid = Number(fields[2]);
    if (!its_gid.has_value()) continue;
    if (own_group && !gid.has_value() && fields[0] == wanted) gid = its_gid;
    const auto members = Split(fields[3], ',');
    if (!login.empty() && user.groups.size() < kMaxGroups &&
        std::find(members.begin(), members.end(), login) != members.end()) {
      user.groups.push_back(*its_gid);
    }
  }
  if (own_group) {
    if (!gid.has_value()) return std::nullopt;
    user.gid = *gid;
  }
  return user;
}

}  // namespace catnap::guest
