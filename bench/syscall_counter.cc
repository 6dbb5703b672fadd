#include "syscall_counter.h"

#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>

namespace catnap::bench {

SyscallCounter::SyscallCounter() {
  std::ifstream file("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id");
  uint64_t id = 0;
  if (!(file >> id)) return;
  perf_event_attr attributes{};
  attributes.type = PERF_TYPE_TRACEPOINT;
  attributes.size = sizeof(attributes);
  attributes.config = id;
  attributes.inherit = 1;
  fd_ = base::UniqueFd(static_cast<int>(
      ::syscall(SYS_perf_event_open, &attributes, /*pid=*/0, /*cpu=*/-1,
                /*group_fd=*/-1, PERF_FLAG_FD_CLOEXEC)));
}

std::optional<uint64_t> SyscallCounter::count() const {
  uint64_t value = 0;
  if (!fd_.valid() ||
      ::read(fd_.get(), &value, sizeof(value)) != sizeof(value)) {
    return std::nullopt;
  }
  return value;
}

}  // namespace catnap::bench
