#include "guest/agent/cgroup.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

constexpr size_t kMaxFree = 8;
constexpr size_t kMaxStateBytes = 4096;
constexpr int kKillWaits = 1000;  // Of a millisecond.

}  // namespace

CgroupPool::CgroupPool(const std::string& root) {
  if (root.empty()) return;
  // More controllers than there are is an error for all: one by one.
  for (const char* controller : {"+memory", "+cpu", "+pids"}) {
    WriteText(root + "/cgroup.subtree_control", controller);
  }
  // A name of its own: an agent that was killed has left its group, and another
  // process gets its number.
  std::string base = root + "/catnap.XXXXXX";
  if (mkdtemp(base.data()) == nullptr || chmod(base.c_str(), 0755) != 0) return;
  for (const char* controller : {"+memory", "+cpu", "+pids"}) {
    WriteText(base + "/cgroup.subtree_control", controller);
  }
  base_ = base;
  free_.push_back(Make());
}

CgroupPool::~CgroupPool() {
  for (const Cgroup& group : free_) Remove(group);
  for (Cgroup& group : inhabited_) {
    Kill(&group);
    for (int i = 0; i < kKillWaits && !IsEmpty(group); ++i) usleep(1000);
    Remove(group);
  }
  if (!base_.empty()) rmdir(base_.c_str());
}

Cgroup CgroupPool::Make() {
  Cgroup group;
  group.path = base_ + "/" + std::to_string(next_++);
  if (mkdir(group.path.c_str(), 0755) != 0) return {};
  group.fd = open(group.path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  return group;
}

void CgroupPool::Remove(const Cgroup& group) {
  if (!group.valid()) return;
  close(group.fd);
  rmdir(group.path.c_str());
}

bool CgroupPool::IsEmpty(const Cgroup& group) {
  const std::string events =
      ReadText(group.path + "/cgroup.events", kMaxStateBytes);
  return events.find("populated 0") != std::string::npos;
}

Cgroup CgroupPool::Take() {
  if (!available()) return {};
  if (free_.empty()) {
    // Groups whose last process has ended meanwhile.
    std::vector<Cgroup> still;
    for (Cgroup& group : std::exchange(inhabited_, {})) {
      if (IsEmpty(group)) {
        Keep(std::move(group));
      } else {
        still.push_back(std::move(group));
      }
    }
    inhabited_ = std::move(still);
  }
  if (free_.empty()) return Make();
  Cgroup group = std::move(free_.back());
  free_.pop_back();
  return group;
}

bool CgroupPool::LimitMemory(Cgroup* group, uint64_t bytes) {
  if (!group->valid()) return false;
  group->limited = true;
  if (!WriteText(group->path + "/memory.max", std::to_string(bytes))) {
    return false;
  }
  // All of the tree or nothing: half a tree is of no use to anybody.
  WriteText(group->path + "/memory.oom.group", "1");
  WriteText(group->path + "/memory.swap.max", "0");
  return true;
}

bool CgroupPool::HitMemoryLimit(const Cgroup& group) {
  if (!group.valid() || !group.limited) return false;
  const std::string events =
      ReadText(group.path + "/memory.events", kMaxStateBytes);
  for (const std::string_view line : Split(events, '\n')) {
    if (line.starts_with("oom_kill ")) return line != "oom_kill 0";
  }
  return false;
}

void CgroupPool::Kill(Cgroup* group) {
  if (!group->valid()) return;
  group->killed = true;
  WriteText(group->path + "/cgroup.kill", "1");
}

void CgroupPool::Return(Cgroup group) {
  if (!group.valid()) return;
  if (IsEmpty(group)) {
    Keep(std::move(group));
  } else {
    inhabited_.push_back(std::move(group));
  }
}

void CgroupPool::Keep(Cgroup group) {
  if (group.limited || group.killed || free_.size() >= kMaxFree) {
    // Limits, counters and the kill are not for the next one.
    Remove(group);
  } else {
    free_.push_back(std::move(group));
  }
}

}  // namespace catnap::guest
