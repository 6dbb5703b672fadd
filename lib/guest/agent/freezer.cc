#include "guest/agent/freezer.h"

#include <dirent.h>

#include <algorithm>
#include <cerrno>
#include <string_view>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

constexpr size_t kMaxStateBytes = 4096;

}  // namespace

int Freezer::Freeze(const std::string& path) {
  const std::string file = path + "/cgroup.freeze";
  // Somebody else's freeze is not ours to end.
  if (ReadText(file, kMaxStateBytes) == "1\n") return 0;
  if (!WriteText(file, "1")) return errno;
  frozen_.push_back(path);
  return 0;
}

int Freezer::Start() {
  if (base_.empty()) return EOPNOTSUPP;
  const int error = Freeze(base_);
  if (error != 0 || root_.empty()) return error;
  DIR* const directory = opendir(root_.c_str());
  if (directory == nullptr) return 0;
  while (const dirent* const entry = readdir(directory)) {
    if (entry->d_type != DT_DIR || entry->d_name[0] == '.') continue;
    const std::string path = root_ + "/" + entry->d_name;
    if (path != base_) Freeze(path);  // One that went meanwhile is no matter.
  }
  closedir(directory);
  return 0;
}

bool Freezer::IsComplete() const {
  return std::all_of(
      frozen_.begin(), frozen_.end(), [](const std::string& path) {
        const std::string events =
            ReadText(path + "/cgroup.events", kMaxStateBytes);
        // Gone: its last process has ended.
        return events.empty() || events.find("frozen 1") != std::string::npos;
      });
}

void Freezer::Thaw() {
  // The agent's own is the first, and programs are to go on together.
  for (const std::string& path : frozen_) {
    WriteText(path + "/cgroup.freeze", "0");
  }
  frozen_.clear();
}

}  // namespace catnap::guest
