#ifndef CATNAP_BENCH_PEERS_LAUNCH_FLOOR_H_
#define CATNAP_BENCH_PEERS_LAUNCH_FLOOR_H_

/* The floor of a launch: the kernel calls that a VMM cannot do without, made
   with raw ioctls and nothing else. Times are in microseconds. */

#include <stdint.h>

/* C names. NOLINTBEGIN(readability-identifier-naming) */

#ifdef __cplusplus
extern "C" {
#endif

struct floor_config {
  uint64_t memory_bytes;
  int template_fd; /* Guest memory, mapped private. */
  uint64_t entry;  /* Where the guest starts, 64-bit mode, CPL 0. */
  uint64_t cr3;
  int device_pages; /* Register pages, each with two ioeventfds. */
  int kick_signal;
};

/* Up to and including the vCPU's thread, which waits to be told to run. */
struct floor_shell_times {
  double vm;        /* KVM_CREATE_VM and real-mode pages */
  double irqchip;   /* interrupt controllers and routes */
  double memory;    /* reserved range, memory slots */
  double registers; /* read-only slot, eventfds, ioeventfds */
  double vcpu;      /* vCPU, run page, CPUID, MSRs, LAPIC, signal mask */
  double thread;
};

struct floor_launch_times {
  double map;        /* template mapped over the range, advice */
  double state;      /* registers */
  double first_exit; /* thread woken, KVM_RUN, first exit */
};

struct floor_shell;

/* All return 0 or a negative errno value. */
int floor_create(const struct floor_config* config, struct floor_shell** shell,
                 struct floor_shell_times* times);
int floor_launch(struct floor_shell* shell, struct floor_launch_times* times);
/* Returns the microseconds it took. */
double floor_destroy(struct floor_shell* shell);

#ifdef __cplusplus
}
#endif

/* NOLINTEND(readability-identifier-naming) */

#endif /* CATNAP_BENCH_PEERS_LAUNCH_FLOOR_H_ */
