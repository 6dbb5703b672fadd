/*
 * The smallest user space: process 1 of a guest whose only task is to prove
 * that it got there.
 *
 * Prints one line to the console, in one write:
 *
 *   catnap-init: user space reached uptime_ms=412 clocksource=kvm-clock
 *   cpus=1 mem_kib=112340 kernel=6.1.0-catnap
 *
 * (without the line break), and ends the machine. `catnap.action=WORD` on the
 * kernel command line chooses how, so that a VMM can be tested against each
 * end: `poweroff` (default), `reboot`, `panic` (process 1 exits), `hang` (spins
 * on the CPU for ever) or `idle` (sleeps for ever). `random` reads from the
 * machine's entropy device, says how many bytes came, and powers off; `vsock`
 * connects to port 1024 of the host, sends back all that it gets, and does;
 * `disk` reads, writes and discards on the first disk, says how it went, and
 * does.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/vm_sockets.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* Reads a small file as a string without its last line break; "" when it
 * cannot be read. */
static void ReadText(const char* path, char* text, size_t size) {
  ssize_t length = 0;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd >= 0) {
    length = read(fd, text, size - 1);
    close(fd);
  }
  if (length < 0) length = 0;
  text[length] = '\0';
  text[strcspn(text, "\n")] = '\0';
}

/* The number in the line of /proc/meminfo that starts with `name`; -1 when
 * there is none. */
static long MemInfo(const char* name) {
  char line[128];
  long value = -1;
  FILE* file = fopen("/proc/meminfo", "re");
  if (file == NULL) return -1;
  while (value < 0 && fgets(line, sizeof(line), file) != NULL) {
    if (strncmp(line, name, strlen(name)) == 0) {
      if (sscanf(line + strlen(name), "%ld", &value) != 1) value = -1;
    }
  }
  fclose(file);
  return value;
}

static void Report(void) {
  struct timespec uptime = {0, 0};
  struct utsname name;
  char clocksource[32];
  char line[256];
  int length;

  clock_gettime(CLOCK_BOOTTIME, &uptime);
  ReadText("/sys/devices/system/clocksource/clocksource0/current_clocksource",
           clocksource, sizeof(clocksource));
  uname(&name);
  length = snprintf(line, sizeof(line),
                    "catnap-init: user space reached uptime_ms=%lld "
                    "clocksource=%s cpus=%ld mem_kib=%ld kernel=%s\n",
                    (long long)uptime.tv_sec * 1000 + uptime.tv_nsec / 1000000,
                    clocksource, sysconf(_SC_NPROCESSORS_ONLN),
                    MemInfo("MemTotal:"), name.release);
  if (length >= (int)sizeof(line)) length = (int)sizeof(line) - 1;
  if (write(STDOUT_FILENO, line, (size_t)length) < 0) {
    /* No console: there is nobody to tell. */
  }
}

static void Say(const char* what, long value) {
  char line[64];
  snprintf(line, sizeof(line), "catnap-init: %s=%ld\n", what, value);
  if (write(STDOUT_FILENO, line, strlen(line)) < 0) {
    /* As above. */
  }
}

static void ReportRandom(void) {
  unsigned char bytes[32];
  ssize_t length = -1;
  int fd;
  mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL);
  fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);
  if (fd >= 0) length = read(fd, bytes, sizeof(bytes));
  Say("hwrng bytes", (long)length);
}

static void EchoToHost(void) {
  static char bytes[65536];
  struct sockaddr_vm host;
  long total = 0;
  ssize_t length;
  int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
  memset(&host, 0, sizeof(host));
  host.svm_family = AF_VSOCK;
  host.svm_cid = VMADDR_CID_HOST;
  host.svm_port = 1024;
  if (connect(fd, (struct sockaddr*)&host, sizeof(host)) != 0) {
    Say("vsock connect errno", errno);
    return;
  }
  while ((length = read(fd, bytes, sizeof(bytes))) > 0) {
    ssize_t done = 0;
    while (done < length) {
      ssize_t written = write(fd, bytes + done, (size_t)(length - done));
      if (written < 0) {
        Say("vsock write errno", errno);
        return;
      }
      done += written;
    }
    total += length;
  }
  close(fd);
  Say("vsock bytes", total);
}

/* Sums the first 4 KiB, fills 64 KiB from 1 MiB on with 0x5a, makes that
 * durable, and discards 64 KiB from 2 MiB on. */
static void UseDisk(void) {
  static unsigned char bytes[65536];
  uint64_t range[2] = {2 << 20, sizeof(bytes)};
  const size_t first = 4096;
  long sum = 0;
  size_t i;
  int ok;
  int fd;
  mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL);
  fd = open("/dev/vda", O_RDWR | O_CLOEXEC);
  if (fd < 0 || read(fd, bytes, first) != (ssize_t)first) {
    Say("disk errno", errno);
    return;
  }
  for (i = 0; i < first; ++i) sum += bytes[i];
  Say("disk sum", sum);
  memset(bytes, 0x5a, sizeof(bytes));
  ok = pwrite(fd, bytes, sizeof(bytes), 1 << 20) == (ssize_t)sizeof(bytes) &&
       fsync(fd) == 0 && ioctl(fd, BLKDISCARD, range) == 0;
  if (!ok) Say("disk errno", errno);
  close(fd);
  Say("disk ok", ok);
}

/* The value of the last word `catnap.action=` of the command line. */
static const char* Action(char* command_line) {
  const char* action = "poweroff";
  const char* word;
  for (word = strtok(command_line, " "); word != NULL;
       word = strtok(NULL, " ")) {
    if (strncmp(word, "catnap.action=", 14) == 0) action = word + 14;
  }
  return action;
}

int main(void) {
  static char command_line[4096];
  const char* action;

  /* The kernel has opened the console for us: the initramfs that is built into
   * every kernel holds /dev/console. */
  mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
  mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);

  Report();

  ReadText("/proc/cmdline", command_line, sizeof(command_line));
  action = Action(command_line);
  if (strcmp(action, "panic") == 0) return 1;
  if (strcmp(action, "random") == 0) ReportRandom();
  if (strcmp(action, "vsock") == 0) EchoToHost();
  if (strcmp(action, "disk") == 0) UseDisk();
  if (strcmp(action, "reboot") == 0) reboot(RB_AUTOBOOT);
  while (strcmp(action, "hang") == 0) {
    __asm__ volatile("" ::: "memory");
  }
  while (strcmp(action, "idle") == 0) pause();
  reboot(RB_POWER_OFF);
  /* Process 1 must not end, or the kernel panics: that is how a machine
   * without power-off is noticed. */
  for (;;) pause();
}
