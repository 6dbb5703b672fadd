#ifndef CATNAP_BENCH_PEERS_FLOOR_RUN_H_
#define CATNAP_BENCH_PEERS_FLOOR_RUN_H_

#include <cstdint>

#include "harness.h"
#include "peers/launch_floor.h"
#include "support/tiny_guest.h"
#include "vmm/vcpu_thread.h"

namespace catnap::bench {

// What one launch takes by raw ioctls, in µs.
struct FloorRun {
  floor_shell_times made{};
  floor_launch_times launched{};
  double destroyed = 0;

  double shell() const {
    return made.vm + made.irqchip + made.memory + made.registers + made.vcpu +
           made.thread;
  }
  double launch() const {
    return launched.map + launched.state + launched.first_exit;
  }
};

// Ends the program when it fails.
inline FloorRun RunFloor(const test::TinyGuest& guest, uint64_t memory_bytes,
                         int device_pages) {
  const floor_config config{.memory_bytes = memory_bytes,
                            .template_fd = guest.memfd.get(),
                            .entry = guest.state.rip,
                            .cr3 = guest.state.cr3,
                            .device_pages = device_pages,
                            .kick_signal = vmm::DefaultKickSignal()};
  FloorRun run;
  floor_shell* shell = nullptr;
  const auto check = [](const char* what, int error) {
    if (error != 0) Check(what, absl::ErrnoToStatus(-error, what));
  };
  check("floor_create", floor_create(&config, &shell, &run.made));
  check("floor_launch", floor_launch(shell, &run.launched));
  run.destroyed = floor_destroy(shell);
  return run;
}

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_PEERS_FLOOR_RUN_H_
