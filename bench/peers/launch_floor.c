#include "launch_floor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { kPins = 24, kMaxPages = 32, kMaxCpuid = 256 };
static const uint64_t kLowEnd = 0xc0000000;
static const uint64_t kHighStart = 0x100000000;
static const uint64_t kRegisterPages = 0xd0000000;
static const uint64_t kHuge = 2 << 20;

struct floor_shell {
  struct floor_config config;
  int kvm, vm, vcpu, ack;
  int notify[kMaxPages];
  uint8_t* reserved;
  size_t reserved_bytes;
  uint8_t* memory;
  uint8_t* pages;
  struct kvm_run* run;
  size_t run_bytes;
  pthread_t thread;
  int has_thread;
  pthread_mutex_t mutex;
  pthread_cond_t wake, done;
  int go; /* 1: run once; 2: end */
  int exited;
  int result;
  double exit_at;
};

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static void* vcpu_thread(void* argument) {
  struct floor_shell* s = argument;
  pthread_mutex_lock(&s->mutex);
  while (s->go == 0) pthread_cond_wait(&s->wake, &s->mutex);
  int go = s->go;
  pthread_mutex_unlock(&s->mutex);
  if (go == 2) return NULL;
  int result = ioctl(s->vcpu, KVM_RUN, 0) == 0 ? 0 : -errno;
  double at = now_us();
  if (result == 0 && s->run->exit_reason != KVM_EXIT_IO) result = -EPROTO;
  pthread_mutex_lock(&s->mutex);
  s->exit_at = at;
  s->result = result;
  s->exited = 1;
  pthread_cond_signal(&s->done);
  pthread_mutex_unlock(&s->mutex);
  return NULL;
}

static int create_vm(struct floor_shell* s) {
  uint64_t identity = 0xfeffc000;
  s->vm = ioctl(s->kvm, KVM_CREATE_VM, 0);
  if (s->vm < 0) return -errno;
  if (ioctl(s->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity) != 0) return -errno;
  if (ioctl(s->vm, KVM_SET_TSS_ADDR, 0xfeffd000) != 0) return -errno;
  return 0;
}

static int create_irqchip(struct floor_shell* s) {
  struct {
    struct kvm_irq_routing head;
    struct kvm_irq_routing_entry entries[kPins];
  } table;
  memset(&table, 0, sizeof(table));
  if (ioctl(s->vm, KVM_CREATE_IRQCHIP, 0) != 0) return -errno;
  table.head.nr = kPins;
  for (uint32_t pin = 0; pin < kPins; ++pin) {
    table.entries[pin].gsi = pin;
    table.entries[pin].type = KVM_IRQ_ROUTING_IRQCHIP;
    table.entries[pin].u.irqchip.irqchip = KVM_IRQCHIP_IOAPIC;
    table.entries[pin].u.irqchip.pin = pin;
  }
  return ioctl(s->vm, KVM_SET_GSI_ROUTING, &table) == 0 ? 0 : -errno;
}

static int set_slot(struct floor_shell* s, uint32_t slot, uint32_t flags,
                    uint64_t gpa, uint64_t bytes, void* host) {
  struct kvm_userspace_memory_region region = {
      .slot = slot,
      .flags = flags,
      .guest_phys_addr = gpa,
      .memory_size = bytes,
      .userspace_addr = (uintptr_t)host,
  };
  return ioctl(s->vm, KVM_SET_USER_MEMORY_REGION, &region) == 0 ? 0 : -errno;
}

static int create_memory(struct floor_shell* s) {
  uint64_t bytes = s->config.memory_bytes;
  uint64_t low = bytes < kLowEnd ? bytes : kLowEnd;
  s->reserved_bytes = bytes + kHuge;
  s->reserved = mmap(NULL, s->reserved_bytes, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (s->reserved == MAP_FAILED) return -errno;
  uintptr_t start = (uintptr_t)s->reserved;
  s->memory = s->reserved + (kHuge - (start & (kHuge - 1)));
  int error = set_slot(s, 0, 0, 0, low, s->memory);
  if (error == 0 && bytes > low) {
    error = set_slot(s, 1, 0, kHighStart, bytes - low, s->memory + low);
  }
  return error;
}

static int add_ioevent(struct floor_shell* s, uint64_t gpa, int fd) {
  struct kvm_ioeventfd request = {.addr = gpa, .len = 4, .fd = fd};
  return ioctl(s->vm, KVM_IOEVENTFD, &request) == 0 ? 0 : -errno;
}

static int create_registers(struct floor_shell* s) {
  int count = s->config.device_pages;
  if (count == 0) return 0;
  size_t bytes = (size_t)count * 4096;
  s->pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (s->pages == MAP_FAILED) return -errno;
  madvise(s->pages, bytes, MADV_DONTFORK);
  madvise(s->pages, bytes, MADV_DONTDUMP);
  int error = set_slot(s, 8, KVM_MEM_READONLY, kRegisterPages, bytes, s->pages);
  if (error != 0) return error;
  s->ack = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (s->ack < 0) return -errno;
  for (int i = 0; i < count; ++i) {
    uint64_t page = kRegisterPages + (uint64_t)i * 4096;
    s->notify[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->notify[i] < 0) return -errno;
    error = add_ioevent(s, page + 0x50, s->notify[i]);
    if (error == 0) error = add_ioevent(s, page + 0x64, s->ack);
    if (error != 0) return error;
  }
  return 0;
}

static int set_cpuid(struct floor_shell* s, struct kvm_cpuid2* cpuid) {
  return ioctl(s->vcpu, KVM_SET_CPUID2, cpuid) == 0 ? 0 : -errno;
}

static int create_vcpu(struct floor_shell* s, struct kvm_cpuid2* cpuid) {
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entries[2];
  } msrs = {.head = {.nmsrs = 2},
            .entries = {{.index = 0x2ff, .data = 0x806},
                        {.index = 0x1a0, .data = 1}}};
  struct {
    uint32_t length;
    uint8_t mask[8];
  } signals;
  struct kvm_lapic_state lapic;
  uint64_t blocked = ~(1ull << (s->config.kick_signal - 1));
  s->vcpu = ioctl(s->vm, KVM_CREATE_VCPU, 0);
  if (s->vcpu < 0) return -errno;
  s->run_bytes = (size_t)ioctl(s->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
  s->run =
      mmap(NULL, s->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->vcpu, 0);
  if (s->run == MAP_FAILED) return -errno;
  int error = set_cpuid(s, cpuid);
  if (error != 0) return error;
  if (ioctl(s->vcpu, KVM_SET_MSRS, &msrs) != 2) return -EPROTO;
  if (ioctl(s->vcpu, KVM_GET_LAPIC, &lapic) != 0) return -errno;
  lapic.regs[0x351] = 0x07;
  lapic.regs[0x361] = 0x04;
  if (ioctl(s->vcpu, KVM_SET_LAPIC, &lapic) != 0) return -errno;
  signals.length = 8;
  memcpy(signals.mask, &blocked, sizeof(blocked));
  return ioctl(s->vcpu, KVM_SET_SIGNAL_MASK, &signals) == 0 ? 0 : -errno;
}

static int create_thread(struct floor_shell* s) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(&s->thread, NULL, vcpu_thread, s);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  s->has_thread = error == 0;
  return -error;
}

int floor_create(const struct floor_config* config, struct floor_shell** shell,
                 struct floor_shell_times* times) {
  struct kvm_cpuid2* cpuid =
      calloc(1, sizeof(*cpuid) + kMaxCpuid * sizeof(struct kvm_cpuid_entry2));
  struct floor_shell* s = calloc(1, sizeof(*s));
  if (cpuid == NULL || s == NULL || config->device_pages > kMaxPages) {
    free(cpuid);
    free(s);
    return -ENOMEM;
  }
  s->config = *config;
  s->vm = s->vcpu = s->ack = -1;
  for (int i = 0; i < kMaxPages; ++i) s->notify[i] = -1;
  pthread_mutex_init(&s->mutex, NULL);
  pthread_cond_init(&s->wake, NULL);
  pthread_cond_init(&s->done, NULL);
  /* Opening the device and asking it once is shared by all VMs of a host. */
  s->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
  cpuid->nent = kMaxCpuid;
  int error = s->kvm < 0 ? -errno : 0;
  if (error == 0 && ioctl(s->kvm, KVM_GET_SUPPORTED_CPUID, cpuid) != 0) {
    error = -errno;
  }
  double t0 = now_us();
  if (error == 0) error = create_vm(s);
  double t1 = now_us();
  if (error == 0) error = create_irqchip(s);
  double t2 = now_us();
  if (error == 0) error = create_memory(s);
  double t3 = now_us();
  if (error == 0) error = create_registers(s);
  double t4 = now_us();
  if (error == 0) error = create_vcpu(s, cpuid);
  double t5 = now_us();
  if (error == 0) error = create_thread(s);
  double t6 = now_us();
  free(cpuid);
  if (error != 0) {
    floor_destroy(s);
    return error;
  }
  *times = (struct floor_shell_times){.vm = t1 - t0,
                                      .irqchip = t2 - t1,
                                      .memory = t3 - t2,
                                      .registers = t4 - t3,
                                      .vcpu = t5 - t4,
                                      .thread = t6 - t5};
  *shell = s;
  return 0;
}

static int map_template(struct floor_shell* s) {
  size_t bytes = s->config.memory_bytes;
  if (mmap(s->memory, bytes, PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, s->config.template_fd,
           0) == MAP_FAILED) {
    return -errno;
  }
  if (madvise(s->memory, bytes, MADV_DONTFORK) != 0) return -errno;
  return madvise(s->memory, bytes, MADV_DONTDUMP) == 0 ? 0 : -errno;
}

static int set_state(struct floor_shell* s) {
  struct kvm_sregs sregs;
  struct kvm_regs regs;
  struct kvm_segment data = {.limit = 0xffffffff,
                             .selector = 0x18,
                             .type = 3,
                             .present = 1,
                             .db = 1,
                             .s = 1,
                             .g = 1};
  struct kvm_segment code = {.limit = 0xffffffff,
                             .selector = 0x10,
                             .type = 11,
                             .present = 1,
                             .s = 1,
                             .l = 1,
                             .g = 1};
  if (ioctl(s->vcpu, KVM_GET_SREGS, &sregs) != 0) return -errno;
  sregs.cs = code;
  sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
  sregs.tr.type = 11;
  sregs.tr.present = 1;
  sregs.tr.s = 0;
  sregs.idt.limit = 0;
  sregs.cr0 = 0x80050033;
  sregs.cr3 = s->config.cr3;
  sregs.cr4 = 0x20;
  sregs.efer = 0x500;
  memset(&regs, 0, sizeof(regs));
  regs.rip = s->config.entry;
  regs.rflags = 2;
  if (ioctl(s->vcpu, KVM_SET_SREGS, &sregs) != 0) return -errno;
  return ioctl(s->vcpu, KVM_SET_REGS, &regs) == 0 ? 0 : -errno;
}

int floor_launch(struct floor_shell* s, struct floor_launch_times* times) {
  double t0 = now_us();
  int error = map_template(s);
  double t1 = now_us();
  if (error == 0) error = set_state(s);
  if (error != 0) return error;
  double t2 = now_us();
  pthread_mutex_lock(&s->mutex);
  s->go = 1;
  pthread_cond_signal(&s->wake);
  while (!s->exited) pthread_cond_wait(&s->done, &s->mutex);
  error = s->result;
  double exit_at = s->exit_at;
  pthread_mutex_unlock(&s->mutex);
  *times = (struct floor_launch_times){
      .map = t1 - t0, .state = t2 - t1, .first_exit = exit_at - t2};
  return error;
}

double floor_destroy(struct floor_shell* s) {
  double begin = now_us();
  if (s->has_thread) {
    pthread_mutex_lock(&s->mutex);
    if (s->go == 0) s->go = 2;
    pthread_cond_signal(&s->wake);
    pthread_mutex_unlock(&s->mutex);
    pthread_join(s->thread, NULL);
  }
  if (s->run != NULL && s->run != MAP_FAILED) munmap(s->run, s->run_bytes);
  if (s->vcpu >= 0) close(s->vcpu);
  if (s->vm >= 0) close(s->vm);
  if (s->ack >= 0) close(s->ack);
  for (int i = 0; i < kMaxPages; ++i) {
    if (s->notify[i] >= 0) close(s->notify[i]);
  }
  if (s->reserved != NULL && s->reserved != MAP_FAILED) {
    munmap(s->reserved, s->reserved_bytes);
  }
  if (s->pages != NULL && s->pages != MAP_FAILED) {
    munmap(s->pages, (size_t)s->config.device_pages * 4096);
  }
  if (s->kvm >= 0) close(s->kvm);
  double took = now_us() - begin;
  free(s);
  return took;
}
