#ifndef CATNAP_TESTS_SUPPORT_REFUSED_CALL_H_
#define CATNAP_TESTS_SUPPORT_REFUSED_CALL_H_

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>

// The main() of a program that runs CMD ARG... under a filter of system calls.
static inline int run_filtered(struct sock_filter* filter, size_t size,
                               int argc, char** argv) {
  const struct sock_fprog program = {
      .len = (unsigned short)size,
      .filter = filter,
  };
  if (argc < 2) {
    fprintf(stderr, "usage: %s CMD ARG...\n", argv[0]);
    return 2;
  }
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) {
    perror("cannot install the filter");
    return 2;
  }
  execvp(argv[1], argv + 1);
  perror(argv[1]);
  return 2;
}

#endif  // CATNAP_TESTS_SUPPORT_REFUSED_CALL_H_
