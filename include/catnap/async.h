#ifndef CATNAP_ASYNC_H_
#define CATNAP_ASYNC_H_

// The calls that take long, without a thread that waits: not part of catnap.h.

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/export.h"
#include "catnap/host.h"
#include "catnap/image.h"
#include "catnap/microvm.h"
#include "catnap/snapshot.h"

namespace catnap::async {

// Called once, on the Host's executor, with what the blocking call returns;
// may call any method. On the caller's thread, inside the call, when that is
// refused before there is something to wait for: an empty handle, a wrong
// option, a closed Host.
template <typename T>
using Done = absl::AnyInvocable<void(absl::StatusOr<T>) &&>;

// As MicroVM::Run(), on a thread of the library's while the guest comes up.
CATNAP_EXPORT void Run(Host& host, Image image, RunOptions options,
                       CallOptions call, Done<MicroVM> done);
// As MicroVM::Restore() and TakeSnapshot(), likewise on a thread each.
CATNAP_EXPORT void Restore(Host& host, Snapshot snapshot, RunOptions options,
                           CallOptions call, Done<MicroVM> done);
CATNAP_EXPORT void TakeSnapshot(MicroVM vm, SnapshotOptions options,
                                CallOptions call, Done<Snapshot> done);
// As MicroVM::Exec(); takes no thread.
CATNAP_EXPORT void Exec(MicroVM vm, Command command, CallOptions call,
                        Done<ExecResult> done);
// As MicroVM::Connect(); takes no thread.
CATNAP_EXPORT void Connect(MicroVM vm, uint16_t guest_port, CallOptions call,
                           Done<UniqueFd> done);

// The same for calls without a result.
using DoneStatus = absl::AnyInvocable<void(absl::Status) &&>;
// As MicroVM::Suspend() and Resume(). Some run at a time, the others wait.
CATNAP_EXPORT void Suspend(MicroVM vm, CallOptions call, DoneStatus done);
CATNAP_EXPORT void Resume(MicroVM vm, CallOptions call, DoneStatus done);

}  // namespace catnap::async

#endif  // CATNAP_ASYNC_H_
