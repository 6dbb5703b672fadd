#include "memory_use.h"

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <system_error>

namespace catnap::bench {
namespace {

bool IsGuestMemory(std::istringstream& flags) {
  bool no_fork = false;
  bool no_dump = false;
  bool no_huge_pages = false;
  for (std::string flag; flags >> flag;) {
    no_fork = no_fork || flag == "dc";
    no_dump = no_dump || flag == "dd";
    no_huge_pages = no_huge_pages || flag == "nh";
  }
  return no_fork && no_dump && no_huge_pages;
}

absl::Status AddMappings(MemoryUse* use) {
  std::ifstream smaps("/proc/self/smaps");
  int64_t anonymous = 0;  // Of the mapping whose lines are read.
  bool has_any = false;
  for (std::string line; std::getline(smaps, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    if (name == "Anonymous:") {
      words >> anonymous;
    } else if (name == "VmFlags:") {  // The last line of each.
      has_any = true;
      (IsGuestMemory(words) ? use->guest_private : use->vmm_anonymous) +=
          anonymous;
      anonymous = 0;
    }
  }
  if (has_any) return absl::OkStatus();
  return absl::DataLossError("/proc/self/smaps has no mapping with VmFlags");
}

absl::Status AddTemplates(MemoryUse* use) {
  std::error_code error;
  std::set<ino_t> seen;
  for (std::filesystem::directory_iterator at("/proc/self/fd", error), end;
       !error && at != end; at.increment(error)) {
    std::error_code gone;
    const std::string target =
        std::filesystem::read_symlink(at->path(), gone).string();
    struct stat file {};
    if (target.rfind("/memfd:", 0) != 0 ||
        ::stat(at->path().c_str(), &file) != 0 ||
        !seen.insert(file.st_ino).second) {
      continue;
    }
    use->templates += file.st_blocks / 2;  // Of 512 bytes.
  }
  if (!error) return absl::OkStatus();
  return absl::InternalError("read /proc/self/fd: " + error.message());
}

absl::Status AddHost(MemoryUse* use) {
  std::ifstream meminfo("/proc/meminfo");
  for (std::string line; std::getline(meminfo, line);) {
    std::istringstream words(line);
    std::string name;
    if (words >> name && name == "MemAvailable:" &&
        words >> use->host_available) {
      return absl::OkStatus();
    }
  }
  return absl::DataLossError("/proc/meminfo has no MemAvailable");
}

}  // namespace

absl::StatusOr<MemoryUse> ReadMemoryUse() {
  MemoryUse use;
  absl::Status status = AddMappings(&use);
  if (status.ok()) status = AddTemplates(&use);
  if (status.ok()) status = AddHost(&use);
  if (!status.ok()) return status;
  return use;
}

}  // namespace catnap::bench
