#include "io/ring.h"

#include <array>
#include <cerrno>
#include <fstream>

#include "base/status.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace catnap::io {
namespace {

// liburing unmaps a ring by system calls of its own, which the thread sanitizer
// does not see: it takes the ring that another thread gets at the same address
// for the one before. These say that all rings that are gone come first.
#if defined(__SANITIZE_THREAD__)
char ring_memory;
void BeforeRingEnds() { __tsan_release(&ring_memory); }
void AfterRingBegins() { __tsan_acquire(&ring_memory); }
#else
void BeforeRingEnds() {}
void AfterRingBegins() {}
#endif

// What we rely on: completions are never dropped, waiting takes a timeout
// without an entry of its own, and multishot polls (same kernel as the tags).
constexpr unsigned kNeededFeatures =
    IORING_FEAT_NODROP | IORING_FEAT_EXT_ARG | IORING_FEAT_RSRC_TAGS;

// From the cheapest mode to the one that every kernel has. Deferred task work
// runs when this thread asks for completions instead of interrupting it.
constexpr auto kModes = std::to_array<unsigned>({
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
        IORING_SETUP_SUBMIT_ALL,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
    0,
});

std::string DisabledSysctl() {
  std::ifstream in("/proc/sys/kernel/io_uring_disabled");
  std::string value;
  std::getline(in, value);
  return value.empty() ? "not known to this kernel" : value;
}

absl::Status Refused(int error) {
  switch (error) {
    case EPERM:
    case EACCES:
      return Error(absl::StatusCode::kPermissionDenied,
                   "io_uring is refused: {}; a seccomp filter or the sysctl "
                   "kernel.io_uring_disabled (is {}) forbids it",
                   ErrnoText(error), DisabledSysctl());
    case ENOSYS:
      return Error(absl::StatusCode::kUnimplemented,
                   "io_uring is refused: this kernel was built without it");
    case ENOMEM:
      return AddContext(ErrnoError(error, "io_uring_setup"),
                        "io_uring is refused (RLIMIT_MEMLOCK also counts "
                        "before kernel 5.12)");
    default:
      return AddContext(ErrnoError(error, "io_uring_setup"),
                        "io_uring is refused");
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Ring>> Ring::Create(unsigned entries) {
  if (entries == 0 || entries > kMaxEntries) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "ring entries is {}, must be 1 to {}", entries, kMaxEntries);
  }
  std::unique_ptr<Ring> ring(new Ring);
  io_uring_params params{};
  int result = -EINVAL;
  for (const unsigned mode : kModes) {
    params = {};
    params.flags = mode | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    params.cq_entries = 4 * entries;
    result = io_uring_queue_init_params(entries, &ring->ring_, &params);
    if (result != -EINVAL) break;
  }
  if (result != 0) return Refused(-result);
  AfterRingBegins();
  ring->open_ = true;
  ring->completion_entries_ = params.cq_entries;
  if ((params.features & kNeededFeatures) != kNeededFeatures) {
    return Error(absl::StatusCode::kUnimplemented,
                 "io_uring of this kernel is too old: features {:#x}, needed "
                 "{:#x} (kernel 5.13)",
                 params.features, kNeededFeatures);
  }
  if (const int error = io_uring_ring_dontfork(&ring->ring_); error != 0) {
    return ErrnoError(-error, "keep the io_uring out of forked children");
  }
  CATNAP_RETURN_IF_ERROR(ring->Prove());
  return ring;
}

Ring::~Ring() {
  if (!open_) return;
  BeforeRingEnds();
  io_uring_queue_exit(&ring_);
}

absl::Status Ring::Prove() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  io_uring_prep_nop(sqe);
  sqe->user_data = 0;
  io_uring_cqe* cqe = nullptr;
  int result = io_uring_submit(&ring_);
  if (result >= 0) result = io_uring_wait_cqe(&ring_, &cqe);
  if (result < 0) return Refused(-result);
  io_uring_cqe_seen(&ring_, cqe);
  return absl::OkStatus();
}

bool Ring::RegisterBuffer(void* data, size_t size) {
  const iovec buffer = {data, size};
  return io_uring_register_buffers(&ring_, &buffer, 1) == 0;
}

io_uring_sqe* Ring::GetSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe != nullptr) return sqe;
  // A failed or partial submission keeps its entries; the caller reaps and
  // comes again.
  io_uring_submit(&ring_);
  return io_uring_get_sqe(&ring_);
}

void Ring::Wait(std::optional<std::chrono::nanoseconds> timeout) {
  // Whatever fails here (a timeout, a signal, a backlog of completions, no
  // memory) is for the caller the same as waking up without a completion.
  if (!timeout.has_value()) {
    io_uring_submit_and_wait(&ring_, 1);
    return;
  }
  if (timeout->count() <= 0) {
    io_uring_submit_and_get_events(&ring_);
    return;
  }
  const auto seconds =
      std::chrono::duration_cast<std::chrono::seconds>(*timeout);
  __kernel_timespec limit{};
  limit.tv_sec = seconds.count();
  limit.tv_nsec = (*timeout - seconds).count();
  io_uring_cqe* cqe = nullptr;
  io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &limit, nullptr);
}

std::string Ring::Description() const {
  if ((ring_.flags & IORING_SETUP_DEFER_TASKRUN) != 0) {
    return "io_uring (deferred task work)";
  }
  if ((ring_.flags & IORING_SETUP_COOP_TASKRUN) != 0) {
    return "io_uring (cooperative task work)";
  }
  return "io_uring";
}

}  // namespace catnap::io
