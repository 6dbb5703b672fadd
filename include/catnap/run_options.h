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
  bool exec = true, files = true, endpoint = true, forwards = true,
       services = true, outbound = true, holds = true, guest_cpu = false;
  double guest_cpu_threshold = 0.2;  // CPUs, when guest_cpu.
  static ActivitySources All() { return {}; }
};

// When a MicroVM falls asleep and wakes by itself.
struct IdlePolicy {
  Millis max_idle_duration{900'000};
  std::optional<Millis> suspended_duration{};
  bool auto_resume_enabled = true;
  ActivitySources activity = ActivitySources::All();
};

enum class OnRelease { kKeep, kSuspend, kTerminate };
enum class Durability { kDurable, kEphemeral };
enum class AfterCrash { kReboot, kLastCheckpoint, kTerminate };
enum class IfExists { kFail, kReturn };
enum class ClockOnResume { kFreezeMonotonic, kAdvanceMonotonic };
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
// by name when they are set: idle_policy, max_lifetime, run_payload, cpu_limit,
// checkpoint_interval, on_release kSuspend, after_crash kLastCheckpoint, clock
// kAdvanceMonotonic, memory, trust_domain, quota_wait, suspend_on_pressure.
struct RunOptions {
  std::string id{};  // [a-zA-Z0-9-_]{1,64}; empty: generated.
  // kReturn: callers at once with one id get one VM; ALREADY_EXISTS when it is
  // of another image.
  IfExists if_exists = IfExists::kFail;
  std::optional<IdlePolicy> idle_policy{};
  std::optional<Millis> max_lifetime{};
  std::string run_payload{};
  // For the application and all that is executed later, over the image's.
  std::map<std::string, std::string> env{};
  Labels labels{};
  NetworkPolicy egress = NetworkPolicy::DenyAll();
  Ingress ingress = Ingress::kHttpAndShell;  // Of a Gateway; of no effect yet.
  // Host functions for the guest, at host.catnap:<port>, whatever egress says.
  std::map<uint16_t, std::shared_ptr<GuestService>> services{};
  // Takes the place of the built-in network: an open tap device, non-blocking,
  // without IFF_VNET_HDR. `egress` applies to it as well.
  std::shared_ptr<UniqueFd> tap{};
  std::vector<Disk> disks{};  // At most ImageSpec::extra_disk_slots.
  std::optional<double> cpu_limit{};
  // The application's stdout and stderr, line by line: sources "app.stdout" and
  // "app.stderr".
  std::shared_ptr<LogSink> guest_log{};
  std::optional<Millis> checkpoint_interval{};
  // kTerminate: when the last handle goes, in the background.
  OnRelease on_release = OnRelease::kKeep;
  // In this version every MicroVM ends with its Host, and so does its disk.
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
