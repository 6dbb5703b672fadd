// Says what this machine can do for MicroVMs. Exit status 0: they can be
// started here; 1: they cannot, and the text says why and what to do.
#include <cstdio>

#include "catnap/catnap.h"

int main() {
  const catnap::HostReport report = catnap::Host::Probe();
  std::printf("%s\n", report.summary.c_str());
  return report.usable.ok() ? 0 : 1;
}
