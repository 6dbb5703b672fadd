#ifndef CATNAP_BENCH_PEERS_IRQ_PATHS_H_
#define CATNAP_BENCH_PEERS_IRQ_PATHS_H_

/* The ways of an interrupt from a VMM into a halted guest, with raw ioctls and
   a guest of eleven instructions whose handler writes a port. */

/* C names. NOLINTBEGIN(readability-identifier-naming) */

#ifdef __cplusplus
extern "C" {
#endif

enum irq_path {
  IRQ_PATH_LINE,       /* KVM_IRQ_LINE up and down, IOAPIC pin */
  IRQ_PATH_IRQFD,      /* irqfd on an IOAPIC pin */
  IRQ_PATH_IRQFD_MSI,  /* irqfd on an MSI route */
  IRQ_PATH_SIGNAL_MSI, /* KVM_SIGNAL_MSI */
  IRQ_PATH_COUNT
};

/* In microseconds. */
struct irq_times {
  double to_handler; /* before the first call to the handler's exit seen */
  double calls;      /* what the VMM's thread spends in the calls */
};

struct irq_guest;

/* 0, or a negative errno. */
int irq_guest_create(struct irq_guest** guest);
int irq_guest_measure(struct irq_guest* guest, enum irq_path path,
                      struct irq_times* times);
void irq_guest_destroy(struct irq_guest* guest);

#ifdef __cplusplus
}
#endif

/* NOLINTEND(readability-identifier-naming) */

#endif  // CATNAP_BENCH_PEERS_IRQ_PATHS_H_
