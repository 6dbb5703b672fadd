/*
 * What a program of a guest sees of a freeze and a wake. Statically linked.
 *
 *   wake_probe clock     samples the clocks for ever; after each pause of more
 *                        than half a second prints a line: the generation, then
 *                        the wall clock minus the monotonic one in ms of the
 *                        first sample after it, and how many of the next 1,000
 *                        differ from that by more than 50 ms
 *   wake_probe sockets   makes connections with others and with itself, prints
 *                        "ready", then what becomes of each; goes on when stdin
 *                        is at its end
 *   wake_probe watch     waits for a change of the generation by inotify
 *   wake_probe draw DIR  on each of two CPUs, for ever: reads the clocks and
 *                        draws a random number. Of the first 1,000 times after
 *                        each change of the generation, the one it starts with
 *                        included, the samples are left as
 * DIR/<generation>.<cpu> wake_probe time      prints the wall clock and the
 * monotonic one, in ns
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char* const kGeneration = "/run/catnap/generation";

static int64_t now(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static void fail(const char* what) {
  printf("%s: %s\n", what, strerrorname_np(errno));
  exit(1);  // NOLINT(concurrency-mt-unsafe): the only thread.
}

static const char* map_generation(void) {
  const int fd = open(kGeneration, O_RDONLY);
  if (fd < 0) fail(kGeneration);
  const char* const map = mmap(NULL, 17, PROT_READ, MAP_SHARED, fd, 0);
  if (map == MAP_FAILED) fail("mmap");
  return map;
}

static void watch_clock(void) {
  const char* const generation = map_generation();
  int64_t last = now(CLOCK_MONOTONIC);
  int64_t first = 0;
  int left = 0;
  int wrong = 0;
  printf("ready\n");
  int paused = 0;
  for (;;) {
    const int64_t before = now(CLOCK_MONOTONIC);
    const int64_t wall = now(CLOCK_REALTIME);
    const int64_t after = now(CLOCK_MONOTONIC);
    const int64_t offset = wall - before;
    if (before - last > 500000000) paused = 1;
    last = before; /* So that a pause from here on counts for the next. */
    /* On which side of a pause the wall clock was read nobody knows. */
    if (after - before > 5000000) continue;
    if (paused) {
      printf("%.16s %lld ", generation, (long long)(offset / 1000000));
      first = offset;
      left = 1000;
      wrong = 0;
      paused = 0;
    } else if (left > 0) {
      if (llabs(offset - first) > 50000000) ++wrong;
      if (--left == 0) printf("%d\n", wrong);
    }
  }
}

/* Of either family. */
struct name {
  socklen_t size;
  struct sockaddr_storage address;
};

static struct name make_name(const char* text, int port) {
  struct name name;
  memset(&name, 0, sizeof(name));
  struct sockaddr_in* const v4 = (struct sockaddr_in*)&name.address;
  struct sockaddr_in6* const v6 = (struct sockaddr_in6*)&name.address;
  if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)port);
    name.size = sizeof(*v4);
  } else if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    name.size = sizeof(*v6);
  }
  return name;
}

/* A child that waits for data and prints what it got instead. */
static void start_waiter(const char* label, int fd) {
  if (fork() != 0) return;
  char byte;
  const ssize_t got = recv(fd, &byte, 1, 0);
  printf("%s %s\n", label, got < 0 ? strerrorname_np(errno) : "data");
  exit(0);  // NOLINT(concurrency-mt-unsafe): the only thread.
}

/* Established with somebody who is not there, as after a restore. */
static int connect_outside(const char* text) {
  const struct name name = make_name(text, 80);
  const int fd = socket(name.address.ss_family, SOCK_STREAM, 0);
  int repair = 1;
  if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &repair, sizeof(repair)) != 0) {
    fail("TCP_REPAIR");
  }
  if (connect(fd, (const struct sockaddr*)&name.address, name.size) != 0) {
    fail("connect outside");
  }
  repair = -1; /* Off, and sends nothing. */
  setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &repair, sizeof(repair));
  return fd;
}

static int listen_at(const char* text, int port) {
  const struct name name = make_name(text, port);
  const int fd = socket(name.address.ss_family, SOCK_STREAM, 0);
  if (bind(fd, (const struct sockaddr*)&name.address, name.size) != 0 ||
      listen(fd, 5) != 0) {
    fail("listen");
  }
  return fd;
}

static int connect_to(const char* text, int port) {
  const struct name name = make_name(text, port);
  const int fd = socket(name.address.ss_family, SOCK_STREAM, 0);
  if (connect(fd, (const struct sockaddr*)&name.address, name.size) != 0) {
    fail("connect");
  }
  return fd;
}

static void check_pair(const char* label, int from, int to) {
  char byte = 0;
  const int sent = write(from, "x", 1) == 1;
  printf("%s %s\n", label,
         sent && read(to, &byte, 1) == 1 && byte == 'x' ? "lives" : "broken");
}

static void use_sockets(void) {
  start_waiter("outside v4", connect_outside("192.0.2.2"));
  start_waiter("outside v6", connect_outside("2001:db8::2"));
  const struct name peer = make_name("192.0.2.2", 53);
  const int udp = socket(AF_INET, SOCK_DGRAM, 0);
  if (connect(udp, (const struct sockaddr*)&peer.address, peer.size) != 0) {
    fail("connect UDP");
  }
  start_waiter("outside udp", udp);
  const int loopback = listen_at("127.0.0.1", 7001);
  const int loop_from = connect_to("127.0.0.1", 7001);
  const int loop_to = accept(loopback, NULL, NULL);
  /* By its own address on the outside. */
  const int own = listen_at("192.0.2.1", 7002);
  const int own_from = connect_to("192.0.2.1", 7002);
  const int own_to = accept(own, NULL, NULL);
  const int v6 = listen_at("::1", 7003);
  const int v6_from = connect_to("::1", 7003);
  const int v6_to = accept(v6, NULL, NULL);
  int fds[2];
  if (pipe(fds) != 0) fail("pipe");
  char deleted[] = "/tmp/wake-probe-XXXXXX";
  const int file = mkstemp(deleted);
  unlink(deleted);
  if (write(file, "x", 1) != 1) fail("write");
  printf("ready\n");
  char byte;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  while (wait(NULL) > 0) {
  }
  check_pair("loopback", loop_from, loop_to);
  check_pair("own address", own_to, own_from);
  check_pair("loopback v6", v6_from, v6_to);
  check_pair("pipe", fds[1], fds[0]);
  const int again = connect_to("192.0.2.1", 7002);
  check_pair("listener", again, accept(own, NULL, NULL));
  printf("deleted file %s\n", pread(file, &byte, 1, 0) == 1 ? "lives" : "gone");
}

static void watch_generation(void) {
  const int fd = inotify_init1(IN_CLOEXEC);
  if (inotify_add_watch(fd, kGeneration, IN_CLOSE_WRITE) < 0) fail("inotify");
  printf("ready\n");
  char event[4096];
  if (read(fd, event, sizeof(event)) > 0) {
    printf("%.16s\n", map_generation());
  }
}

/* As the test reads it. */
struct sample {
  int64_t before; /* CLOCK_MONOTONIC before and after the wall clock. */
  int64_t wall;
  int64_t after;
  uint64_t draw;
};

static void leave_samples(const char* directory, const char* generation,
                          unsigned cpu, const struct sample* samples,
                          size_t size) {
  char name[256];
  char whole[300];
  snprintf(name, sizeof(name), "%s/%.16s.%u", directory, generation, cpu);
  snprintf(whole, sizeof(whole), "%s.new", name);
  const int fd = open(whole, O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (fd < 0 || write(fd, samples, size) != (ssize_t)size) fail(whole);
  close(fd);
  if (rename(whole, name) != 0) fail(name);
}

static void draw_numbers(const char* directory, unsigned cpu) {
  enum { kSamples = 1000 };
  static struct sample samples[kSamples];
  cpu_set_t only;
  CPU_ZERO(&only);
  CPU_SET(cpu, &only);
  if (sched_setaffinity(0, sizeof(only), &only) != 0) fail("affinity");
  const char* const generation = map_generation();
  char current[17] = "";
  int count = kSamples;
  for (;;) {
    if (memcmp(current, generation, 16) != 0) {
      memcpy(current, generation, 16);
      count = 0;
    }
    struct sample sample;
    sample.before = now(CLOCK_MONOTONIC);
    sample.wall = now(CLOCK_REALTIME);
    sample.after = now(CLOCK_MONOTONIC);
    if (getrandom(&sample.draw, sizeof(sample.draw), 0) !=
        sizeof(sample.draw)) {
      fail("getrandom");
    }
    /* On which side of a wake the sample is nobody knows. */
    if (memcmp(current, generation, 16) != 0 || count == kSamples) continue;
    samples[count++] = sample;
    if (count == kSamples) {
      leave_samples(directory, current, cpu, samples, sizeof(samples));
    }
  }
}

int main(int argc, char** argv) {
  setvbuf(stdout, NULL, _IONBF, 0);
  const char* const what = argc > 1 ? argv[1] : "";
  if (strcmp(what, "clock") == 0) watch_clock();
  if (strcmp(what, "sockets") == 0) use_sockets();
  if (strcmp(what, "watch") == 0) watch_generation();
  if (strcmp(what, "draw") == 0 && argc > 2) {
    draw_numbers(argv[2], fork() == 0 ? 1 : 0);
  }
  if (strcmp(what, "time") == 0) {
    int64_t monotonic;
    int64_t wall;
    do {
      monotonic = now(CLOCK_MONOTONIC);
      wall = now(CLOCK_REALTIME);
    } while (now(CLOCK_MONOTONIC) - monotonic > 1000000);
    printf("%lld %lld\n", (long long)wall, (long long)monotonic);
  }
  return 0;
}
