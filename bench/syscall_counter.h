#ifndef CATNAP_BENCH_SYSCALL_COUNTER_H_
#define CATNAP_BENCH_SYSCALL_COUNTER_H_

#include <cstdint>
#include <optional>

#include "base/unique_fd.h"

namespace catnap::bench {

// Counts the system calls of this process by the kernel's tracepoint: of the
// thread that makes the counter and of all that are started later.
class SyscallCounter {
 public:
  SyscallCounter();
  // None where the process may not use the tracepoint.
  std::optional<uint64_t> count() const;

 private:
  base::UniqueFd fd_;
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_SYSCALL_COUNTER_H_
