#include "guest/agent/identity.h"

#include <fcntl.h>
#include <linux/random.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

constexpr const char* kMachineId = "/etc/machine-id";
constexpr const char* kMachineIdDraft = "/etc/.machine-id.catnap";
constexpr size_t kMaxText = 256;

// With O_EXCL a new file, without also over one that is there; never what a
// link leads to.
int WriteFile(const std::string& path, std::string_view text, int flags) {
  if ((flags & O_EXCL) != 0) unlink(path.c_str());
  const int fd = open(
      path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | flags, 0444);
  if (fd < 0) return errno;
  fchmod(fd, 0444);
  const ssize_t written = write(fd, text.data(), text.size());
  const int error = written < 0 ? errno : 0;
  close(fd);
  if (written == static_cast<ssize_t>(text.size())) return 0;
  unlink(path.c_str());
  return error != 0 ? error : ENOSPC;
}

std::string CoverOf(const std::string& run_directory) {
  return run_directory + "/machine-id";
}

// Whether programs see `ours` as the machine's id.
bool Covers(const std::string& ours) {
  struct stat own {};
  struct stat seen {};
  return stat(ours.c_str(), &own) == 0 && stat(kMachineId, &seen) == 0 &&
         own.st_dev == seen.st_dev && own.st_ino == seen.st_ino;
}

// Into the file that is there, which takes no memory but what it has.
int WriteOver(const std::string& path, std::string_view text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return errno;
  const auto size = static_cast<ssize_t>(text.size());
  const ssize_t written = pwrite(fd, text.data(), text.size(), 0);
  int error = written < 0 ? errno : 0;
  if (error == 0 && written != size) error = ENOSPC;
  if (error == 0 && ftruncate(fd, size) != 0) error = errno;
  close(fd);
  return error;
}

std::string Hex(const agent::MachineId& id) {
  std::string text;
  for (const uint8_t byte : id) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text + "\n";
}

}  // namespace

uint64_t MonotonicNow() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<uint64_t>(time.tv_sec) * 1'000'000'000 +
         static_cast<uint64_t>(time.tv_nsec);
}

int SetWallClock(uint64_t ns_since_1970, uint64_t monotonic_ns) {
  const uint64_t now = MonotonicNow();
  if (monotonic_ns != 0 && monotonic_ns <= now) {
    ns_since_1970 += now - monotonic_ns;
  }
  timespec time{};
  time.tv_sec = static_cast<time_t>(ns_since_1970 / 1'000'000'000);
  time.tv_nsec = static_cast<long>(ns_since_1970 % 1'000'000'000);  // NOLINT
  return clock_settime(CLOCK_REALTIME, &time) == 0 ? 0 : errno;
}

int MixEntropy(std::span<const uint8_t> entropy) {
  struct {
    int entropy_count;  // In bits.
    int buf_size;
    std::array<uint8_t, agent::kMaxEntropyBytes> bytes;
  } pool{};
  static_assert(offsetof(rand_pool_info, buf) == 8);
  const size_t size = std::min(entropy.size(), pool.bytes.size());
  pool.entropy_count = static_cast<int>(size * 8);
  pool.buf_size = static_cast<int>(size);
  std::copy_n(entropy.begin(), size, pool.bytes.begin());
  const int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
  if (fd < 0) return errno;
  int error = 0;
  if (ioctl(fd, RNDADDENTROPY, &pool) != 0) error = errno;
  if (error == 0 && ioctl(fd, RNDRESEEDCRNG) != 0) error = errno;
  close(fd);
  explicit_bzero(&pool, sizeof(pool));
  return error;
}

int SetHostname(const std::string& name) {
  return sethostname(name.data(), name.size()) == 0 ? 0 : errno;
}

void CoverMachineId(const std::string& run_directory) {
  const std::string ours = CoverOf(run_directory);
  // For a mount to have a place. Where it cannot be made, one may be there.
  const int fd =
      open(kMachineId,
           O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY,
           0444);
  if (fd < 0) return;
  close(fd);
  if (WriteFile(ours, ReadText(kMachineId, kMaxText), O_TRUNC) == 0) {
    mount(ours.c_str(), kMachineId, nullptr, MS_BIND, nullptr);
  }
}

int SetMachineId(const agent::MachineId& id, const std::string& run_directory) {
  const std::string text = Hex(id);
  const std::string ours = CoverOf(run_directory);
  if (!run_directory.empty() && Covers(ours)) return WriteOver(ours, text);
  if (ReadText(kMachineId, kMaxText) == text) return 0;
  int error = WriteFile(kMachineIdDraft, text, O_EXCL);
  if (error == ENOENT) return 0;
  if (error == 0 && rename(kMachineIdDraft, kMachineId) != 0) {
    error = errno;  // EBUSY: something is mounted there.
    unlink(kMachineIdDraft);
  }
  if (error == 0 || run_directory.empty()) return error;
  const int written = WriteFile(ours, text, O_TRUNC);
  if (written != 0) return written;
  // It may be in place since the last time.
  if (ReadText(kMachineId, kMaxText) == text) return 0;
  if (mount(ours.c_str(), kMachineId, nullptr, MS_BIND, nullptr) == 0) return 0;
  return errno == ENOENT ? 0 : errno;
}

}  // namespace catnap::guest
