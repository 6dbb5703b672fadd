#ifndef CATNAP_TESTS_SUPPORT_SYSCALL_FAULTS_H_
#define CATNAP_TESTS_SUPPORT_SYSCALL_FAULTS_H_

#include <sys/mman.h>
#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <new>
#include <string>

#include "absl/status/statusor.h"
#include "base/unique_fd.h"

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
  // Of those only calls count in whose FaultEnd::where this is found, a regular
  // expression (ECMAScript). Empty: all.
  std::string call{};
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

// T in memory that this process has together with its children: to tell them
// something, or they this, is no system call.
template <typename T>
class Shared {
 public:
  Shared()
      : memory_(::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE,
                       MAP_SHARED | MAP_ANONYMOUS, -1, 0)) {
    if (memory_ == MAP_FAILED) std::abort();
    new (memory_) T();
  }
  ~Shared() { ::munmap(memory_, sizeof(T)); }
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;

  T& operator*() { return *static_cast<T*>(memory_); }
  T* operator->() { return static_cast<T*>(memory_); }

 private:
  void* const memory_;
};

// Where a child process says which part of its life has the faults.
class FaultGate {
 public:
  // Blocks until it is traced.
  void Begin();
  void End() { state_->counting = false; }

 private:
  friend absl::StatusOr<FaultEnd> LiveWithFaults(
      FaultPlan plan, const std::function<absl::Status(FaultGate&)>& live,
      std::string* error);
  struct State {
    std::atomic<bool> counting{false};
    std::array<char, 1024> error{};
  };
  Shared<State> state_;
  base::UniqueFd begins_;  // To who traces it,
  base::UniqueFd traced_;  // and back.
};

// Runs `live` in a child process, which ends with 0 when that is OK; else
// `error` says why. Faults come between the gate's Begin() and End(); a life
// that does not begin has none, and is not traced. The caller has no threads
// and no other child. Errors: as RunWithFaults().
absl::StatusOr<FaultEnd> LiveWithFaults(
    FaultPlan plan, const std::function<absl::Status(FaultGate&)>& live,
    std::string* error);

// From now on io_uring is refused to this process, as in many containers: its
// files are used by calls that name them.
bool RefuseIoUring();

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_SYSCALL_FAULTS_H_
