#ifndef CATNAP_MICROVM_H_
#define CATNAP_MICROVM_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/call.h"
#include "catnap/export.h"
#include "catnap/files.h"
#include "catnap/network.h"
#include "catnap/process.h"
#include "catnap/run_options.h"

namespace catnap {

class Host;
class Image;
class Snapshot;
namespace runtime {
class ForwardHandle;
class HostCore;
class VmHandle;
class VmHold;
}  // namespace runtime

enum class MicroVMState {
  kPending,
  kRunning,
  kSuspending,
  kSuspended,
  kTerminating,
  kTerminated
};

enum class TerminationReason {
  kNone,       // It has not ended.
  kRequested,  // Terminate(), OnRelease, or the Host was closed.
  kMaxLifetime,
  kSuspendedTooLong,
  kAppExited,  // The application ended, and OnAppExit said so.
  kHookFailed,
  kGuestShutdown,      // The guest switched itself off or asked for a reset.
  kGuestPanic,         // Its kernel gave up.
  kGuestFault,         // It did what no CPU goes on after.
  kAgentUnresponsive,  // Its agent never answered.
  kHostMemory,         // The host had no memory for it.
  kStorage,            // What its memory was stored as is damaged.
  kHostProcessDied,
  kInternal  // KVM failed, or a bug in the library.
};

// What a MicroVM used since it was started, by this Host and those before.
struct Usage {
  double vcpu_seconds = 0;  // CPU time of its vCPUs.
  // Of the guest's memory size, over the time it ran.
  double memory_gib_seconds = 0;
  // By suspending and resuming.
  uint64_t snapshot_bytes_written = 0, snapshot_bytes_read = 0;
  // Now: its newest snapshot and its disk's own part.
  uint64_t stored_bytes = 0;
  Millis running{0}, suspended{0};
};

// Keeps a MicroVM from falling asleep by its IdlePolicy as long as it lives
// (if ActivitySources::holds). Never wakes it, blocks no Suspend() and does not
// extend max_lifetime. May outlive both the MicroVM and the Host.
// Thread-compatible.
class CATNAP_EXPORT KeepAlive {
 public:
  KeepAlive();  // Holds nothing.
  KeepAlive(KeepAlive&& other) noexcept;
  KeepAlive& operator=(KeepAlive&& other) noexcept;
  ~KeepAlive();

 private:
  friend class MicroVM;
  explicit KeepAlive(std::unique_ptr<runtime::VmHold> hold);
  std::unique_ptr<runtime::VmHold> hold_;
};

// How MicroVM::TakeSnapshot() keeps one.
struct SnapshotOptions {
  // kMemory: it takes memory, not disk, and ends with its Host; what forks
  // start from. The machine goes on over the same memory, and has to touch all
  // of it anew. kStore: on the disk. The machine stands still for about half as
  // long, and until all is written what it has of its own is in memory twice.
  enum class Where { kMemory, kStore };
  // As RunOptions::id; it stays until Snapshot::Delete(). Empty: none, and it
  // goes with its last handle.
  std::string name{};
  Labels labels{};
  Where where = Where::kStore;
};

// A port of the host that leads to one of a guest. Destroying it closes the
// port and its connections. Thread-safe.
class CATNAP_EXPORT Forward {
 public:
  Forward(Forward&& other) noexcept;
  Forward& operator=(Forward&& other) noexcept;
  ~Forward();
  // Where it listens; the port that was chosen, when 0 was asked for.
  HostAddress address() const;

 private:
  friend class MicroVM;
  explicit Forward(std::unique_ptr<runtime::ForwardHandle> handle);
  std::unique_ptr<runtime::ForwardHandle> handle_;
};

// A machine that runs an Image. This is a handle: cheap to copy, equal to
// another of the same machine. The Host owns the machine; when the last handle
// goes, RunOptions::on_release says what happens (by default nothing).
//
// Errors that every call with a guest may return:
//   FAILED_PRECONDITION  an empty handle; kVmTerminated, it has ended;
//                        kVmSuspended, it sleeps and has no IdlePolicy with
//                        auto_resume_enabled
//   CANCELLED            CallOptions::stop; kHostClosed, the Host was closed
//   DEADLINE_EXCEEDED    CallOptions::timeout
//   UNAVAILABLE          kAgentUnresponsive, the guest's agent does not answer;
//                        kVmTerminated, the machine ended during the call
//   RESOURCE_EXHAUSTED   more than 1,024 calls at once
// A path of the guest that does not exist is NOT_FOUND, and every refusal of
// the guest's file system carries kGuestPath.
//
// Thread-safe: all calls may overlap. Handles may outlive the Host: id(),
// state(), state_reason() and termination_reason() still answer.
class CATNAP_EXPORT MicroVM {
 public:
  MicroVM();
  ~MicroVM();
  MicroVM(const MicroVM& other);
  MicroVM& operator=(const MicroVM& other);
  MicroVM(MicroVM&& other) noexcept;
  MicroVM& operator=(MicroVM&& other) noexcept;
  explicit operator bool() const { return handle_ != nullptr; }
  // Of one machine, or both empty.
  friend CATNAP_EXPORT bool operator==(const MicroVM& a, const MicroVM& b);

  // Starts a machine from `image`: it goes on where the image's build left it,
  // its application ready, with an identity of its own. With RunOptions::disks
  // the guest boots instead, and is waited for until its application is ready
  // (ImageSpec::ready), or its agent when there is none. Blocks. Failed or
  // cancelled it leaves nothing.
  // Errors:
  //   INVALID_ARGUMENT     an option, by name; an image of another Host
  //   ALREADY_EXISTS       the id is taken
  //   FAILED_PRECONDITION  this machine cannot run Linux guests: see
  //                        Host::Probe(); no guest kernel is installed; the
  //                        application ended before it was ready
  //   RESOURCE_EXHAUSTED   memory, descriptors, disk
  //   UNAVAILABLE          kAgentUnresponsive, the guest did not come up
  //   UNIMPLEMENTED        an option this version does not have, by name
  static absl::StatusOr<MicroVM> Run(Host& host, const Image& image,
                                     RunOptions options = {},
                                     CallOptions call = {});

  // Starts a machine that goes on where the snapshot was taken, with an
  // identity of its own: connections of then are gone, programs live on. Else
  // as Run(). Errors also: DATA_LOSS, what was stored is damaged.
  static absl::StatusOr<MicroVM> Restore(Host& host, const Snapshot& snapshot,
                                         RunOptions options = {},
                                         CallOptions call = {});

  const std::string& id() const;  // Empty for an empty handle.
  MicroVMState state() const;     // kTerminated for an empty handle.
  // For people: why it is in this state, or what it waits for.
  std::string state_reason() const;
  TerminationReason termination_reason() const;

  // Puts it to sleep: its memory, disk, processes and the streams with them
  // are stored, and it takes no memory and no thread until it wakes. Its state
  // is kSuspending meanwhile. Blocks while its memory is written: what changed
  // since it woke last. Calls at once share one suspend. OK when it sleeps
  // already.
  //
  // Calls and programs that are under way are frozen with it, and go on when it
  // wakes; deadlines of calls pass meanwhile.
  //
  // Cancelled, late or failed it runs on, and its last snapshot stays. So it
  // does (CANCELLED) when it may resume by itself and is used meanwhile.
  // Without an IdlePolicy it then sleeps until Resume().
  // Errors:
  //   RESOURCE_EXHAUSTED   the disk is full
  //   FAILED_PRECONDITION  the guest could not be frozen
  //   CANCELLED, DEADLINE_EXCEEDED
  absl::Status Suspend(CallOptions call = {}) const;
  // Wakes it; everything goes on where it was. Blocks until it runs. Calls at
  // once share one resume. OK when it runs. Failed, it sleeps on.
  //
  // After a restart of the host process streams are gone, and programs live
  // on: ListProcesses() and Attach() find them. Services have to be set again.
  // Errors: DATA_LOSS, what was stored is damaged; RESOURCE_EXHAUSTED, memory;
  // NOT_FOUND, a file of RunOptions::disks; as Run().
  absl::Status Resume(CallOptions call = {}) const;
  // Ends it at once, whatever it does; its disk goes. Blocks for milliseconds.
  // OK when it has ended already.
  absl::Status Terminate(CallOptions call = {}) const;
  // Copies it as it is. It stands still for some milliseconds, while its own
  // memory is copied, and goes on; what takes long comes after. Of a machine
  // that sleeps: its stored state, without waking it (in the store in any
  // case). Cancelled or failed it leaves nothing.
  // Errors:
  //   ALREADY_EXISTS       the name is taken
  //   RESOURCE_EXHAUSTED   memory; the disk
  //   FAILED_PRECONDITION  the guest could not be frozen; after a crash of the
  //                        host process it has only its disk
  absl::StatusOr<Snapshot> TakeSnapshot(SnapshotOptions options = {},
                                        CallOptions call = {}) const;
  // Starts machines that go on where this one is, which goes on too: `count`
  // of them, or one for each of `children`. All or none. Options that are not
  // set are this one's, its services and logs too, but not the id, the tap and
  // if_exists. They share this one's memory until they write to it; a copy that
  // rests in its first seconds gives back what it wrote and holds as before,
  // for which it stands still once, for some milliseconds. To its programs each
  // is another machine: its host name is its id, its machine id (in memory,
  // over /etc/machine-id) is new, and so is its entropy.
  // Errors: INVALID_ARGUMENT, an option, `id` with more than one child, or more
  // than 4,096; FAILED_PRECONDITION, a child would write to a disk that this
  // one writes to; as TakeSnapshot() and Run().
  absl::StatusOr<std::vector<MicroVM>> Fork(int count, RunOptions options = {},
                                            CallOptions call = {}) const;
  absl::StatusOr<std::vector<MicroVM>> ForkEach(
      std::span<const RunOptions> children, CallOptions call = {}) const;
  // Blocks until it is in `state` or was since the call, and returns that
  // state: nothing is missed, however short.
  // Errors: FAILED_PRECONDITION, it can no longer come; DEADLINE_EXCEEDED;
  // CANCELLED with kHostClosed.
  absl::StatusOr<MicroVMState> WaitForState(MicroVMState state,
                                            Millis timeout) const;

  // None: it neither falls asleep nor wakes by itself. How long it has been
  // idle is not forgotten. Blocks for a write to the disk; wakes nobody.
  // Errors: INVALID_ARGUMENT, by member.
  absl::Status SetIdlePolicy(std::optional<IdlePolicy> policy) const;
  // Keeps it awake as long as the result lives; see KeepAlive. `reason` is for
  // state_reason(). Of an empty handle: holds nothing.
  KeepAlive Hold(std::string reason) const;
  // Takes effect for the next frame; connections that it forbids end. Of one
  // that sleeps: when it wakes.
  // Errors: INVALID_ARGUMENT, a rule, by its text.
  absl::Status SetEgress(NetworkPolicy policy) const;
  // Adds, replaces or (null) removes the function at host.catnap:<port>.
  // Connections that stand stay. Services are not stored: after Host::Open()
  // they are to be set again, before or after the VM wakes.
  absl::Status SetService(uint16_t port,
                          std::shared_ptr<GuestService> service) const;

  // Runs a program to its end. Returns when it has exited and what it wrote
  // has come; its children in the background live on. Cancelled or late, the
  // program's tree is killed.
  // Errors: INVALID_ARGUMENT, the command, by member.
  absl::StatusOr<ExecResult> Exec(const Command& command,
                                  CallOptions call = {}) const;
  // Starts a program and returns when it runs, or could not be started: then
  // its Wait() says kNotStarted. Of stdin_data, stdin stays open behind it.
  absl::StatusOr<std::unique_ptr<Process>> Start(const Command& command,
                                                 CallOptions call = {}) const;
  // The programs that were started by this library and live.
  absl::StatusOr<std::vector<ProcessInfo>> ListProcesses() const;
  // A handle to one that nobody holds, without its stdin. Reads what it wrote
  // meanwhile, the last 64 KiB of it, first.
  // Errors: NOT_FOUND; RESOURCE_EXHAUSTED, another handle has it.
  absl::StatusOr<std::unique_ptr<Process>> Attach(uint64_t process_id) const;

  // A file's content. Errors: OUT_OF_RANGE, it has more than `max_bytes`.
  absl::StatusOr<std::string> ReadFile(std::string_view path,
                                       uint64_t max_bytes = 64u << 20,
                                       CallOptions call = {}) const;
  // Makes the file or replaces its content. Its directory must exist.
  absl::Status WriteFile(std::string_view path, std::string_view data,
                         int mode = 0644, CallOptions call = {}) const;
  // Copies a file or a tree in: modes, owners, times, links, holes. No devices,
  // sockets or pipes.
  // Errors: NOT_FOUND, PERMISSION_DENIED, of the host's path, which the message
  // names; OUT_OF_RANGE, `limits`.
  absl::Status CopyIn(const std::filesystem::path& host, std::string_view guest,
                      CopyLimits limits = {}, CallOptions call = {}) const;
  // Copies a file or a tree out. Whatever the guest answers, only files,
  // directories and links are made, below `host` and as the caller's; links
  // that lead out and set-id bits are left out.
  absl::Status CopyOut(std::string_view guest,
                       const std::filesystem::path& host,
                       CopyLimits limits = {}, CallOptions call = {}) const;
  absl::StatusOr<FileInfo> Stat(std::string_view path) const;
  // Errors: OUT_OF_RANGE, more than `max` entries.
  absl::StatusOr<std::vector<FileInfo>> ListDirectory(
      std::string_view path, size_t max = 100'000) const;
  // Makes parents as well; a directory that is there is no error.
  absl::Status MakeDirectory(std::string_view path, int mode = 0755) const;
  absl::Status Remove(std::string_view path, bool recursive = false) const;

  // A connected stream socket to a TCP port of the guest (its loopback).
  // Errors: UNAVAILABLE, nothing listens there.
  absl::StatusOr<UniqueFd> Connect(uint16_t guest_port,
                                   CallOptions call = {}) const;
  // Listens on the host and leads each connection to `guest_port`. `listen.
  // host` is an IPv4 or IPv6 address; port 0: any. A connection, and bytes on
  // one that stands, wake the machine if it may resume by itself; else a new
  // connection is reset, and bytes wait.
  // Errors: INVALID_ARGUMENT, not an address; ALREADY_EXISTS, the port is
  // taken; PERMISSION_DENIED.
  absl::StatusOr<Forward> ForwardPort(HostAddress listen,
                                      uint16_t guest_port) const;

  Usage GetUsage() const;

 private:
  friend class runtime::HostCore;
  friend struct std::hash<MicroVM>;
  explicit MicroVM(std::shared_ptr<runtime::VmHandle> handle);
  std::shared_ptr<runtime::VmHandle> handle_;  // Null: empty.
};

}  // namespace catnap

template <>
struct std::hash<catnap::MicroVM> {
  size_t operator()(const catnap::MicroVM& vm) const {
    return std::hash<std::string>()(vm.id());
  }
};

#endif  // CATNAP_MICROVM_H_
