/*
 * What runs in a guest while bench_io measures, as little as it can be: one
 * connection at a time, one buffer, no other work.
 *
 *   guest_peer vsock-sink PORT     takes what comes to the end, answers 1 byte
 *   guest_peer vsock-store PORT FILE   the same, and writes it to FILE
 *   guest_peer vsock-echo PORT     answers every byte
 *   guest_peer vsock-source PORT BYTES   sends, waits for 1 byte
 *   guest_peer tcp-sink | tcp-echo | tcp-source ...   on the loopback
 *   guest_peer send ADDRESS PORT BYTES     sends by TCP, waits for 1 byte
 *   guest_peer receive ADDRESS PORT BYTES  receives by TCP
 *                                  both print nanoseconds, with the connect
 *   guest_peer net-up INTERFACE ADDRESS MASK GATEWAY
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[64 << 10];

static int Fail(const char* what) {
  perror(what);
  return 1;
}

static long long Now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int SendAll(int fd, long long bytes) {
  while (bytes > 0) {
    const size_t want =
        bytes < (long long)sizeof(buffer) ? (size_t)bytes : sizeof(buffer);
    const ssize_t sent = write(fd, buffer, want);
    if (sent <= 0) return Fail("write");
    bytes -= sent;
  }
  return 0;
}

static void Serve(int fd, const char* what, const char* argument) {
  ssize_t got;
  if (strcmp(what, "source") == 0) {
    if (SendAll(fd, atoll(argument)) == 0 && read(fd, buffer, 1) < 0)
      Fail("read");
    return;
  }
  if (strcmp(what, "store") == 0) {
    const int file = open(argument, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (file < 0) {
      Fail("open");
      return;
    }
    while ((got = read(fd, buffer, sizeof(buffer))) > 0) {
      if (write(file, buffer, (size_t)got) != got) return;
    }
    close(file);
    if (write(fd, buffer, 1) != 1) Fail("write");
    return;
  }
  while ((got = read(fd, buffer, sizeof(buffer))) > 0) {
    if (strcmp(what, "echo") == 0 && write(fd, buffer, (size_t)got) != got) {
      return;
    }
  }
  if (strcmp(what, "sink") == 0 && write(fd, buffer, 1) != 1) Fail("write");
}

static int Listen(int vsock, int port) {
  struct sockaddr_vm vm;
  struct sockaddr_in in;
  const int one = 1;
  const int fd = socket(vsock ? AF_VSOCK : AF_INET, SOCK_STREAM, 0);
  memset(&vm, 0, sizeof(vm));
  memset(&in, 0, sizeof(in));
  vm.svm_family = AF_VSOCK;
  vm.svm_cid = VMADDR_CID_ANY;
  vm.svm_port = (unsigned)port;
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  in.sin_port = htons((unsigned short)port);
  if (fd < 0) return -1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
  if (bind(fd, vsock ? (struct sockaddr*)&vm : (struct sockaddr*)&in,
           vsock ? sizeof(vm) : sizeof(in)) != 0 ||
      listen(fd, 8) != 0) {
    return -1;
  }
  return fd;
}

static int Transfer(int send, const char* host, int port, long long bytes) {
  struct sockaddr_in in;
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const long long start = Now();
  memset(&in, 0, sizeof(in));
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = inet_addr(host);
  in.sin_port = htons((unsigned short)port);
  if (connect(fd, (struct sockaddr*)&in, sizeof(in)) != 0) {
    return Fail("connect");
  }
  if (send) {
    if (SendAll(fd, bytes) != 0) return 1;
    shutdown(fd, SHUT_WR);
    if (read(fd, buffer, 1) != 1) return Fail("no answer");
  } else {
    while (bytes > 0) {
      const ssize_t got = read(fd, buffer, sizeof(buffer));
      if (got <= 0) return Fail("read");
      bytes -= got;
    }
  }
  printf("%lld\n", Now() - start);
  return 0;
}

static void Put(struct sockaddr* to, const char* address) {
  struct sockaddr_in in;
  memset(&in, 0, sizeof(in));
  in.sin_family = AF_INET;
  in.sin_addr.s_addr = inet_addr(address);
  memcpy(to, &in, sizeof(in));
}

static int NetUp(char** argv) {
  struct ifreq request;
  struct rtentry route;
  const int fd = socket(AF_INET, SOCK_DGRAM, 0);
  memset(&request, 0, sizeof(request));
  memset(&route, 0, sizeof(route));
  strncpy(request.ifr_name, argv[2], IFNAMSIZ - 1);
  Put(&request.ifr_addr, argv[3]);
  if (ioctl(fd, SIOCSIFADDR, &request) != 0) return Fail("SIOCSIFADDR");
  Put(&request.ifr_netmask, argv[4]);
  if (ioctl(fd, SIOCSIFNETMASK, &request) != 0) return Fail("SIOCSIFNETMASK");
  request.ifr_flags = IFF_UP;
  if (ioctl(fd, SIOCSIFFLAGS, &request) != 0) return Fail("SIOCSIFFLAGS");
  Put(&route.rt_gateway, argv[5]);
  Put(&route.rt_dst, "0.0.0.0");
  Put(&route.rt_genmask, "0.0.0.0");
  route.rt_flags = RTF_UP | RTF_GATEWAY;
  if (ioctl(fd, SIOCADDRT, &route) != 0) return Fail("SIOCADDRT");
  return 0;
}

int main(int argc, char** argv) {
  const int vsock = argc > 1 && strncmp(argv[1], "vsock-", 6) == 0;
  const int one = 1;
  int listener;
  if (argc == 6 && strcmp(argv[1], "net-up") == 0) return NetUp(argv);
  if (argc == 5) {
    return Transfer(strcmp(argv[1], "send") == 0, argv[2], atoi(argv[3]),
                    atoll(argv[4]));
  }
  if (argc < 3) return 2;
  listener = Listen(vsock, atoi(argv[2]));
  if (listener < 0) return Fail("listen");
  for (;;) {
    const int fd = accept(listener, NULL, NULL);
    if (fd < 0) return Fail("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    Serve(fd, strchr(argv[1], '-') + 1, argc > 3 ? argv[3] : "0");
    close(fd);
  }
}
