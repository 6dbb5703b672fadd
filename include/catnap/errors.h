#ifndef CATNAP_ERRORS_H_
#define CATNAP_ERRORS_H_

#include "absl/status/status.h"
#include "catnap/export.h"

namespace catnap {

// What the codes of a returned absl::Status mean here:
//
//   INVALID_ARGUMENT     an option or argument of the caller; the message names
//                        it, its value and the limit
//   FAILED_PRECONDITION  the object is in the wrong state, or the host lacks
//                        something
//   NOT_FOUND            a name, an id or a guest path does not exist
//   ALREADY_EXISTS       a name or an id is taken
//   DATA_LOSS            stored bytes fail a check
//   UNIMPLEMENTED        a newer format, or a feature this library lacks
//   RESOURCE_EXHAUSTED   memory, descriptors, disk or a quota; the message
//                        names the limit
//   DEADLINE_EXCEEDED    CallOptions::timeout passed
//   CANCELLED            CallOptions::stop was requested, or the Host closed
//   UNAVAILABLE          the host failed; a retry may work
//   INTERNAL             a bug in this library

// Which case of its code a status is. The numbers are stored in status
// payloads only, never on disk.
enum class ErrorReason {
  kNone,               // No finer reason than the code.
  kNoKvmDevice,        // /dev/kvm does not exist.
  kNoKvmPermission,    // /dev/kvm exists, this user may not open it.
  kKvmCannotRunLinux,  // KVM answers but cannot run an unmodified kernel.
  kHostClosed,         // The Host was closed.
  kStateDirInUse,      // Another process owns the state directory.
  kVmSuspended,        // The VM sleeps and may not be woken by this call.
  kVmTerminated,       // The VM has ended.
  kHookFailed,         // A life-cycle hook failed or timed out.
  kAgentUnresponsive,  // The guest's agent did not answer in time.
  kMemoryQuota,        // HostOptions::memory_quota_bytes is used up.
  kStorageQuota,       // HostOptions::storage_quota_bytes is used up.
  kLaunchRate,         // Launches come faster than the host serves them.
  kImageInactive,      // The image version was set inactive.
  kInUse,              // Something still depends on the object.
  kCpuMismatch,        // This CPU lacks what the snapshot's guest was shown.
  kGuestPath,          // The path is one inside the guest.
};

// Returns the reason that `status` carries, kNone for OK and for statuses made
// elsewhere. Thread-safe; does not block.
CATNAP_EXPORT ErrorReason ReasonOf(const absl::Status& status);

}  // namespace catnap

#endif  // CATNAP_ERRORS_H_
