#include "irq_paths.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
  kMemoryBytes = 1 << 20,
  kCode = 0x1000,
  kHandler = 0x2000,
  kStack = 0x8000,
  kPin = 6,
  kMsiGsi = 30,
  kVector = 0x40,
  kPort = 0x10,
};
static const uint32_t kMsiAddress = 0xfee00000u; /* CPU 0, fixed. */

struct irq_guest {
  int kvm, vm, vcpu, pin_fd, msi_fd;
  void* memory;
  struct kvm_run* run;
  size_t run_bytes;
  pthread_t thread;
  int has_thread;
  volatile int stop;
  sem_t handled;
  double handled_at;
};

static double Now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

static void* Run(void* argument) {
  struct irq_guest* guest = argument;
  while (!guest->stop) {
    if (ioctl(guest->vcpu, KVM_RUN, 0) != 0) {
      if (errno == EINTR || errno == EAGAIN) continue;
      break;
    }
    if (guest->run->exit_reason != KVM_EXIT_IO) break;
    guest->handled_at = Now();
    sem_post(&guest->handled);
  }
  return NULL;
}

/* Real mode with 4 GiB segments, for the EOI. */
static int SetState(struct irq_guest* guest) {
  static const uint8_t code[] = {
      0xfb,       /* sti */
      0xf4,       /* hlt */
      0xeb, 0xfc, /* jmp sti */
  };
  static const uint8_t handler[] = {
      0x67, 0x66,  0xc7, 0x05, 0xb0, 0x00, 0xe0, 0xfe, /* movl $0, */
      0x00, 0x00,  0x00, 0x00,                         /* (0xfee000b0) */
      0xe6, kPort,                                     /* out %al, $port */
      0xcf,                                            /* iret */
  };
  struct kvm_sregs sregs;
  struct kvm_regs regs;
  struct kvm_lapic_state lapic;
  struct kvm_irqchip ioapic;
  uint8_t* memory = guest->memory;
  const uint16_t entry = kHandler;
  const uint32_t enabled = 0x1ff;
  memcpy(memory + kCode, code, sizeof(code));
  memcpy(memory + kHandler, handler, sizeof(handler));
  memcpy(memory + (size_t)4 * kVector, &entry, sizeof(entry));
  if (ioctl(guest->vcpu, KVM_GET_SREGS, &sregs) != 0) return -errno;
  sregs.cs.base = 0;
  sregs.cs.selector = 0;
  sregs.ds.base = sregs.es.base = sregs.ss.base = 0;
  sregs.ds.selector = sregs.es.selector = sregs.ss.selector = 0;
  sregs.ds.limit = 0xffffffffu;
  sregs.ds.g = 1;
  if (ioctl(guest->vcpu, KVM_SET_SREGS, &sregs) != 0) return -errno;
  memset(&regs, 0, sizeof(regs));
  regs.rip = kCode;
  regs.rsp = kStack;
  regs.rflags = 2;
  if (ioctl(guest->vcpu, KVM_SET_REGS, &regs) != 0) return -errno;
  if (ioctl(guest->vcpu, KVM_GET_LAPIC, &lapic) != 0) return -errno;
  memcpy(&lapic.regs[0xf0], &enabled, sizeof(enabled));
  if (ioctl(guest->vcpu, KVM_SET_LAPIC, &lapic) != 0) return -errno;
  memset(&ioapic, 0, sizeof(ioapic));
  ioapic.chip_id = KVM_IRQCHIP_IOAPIC;
  if (ioctl(guest->vm, KVM_GET_IRQCHIP, &ioapic) != 0) return -errno;
  ioapic.chip.ioapic.redirtbl[kPin].bits = kVector; /* Fixed, edge, CPU 0. */
  if (ioctl(guest->vm, KVM_SET_IRQCHIP, &ioapic) != 0) return -errno;
  return 0;
}

static int SetRoutes(struct irq_guest* guest) {
  struct {
    struct kvm_irq_routing head;
    struct kvm_irq_routing_entry entries[2];
  } routes;
  struct kvm_irqfd irqfd;
  memset(&routes, 0, sizeof(routes));
  routes.head.nr = 2;
  routes.entries[0].gsi = kPin;
  routes.entries[0].type = KVM_IRQ_ROUTING_IRQCHIP;
  routes.entries[0].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
  routes.entries[0].u.irqchip.pin = kPin;
  routes.entries[1].gsi = kMsiGsi;
  routes.entries[1].type = KVM_IRQ_ROUTING_MSI;
  routes.entries[1].u.msi.address_lo = kMsiAddress;
  routes.entries[1].u.msi.data = kVector;
  if (ioctl(guest->vm, KVM_SET_GSI_ROUTING, &routes) != 0) return -errno;
  guest->pin_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  guest->msi_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  memset(&irqfd, 0, sizeof(irqfd));
  irqfd.fd = (uint32_t)guest->pin_fd;
  irqfd.gsi = kPin;
  if (ioctl(guest->vm, KVM_IRQFD, &irqfd) != 0) return -errno;
  irqfd.fd = (uint32_t)guest->msi_fd;
  irqfd.gsi = kMsiGsi;
  if (ioctl(guest->vm, KVM_IRQFD, &irqfd) != 0) return -errno;
  return 0;
}

static int Create(struct irq_guest* guest) {
  struct kvm_userspace_memory_region region;
  int error;
  guest->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  if (guest->kvm < 0) return -errno;
  guest->vm = ioctl(guest->kvm, KVM_CREATE_VM, 0);
  if (guest->vm < 0) return -errno;
  ioctl(guest->vm, KVM_SET_TSS_ADDR, 0xfeffd000); /* Intel only. */
  if (ioctl(guest->vm, KVM_CREATE_IRQCHIP, 0) != 0) return -errno;
  guest->memory = mmap(NULL, kMemoryBytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (guest->memory == MAP_FAILED) return -errno;
  memset(&region, 0, sizeof(region));
  region.memory_size = kMemoryBytes;
  region.userspace_addr = (uintptr_t)guest->memory;
  if (ioctl(guest->vm, KVM_SET_USER_MEMORY_REGION, &region) != 0) {
    return -errno;
  }
  guest->vcpu = ioctl(guest->vm, KVM_CREATE_VCPU, 0);
  if (guest->vcpu < 0) return -errno;
  guest->run_bytes = (size_t)ioctl(guest->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  guest->run = mmap(NULL, guest->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
                    guest->vcpu, 0);
  if (guest->run == MAP_FAILED) return -errno;
  error = SetState(guest);
  if (error == 0) error = SetRoutes(guest);
  if (error != 0) return error;
  sem_init(&guest->handled, 0, 0);
  error = pthread_create(&guest->thread, NULL, Run, guest);
  guest->has_thread = error == 0;
  return -error;
}

int irq_guest_create(struct irq_guest** guest) {
  int error;
  *guest = calloc(1, sizeof(**guest));
  if (*guest == NULL) return -ENOMEM;
  error = Create(*guest);
  return error;
}

static int Signal(struct irq_guest* guest, enum irq_path path) {
  const uint64_t one = 1;
  struct kvm_irq_level level;
  struct kvm_msi msi;
  switch (path) {
    case IRQ_PATH_LINE:
      memset(&level, 0, sizeof(level));
      level.irq = kPin;
      level.level = 1;
      if (ioctl(guest->vm, KVM_IRQ_LINE, &level) != 0) return -errno;
      level.level = 0;
      return ioctl(guest->vm, KVM_IRQ_LINE, &level) != 0 ? -errno : 0;
    case IRQ_PATH_IRQFD:
      return write(guest->pin_fd, &one, sizeof(one)) < 0 ? -errno : 0;
    case IRQ_PATH_IRQFD_MSI:
      return write(guest->msi_fd, &one, sizeof(one)) < 0 ? -errno : 0;
    case IRQ_PATH_SIGNAL_MSI:
      memset(&msi, 0, sizeof(msi));
      msi.address_lo = kMsiAddress;
      msi.data = kVector;
      return ioctl(guest->vm, KVM_SIGNAL_MSI, &msi) < 0 ? -errno : 0;
    default:
      return -EINVAL;
  }
}

int irq_guest_measure(struct irq_guest* guest, enum irq_path path,
                      struct irq_times* times) {
  const struct timespec halt = {0, 300000}; /* Until it has halted. */
  struct timespec limit;
  double start;
  double called;
  int error;
  nanosleep(&halt, NULL);
  start = Now();
  error = Signal(guest, path);
  called = Now();
  if (error != 0) return error;
  clock_gettime(CLOCK_REALTIME, &limit);
  limit.tv_sec += 5;
  while (sem_timedwait(&guest->handled, &limit) != 0) {
    if (errno != EINTR) return -ETIMEDOUT;
  }
  times->to_handler = guest->handled_at - start;
  times->calls = called - start;
  return 0;
}

void irq_guest_destroy(struct irq_guest* guest) {
  struct irq_times times;
  if (guest->has_thread) {
    guest->stop = 1;
    irq_guest_measure(guest, IRQ_PATH_LINE, &times); /* Its exit ends it. */
    pthread_join(guest->thread, NULL);
  }
  munmap(guest->run, guest->run_bytes);
  munmap(guest->memory, kMemoryBytes);
  close(guest->pin_fd);
  close(guest->msi_fd);
  close(guest->vcpu);
  close(guest->vm);
  close(guest->kvm);
  free(guest);
}
