#ifndef CATNAP_RUN_OPTIONS_H_
#define CATNAP_RUN_OPTIONS_H_

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "catnap/call.h"
#include "catnap/log.h"
#include "catnap/network.h"

namespace catnap {

// What keeps a MicroVM awake.
struct ActivitySources {
  bool exec = true;      // Commands that run, unless counts_as_activity is off.
  bool files = true;     // Calls with files.
  bool endpoint = true;  // Requests of a Gateway.
  bool forwards = true;  // Connect() and ForwardPort(): bytes, not silence.
  bool services = true;  // Bytes of its connections with host services.
  bool outbound = true;  // Frames that leave by its network.
  bool holds = true;     // MicroVM::Hold().
  // CPU time of its vCPUs, looked at every second at most, above the threshold
  // in CPUs (above 0, at most 32).
  bool guest_cpu = false;
  double guest_cpu_threshold = 0.2;
  static ActivitySources All() { return {}; }
};

// When a MicroVM falls asleep and wakes by itself.
struct IdlePolicy {
  // Without any use; at least 1 ms. Then it is suspended. When that fails it is
  // tried again after as long, and state_reason() says why.
  Millis max_idle_duration{900'000};
  // Asleep, however it fell asleep; then it is terminated, with all it has. 0:
  // it is terminated instead of suspended. None: it sleeps as long as it takes.
  std::optional<Millis> suspended_duration{};
  // The next use resumes it, however it fell asleep. The use waits for that.
  bool auto_resume_enabled = true;
  ActivitySources activity = ActivitySources::All();
};

// What the last handle of a MicroVM does when it goes, in the background.
enum class OnRelease { kKeep, kSuspend, kTerminate };
// kDurable: it outlives its Host and its process. What a Run(), Restore() or
// Fork() made survives a crash of the machine from some milliseconds after the
// call on; what a Suspend() stored, from its return on.
// kEphemeral: nothing is recorded or synced, and it ends with its Host, asleep
// or not.
enum class Durability { kDurable, kEphemeral };
// What becomes of a MicroVM that ran when its host process died. (One that
// slept is found sleeping in any case.) Host::Open() lists it suspended, and
// the next use, whatever its IdlePolicy, or Resume()
//   kReboot          boots its disk, as the last flush of the guest left it,
//                    and starts the application
//   kLastCheckpoint  takes memory and disk back together to the last snapshot
//                    that a suspend made; what was flushed since is lost.
//                    Before the first one: as kReboot
// kTerminate: it is listed terminated, with kHostProcessDied.
enum class AfterCrash { kReboot, kLastCheckpoint, kTerminate };
enum class IfExists { kFail, kReturn };
enum class ClockOnResume { kFreezeMonotonic, kAdvanceMonotonic };
// How much of its memory is read before a MicroVM runs that comes from an
// image, a snapshot or its own sleep; the rest is read while it runs.
//   kHotSet  what is touched in the first moments, as the image's training
//            found; the rest in the background, and at once what is touched
//   kAll     everything. Slower to start, and damage to any stored byte is
//            found before the guest runs: DATA_LOSS
//   kLazy    nothing: a page is read when it is touched. The files stay open
//            for as long as the MicroVM runs
// State, and the places of all pages, are read and checked before in any case.
// A page that turns out to be damaged while the MicroVM runs is never seen by
// the guest, nor gets to its disks or its network: the MicroVM ends,
// kTerminated with TerminationReason::kStorage, and state_reason() names the
// file. A file whose reads stall holds up the MicroVMs whose memory is in it,
// and no other. Memory of an image is shared: it is read as the first MicroVM
// wants it, and faster for one that wants more. Without userfaultfd
// (HostReport::userfaultfd) all are kAll; the log says so.
enum class Prefetch { kHotSet, kAll, kLazy };
enum class Ingress { kNone, kHttp, kHttpAndShell };

// A raw disk image or block device for a guest. Only one MicroVM at a time may
// have a file that is not read_only: the library does not check.
struct Disk {
  std::filesystem::path image{};
  bool read_only = true;
  std::string serial{};  // What the guest sees; the first 20 bytes.
};

// Options that this version of the library does not have yet are UNIMPLEMENTED
// by name when they are set: run_payload, cpu_limit, checkpoint_interval, clock
// kAdvanceMonotonic, trust_domain, quota_wait, suspend_on_pressure.
struct RunOptions {
  std::string id{};  // [a-zA-Z0-9-_]{1,64}; empty: generated.
  // kReturn: callers at once with one id get one VM; ALREADY_EXISTS when it is
  // of another image.
  IfExists if_exists = IfExists::kFail;
  std::optional<IdlePolicy> idle_policy{};  // None: only Suspend() suspends.
  // Running and suspended, on the wall clock over restarts of the host process;
  // at least 1 ms. Then it is terminated.
  std::optional<Millis> max_lifetime{};
  std::string run_payload{};
  // For all that is executed later, over the image's. An application that the
  // image's build started runs already and keeps the variables that it has:
  // it finds these, and no others, in the guest's /run/catnap/env, NAME='value'
  // in each line as a shell reads it, from before it goes on; when there are
  // none the file may be missing. Names that no shell takes are left out there.
  // A guest that boots (`disks`, kReboot) starts it with them as well.
  std::map<std::string, std::string> env{};
  Labels labels{};
  NetworkPolicy egress = NetworkPolicy::DenyAll();
  Ingress ingress = Ingress::kHttpAndShell;  // Of a Gateway; of no effect yet.
  // Host functions for the guest, at host.catnap:<port>, whatever egress says.
  std::map<uint16_t, std::shared_ptr<GuestService>> services{};
  // Takes the place of the built-in network: an open tap device, non-blocking,
  // without IFF_VNET_HDR. `egress` applies to it as well. Not stored: after a
  // restart of the host process the built-in network takes its place.
  std::shared_ptr<UniqueFd> tap{};
  // At most ImageSpec::extra_disk_slots. With any, the guest boots instead of
  // going on from the image's memory.
  std::vector<Disk> disks{};
  std::optional<double> cpu_limit{};
  // The application's stdout and stderr, line by line: sources "app.stdout" and
  // "app.stderr".
  std::shared_ptr<LogSink> guest_log{};
  std::optional<Millis> checkpoint_interval{};
  OnRelease on_release = OnRelease::kKeep;
  Durability durability = Durability::kDurable;
  AfterCrash after_crash = AfterCrash::kReboot;
  ClockOnResume clock = ClockOnResume::kFreezeMonotonic;
  Prefetch memory = Prefetch::kHotSet;
  std::string trust_domain{};
  std::optional<Millis> quota_wait{};
  bool suspend_on_pressure = true;
};

}  // namespace catnap

#endif  // CATNAP_RUN_OPTIONS_H_
