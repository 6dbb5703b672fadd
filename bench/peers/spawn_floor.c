/*
 * What it costs to start a program and wait for its end, without anything of
 * ours: the floor of an exec. Without arguments it ends at once, and so is the
 * program that is started, too.
 *
 *   spawn_floor PROGRAM RUNS    prints the median in nanoseconds
 */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>

static long long Now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int Compare(const void* a, const void* b) {
  const long long x = *(const long long*)a;
  const long long y = *(const long long*)b;
  return (x > y) - (x < y);
}

int main(int argc, char** argv) {
  static long long times[10000];
  char* child_argv[2] = {NULL, NULL};
  char* child_envp[1] = {NULL};
  int runs;
  int i;
  if (argc < 3) return 0;
  runs = atoi(argv[2]);
  if (runs < 1 || runs > 10000) return 2;
  child_argv[0] = argv[1];
  for (i = 0; i < runs; i++) {
    const long long start = Now();
    pid_t pid;
    int status;
    if (posix_spawn(&pid, argv[1], NULL, NULL, child_argv, child_envp) != 0 ||
        waitpid(pid, &status, 0) != pid || status != 0) {
      fprintf(stderr, "cannot run %s\n", argv[1]);
      return 1;
    }
    times[i] = Now() - start;
  }
  qsort(times, (size_t)runs, sizeof(times[0]), Compare);
  printf("%lld\n", times[(runs - 1) / 2]);
  return 0;
}
