#ifndef CATNAP_BENCH_SNAPSHOT_PEERS_H_
#define CATNAP_BENCH_SNAPSHOT_PEERS_H_

#include <string>

#include "harness.h"

namespace catnap::bench {

// The same program in QEMU's microvm, on the root disk `root`, saved and
// brought back in the ways that QEMU has: once each.
void MeasureQemu(const std::string& root, Report& report);

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_SNAPSHOT_PEERS_H_
