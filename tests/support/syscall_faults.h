#ifndef CATNAP_TESTS_SUPPORT_SYSCALL_FAULTS_H_
#define CATNAP_TESTS_SUPPORT_SYSCALL_FAULTS_H_

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"

// Faults at the system calls of a child process, by ptrace: nothing in the
// program under test knows of them.
namespace catnap::test {

enum class Fault {
  kNone,     // Only counts.
  kKill,     // kill -9 before the call.
  kFail,     // The call is not made and fails.
  kShorten,  // A read or write is of half as many bytes.
  kHold,     // The call is not made until `release` says so.
};

struct FaultPlan {
  Fault fault = Fault::kNone;
  // Which of the calls that count gets it, from 1.
  uint64_t at = 1;
  int error = 0;  // Of kFail.
  // Only calls count that work on files in this directory or its descendants;
  // for kShorten only reads and writes of more than a byte. Empty: all calls of
  // all threads.
  std::string directory{};
  // Asked at each call: whether it counts.
  std::function<bool()> counts{};
  std::function<bool()> release{};
};

struct FaultEnd {
  uint64_t calls = 0;  // That counted, up to the fault.
  bool hit = false;
  std::string where{};  // Of the fault: the call, with its file.
  int status = 0;       // As waitpid() says of the child.
};

// Traces all threads of `child`, those that come later too, calls `begin`, and
// returns when the child has ended. REQUIRES: the child stands in a system
// call until `begin`, the caller has no other child, and is its only tracer.
// Errors: PERMISSION_DENIED, it may not be traced; UNAVAILABLE.
absl::StatusOr<FaultEnd> RunWithFaults(pid_t child, const FaultPlan& plan,
                                       const std::function<void()>& begin);

// From now on io_uring is refused to this process, as in many containers: its
// files are used by calls that name them.
bool RefuseIoUring();

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_SYSCALL_FAULTS_H_
