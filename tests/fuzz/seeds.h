#ifndef CATNAP_TESTS_FUZZ_SEEDS_H_
#define CATNAP_TESTS_FUZZ_SEEDS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "base/byte_order.h"

// What the files that make seeds share, and those that are not in seeds.cc.
// Deterministic: the same code writes the same bytes.

namespace catnap::fuzz {

using Bytes = std::vector<uint8_t>;

struct Seed {
  std::string name;
  Bytes bytes;
};

template <typename T>
void Put(Bytes* to, T value) {
  to->resize(to->size() + sizeof(T));
  base::StoreLe(&(*to)[to->size() - sizeof(T)], value);
}

// machine_seeds.cc
std::vector<Seed> MachineStateSeeds();

// runtime_seeds.cc
std::vector<Seed> ImageRecordSeeds();
std::vector<Seed> VmRecordSeeds();

// snapshot_seeds.cc
std::vector<Seed> SnapshotIndexSeeds();
std::vector<Seed> SnapshotReaderSeeds();

// net_seeds.cc
std::vector<Seed> NetDhcpSeeds();
std::vector<Seed> NetDnsSeeds();
std::vector<Seed> NetGateSeeds();
std::vector<Seed> NetStreamSeeds();

}  // namespace catnap::fuzz

#endif  // CATNAP_TESTS_FUZZ_SEEDS_H_
