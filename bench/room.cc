#include "room.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <system_error>
#include <vector>

#include "catnap/network.h"
#include "harness.h"

namespace catnap::bench {
namespace {

namespace fs = std::filesystem;

// How many of the file's pages are in the page cache.
size_t CachedPages(int fd, uint64_t bytes) {
  void* const at = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  if (at == MAP_FAILED) Check("mmap", absl::ErrnoToStatus(errno, "mmap"));
  std::vector<unsigned char> pages((bytes + 4095) / 4096);
  const int result = ::mincore(at, bytes, pages.data());
  ::munmap(at, bytes);
  if (result != 0) Check("mincore", absl::ErrnoToStatus(errno, "mincore"));
  return static_cast<size_t>(
      std::count_if(pages.begin(), pages.end(),
                    [](unsigned char page) { return (page & 1) != 0; }));
}

}  // namespace

bool IsEmulated() {
  // No thread changes the environment here.
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  return std::getenv("CATNAP_EMULATED_HOST") != nullptr;
}

Room::Room() {
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  const char* const temporary = std::getenv("TMPDIR");
  std::string path = IsEmulated()           ? "/scratch/ext4"
                     : temporary != nullptr ? temporary
                                            : "/tmp";
  path += "/catnap-bench-XXXXXX";
  if (::mkdtemp(path.data()) == nullptr) {
    Check(path.c_str(), absl::InternalError("mkdtemp failed"));
  }
  path_ = path;
}

Room::~Room() {
  std::error_code error;
  fs::remove_all(path_, error);
}

std::string FindRootfs(const std::string& source) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  if (const char* named = std::getenv("CATNAP_BENCH_ROOTFS")) return named;
  std::string path;
  const std::string command = source + "/examples/debian_rootfs.sh";
  // NOLINTNEXTLINE(cert-env33-c): a script of ours.
  std::FILE* const made = ::popen(command.c_str(), "re");
  if (made == nullptr) Check("debian_rootfs.sh", absl::InternalError("popen"));
  for (int c = std::fgetc(made); c != EOF && c != '\n'; c = std::fgetc(made)) {
    path.push_back(static_cast<char>(c));
  }
  if (::pclose(made) != 0 || path.empty()) {
    Check("debian_rootfs.sh", absl::InternalError("failed"));
  }
  return path;
}

void DropFromCache(const std::string& directory) {
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file() || entry.file_size() == 0) continue;
    const std::string path = entry.path();
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd.valid() || ::fsync(fd.get()) != 0 ||
        ::posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED) != 0) {
      Check(path.c_str(), absl::InternalError("cannot drop its page cache"));
    }
    if (const size_t left = CachedPages(fd.get(), entry.file_size())) {
      Check(path.c_str(),
            absl::InternalError(std::to_string(left) +
                                " pages stay in the page cache: it is mapped"));
    }
  }
}

}  // namespace catnap::bench
