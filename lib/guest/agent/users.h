#ifndef CATNAP_LIB_GUEST_AGENT_USERS_H_
#define CATNAP_LIB_GUEST_AGENT_USERS_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace catnap::guest {

struct User {
  uid_t uid = 0;
  gid_t gid = 0;
  std::vector<gid_t> groups{};  // Supplementary.
  std::string home = "/";
};

// Resolves "name", "uid", either with ":group" (a name or a gid), and "" (root)
// as container images mean it: a number need not be in /etc/passwd, a name has
// to. Own parser, since a static C library has no name service switch.
std::optional<User> FindUser(std::string_view spec,
                             const std::string& passwd = "/etc/passwd",
                             const std::string& group = "/etc/group");

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_USERS_H_
