#ifndef CATNAP_BENCH_SNAPSHOT_NATIVE_H_
#define CATNAP_BENCH_SNAPSHOT_NATIVE_H_

#include <string>

#include "harness.h"

namespace catnap::bench {

// The writer and the reader of snapshots over the memory of a real guest, from
// `guest` (see SaveGuest()), beside zstd and fio. Needs no KVM.
void MeasureStoredMemory(const std::string& guest, Report& report);

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_SNAPSHOT_NATIVE_H_
