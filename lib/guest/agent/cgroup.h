#ifndef CATNAP_LIB_GUEST_AGENT_CGROUP_H_
#define CATNAP_LIB_GUEST_AGENT_CGROUP_H_

#include <cstdint>
#include <string>
#include <vector>

namespace catnap::guest {

// The control group of one exec or of the application. Empty: there is none.
struct Cgroup {
  std::string path{};
  int fd = -1;  // Of the directory, for clone3().
  bool limited = false;
  bool killed = false;
  bool valid() const { return fd >= 0; }
};

// Every process gets a group of its own, since nothing else finds all of a tree
// at a timeout or a cancel: not the session, which a daemon leaves, nor the
// parents, who die. Making and removing a group costs more than a short exec,
// so empty groups are kept and given out again, unless they had a limit or were
// killed: newer kernels kill each process that clone3() puts into a group that
// was killed once (seen with 6.18). A group that children still live in waits
// until they are gone. All are below one group, which is what is
// frozen before a suspend.
class CgroupPool {
 public:
  // `root` is a cgroup2 directory that may be written to, or "" for no groups.
  explicit CgroupPool(const std::string& root);
  ~CgroupPool();
  CgroupPool(const CgroupPool&) = delete;
  CgroupPool& operator=(const CgroupPool&) = delete;

  // Not valid() when there are none.
  Cgroup Take();
  // False: this kernel or root cannot limit memory.
  static bool LimitMemory(Cgroup* group, uint64_t bytes);
  static bool HitMemoryLimit(const Cgroup& group);
  static void Kill(Cgroup* group);
  // Its process has ended; others may live on in it.
  void Return(Cgroup group);
  bool available() const { return !base_.empty(); }
  // The directory that all groups are below; "" when there are none.
  const std::string& base() const { return base_; }

 private:
  Cgroup Make();
  // Takes an empty group back.
  void Keep(Cgroup group);
  static bool IsEmpty(const Cgroup& group);
  static void Remove(const Cgroup& group);

  std::string base_;
  std::vector<Cgroup> free_;
  std::vector<Cgroup> inhabited_;
  uint64_t next_ = 1;
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_CGROUP_H_
