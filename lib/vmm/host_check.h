#ifndef CATNAP_LIB_VMM_HOST_CHECK_H_
#define CATNAP_LIB_VMM_HOST_CHECK_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvm/system.h"

namespace catnap::vmm {

// What KVM on this machine can really do, found by running tiny guests: a
// device that opens proves little. Each takes a few milliseconds.

// OK when a guest gets from CPL 3 to CPL 0 by `syscall` and back out, and can
// run instructions that every kernel uses. Fails on a KVM that interprets or
// confines kernel code.
// Errors: FAILED_PRECONDITION, kKvmCannotRunLinux, saying how the guest ended;
// RESOURCE_EXHAUSTED, UNAVAILABLE as Machine::CreateShell.
absl::Status CheckRunsLinux(std::shared_ptr<const kvm::System> system);

// What a check's result is good for, in one line: this boot of the machine,
// this loading of KVM and its device, and this check. Errors: of /proc and
// /dev/kvm.
absl::StatusOr<std::string> HostCheckKey();

// The same as CheckRunsLinux(), but when `record`, a file, has HostCheckKey()
// it was found before and is not looked at again: a read instead of a machine
// that is made and destroyed, which is more than the rest of a wake costs. Only
// success is recorded; a record that cannot be written is none.
absl::Status CheckRunsLinuxOnce(std::shared_ptr<const kvm::System> system,
                                const std::string& record);

// OK when a page that KVM misses is delivered by userfaultfd.
// Errors: FAILED_PRECONDITION, naming what is missing: unprivileged
// userfaultfd does not serve the faults that KVM takes in the kernel.
absl::Status CheckUserfaultfd(std::shared_ptr<const kvm::System> system);

// OK when the PAGEMAP_SCAN ioctl (Linux 6.7) exists.
absl::Status CheckPagemapScan();

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_HOST_CHECK_H_
