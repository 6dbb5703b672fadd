#include "arch/x86_64/cpuid.h"

#include <catch2/catch.hpp>
#include <cstdint>

namespace catnap::arch {
namespace {

constexpr uint32_t Bit(int n) { return uint32_t{1} << n; }

kvm_cpuid_entry2 Leaf(uint32_t function, uint32_t index, uint32_t eax,
                      uint32_t ebx, uint32_t ecx, uint32_t edx) {
  kvm_cpuid_entry2 entry{};
  entry.function = function;
  entry.index = index;
  entry.eax = eax;
  entry.ebx = ebx;
  entry.ecx = ecx;
  entry.edx = edx;
  return entry;
}

constexpr uint32_t kAll = 0xffff'ffff;
constexpr uint32_t kIntel = 0x756e'6547;  // "Genu"
constexpr uint32_t kAmd = 0x6874'7541;    // "Auth"

// A host that offers everything there is, and more.
std::vector<kvm_cpuid_entry2> EverythingHost(uint32_t vendor) {
  return {Leaf(0x0, 0, 0x20, vendor, 0, 0),
          Leaf(0x1, 0, 0x806f8, 0x0004'0800, kAll, kAll),
          Leaf(0x4, 0, 0xffff'c121, 0, 0, 0),
          Leaf(0x4, 3, 0xffff'c163, 0, 0, 0),
          Leaf(0x7, 0, 2, kAll, kAll, kAll),
          Leaf(0x7, 1, kAll, kAll, kAll, kAll),
          Leaf(0xa, 0, kAll, kAll, kAll, kAll),
          Leaf(0xb, 0, 1, 2, 0x100, 0),
          Leaf(0xd, 0, 0x6'02e7, 11008, 11008, 0),
          Leaf(0xd, 1, 0x1f, 11008, 0x1800, 0),
          Leaf(0xd, 2, 256, 576, 0, 0),
          Leaf(0xd, 5, 64, 1088, 0, 0),
          Leaf(0xd, 6, 512, 1152, 0, 0),
          Leaf(0xd, 7, 1024, 1664, 0, 0),
          Leaf(0xd, 9, 8, 2688, 0, 0),
          Leaf(0xd, 17, 64, 2752, 0, 0),
          Leaf(0xd, 18, 8192, 2816, 0, 0),
          Leaf(0x12, 0, kAll, kAll, kAll, kAll),
          Leaf(0x14, 0, kAll, kAll, kAll, kAll),
          Leaf(0x1d, 0, kAll, kAll, kAll, kAll),
          Leaf(0x4000'0000, 0, 0x4000'0001, 0x4b4d'564b, 0, 0),
          Leaf(0x4000'0001, 0, kAll, 0, 0, 0),
          Leaf(0x8000'0000, 0, 0x8000'0026, 0, 0, 0),
          Leaf(0x8000'0001, 0, 0, 0, kAll, kAll),
          Leaf(0x8000'0008, 0, 0x3030, kAll, 0x7007, 0),
          Leaf(0x8000'000a, 0, kAll, kAll, kAll, kAll),
          Leaf(0x8000'001e, 0, kAll, kAll, kAll, kAll),
          Leaf(0x8000'0022, 0, kAll, kAll, kAll, kAll)};
}

const kvm_cpuid_entry2* Find(const std::vector<kvm_cpuid_entry2>& leaves,
                             uint32_t function, uint32_t index = 0) {
  for (const auto& entry : leaves) {
    if (entry.function == function && entry.index == index) return &entry;
  }
  return nullptr;
}

kvm_cpuid_entry2 Get(const std::vector<kvm_cpuid_entry2>& leaves,
                     uint32_t function, uint32_t index = 0) {
  const kvm_cpuid_entry2* entry = Find(leaves, function, index);
  REQUIRE(entry != nullptr);
  return *entry;
}

TEST_CASE("No baseline shows VMX, SVM, AMX, SGX, the PMU or async faults") {
  const auto baseline = GENERATE(CpuBaseline::kX86_64V2, CpuBaseline::kX86_64V3,
                                 CpuBaseline::kHost);
  const auto vendor = GENERATE(kIntel, kAmd);
  const auto leaves = BuildCpuid(EverythingHost(vendor), {baseline}, 0);
  CHECK((Get(leaves, 1).ecx & Bit(5)) == 0);                         // VMX
  CHECK((Get(leaves, 1).ecx & Bit(15)) == 0);                        // PDCM
  CHECK((Get(leaves, 7).ebx & Bit(2)) == 0);                         // SGX
  CHECK((Get(leaves, 7).edx & (Bit(22) | Bit(24) | Bit(25))) == 0);  // AMX
  CHECK((Get(leaves, 0x8000'0001).ecx & Bit(2)) == 0);               // SVM
  CHECK((Get(leaves, 0x4000'0001).eax & (Bit(4) | Bit(10) | Bit(14))) == 0);
  CHECK(Find(leaves, 0xa) == nullptr);
  CHECK(Find(leaves, 0x12) == nullptr);
  CHECK(Find(leaves, 0x8000'000a) == nullptr);
  CHECK(Find(leaves, 0xd, 17) == nullptr);
  CHECK(Find(leaves, 0xd, 18) == nullptr);
}

TEST_CASE("Every baseline shows the hypervisor and the TSC deadline timer") {
  const auto baseline = GENERATE(CpuBaseline::kX86_64V2, CpuBaseline::kX86_64V3,
                                 CpuBaseline::kHost);
  auto host = EverythingHost(kIntel);
  for (auto& entry : host) {
    if (entry.function == 1) entry.ecx &= ~(Bit(31) | Bit(24));
  }
  const auto leaves = BuildCpuid(host, {baseline}, 0);
  CHECK((Get(leaves, 1).ecx & Bit(31)) != 0);
  CHECK((Get(leaves, 1).ecx & Bit(24)) != 0);
  const auto without =
      BuildCpuid(host, {.baseline = baseline, .tsc_deadline = false}, 0);
  CHECK((Get(without, 1).ecx & Bit(24)) == 0);
}

TEST_CASE("x86-64-v2 has SSE4.2 and POPCNT, and neither AVX nor XSAVE") {
  const auto leaves =
      BuildCpuid(EverythingHost(kIntel), {CpuBaseline::kX86_64V2}, 0);
  CHECK((Get(leaves, 1).ecx & Bit(20)) != 0);
  CHECK((Get(leaves, 1).ecx & Bit(23)) != 0);
  CHECK((Get(leaves, 1).ecx & (Bit(26) | Bit(28))) == 0);
  CHECK((Get(leaves, 7).ebx & Bit(5)) == 0);
  CHECK(Find(leaves, 0xd) == nullptr);
}

TEST_CASE("x86-64-v3 has AVX2 and an XSAVE area of just that size") {
  const auto leaves =
      BuildCpuid(EverythingHost(kIntel), {CpuBaseline::kX86_64V3}, 0);
  CHECK((Get(leaves, 1).ecx & Bit(28)) != 0);
  CHECK((Get(leaves, 7).ebx & (Bit(5) | Bit(16))) == Bit(5));
  CHECK(Get(leaves, 0xd).eax == 0x7);
  CHECK(Get(leaves, 0xd).ecx == 832);
  CHECK(Find(leaves, 0xd, 5) == nullptr);
}

TEST_CASE("The host baseline lists the XSAVE components of shown features") {
  const auto leaves =
      BuildCpuid(EverythingHost(kIntel), {CpuBaseline::kHost}, 0);
  CHECK(Get(leaves, 0xd).eax == 0x2e7);
  CHECK(Get(leaves, 0xd).ecx == 2696);
  CHECK(Get(leaves, 0xd, 1).ecx == 0);
}

TEST_CASE("A baseline never shows what the host lacks") {
  std::vector<kvm_cpuid_entry2> host = EverythingHost(kIntel);
  for (auto& entry : host) {
    if (entry.function == 7 && entry.index == 0) entry.ebx = 0;
  }
  const auto leaves = BuildCpuid(host, {CpuBaseline::kX86_64V3}, 0);
  CHECK(Get(leaves, 7).ebx == 0);
}

TEST_CASE("Topology: every vCPU is a core of one package") {
  const int index = GENERATE(0, 2);
  const auto leaves = BuildCpuid(EverythingHost(kIntel), {.vcpus = 3}, index);
  const auto id = static_cast<uint32_t>(index);
  CHECK(Get(leaves, 1).ebx >> 24 == id);
  CHECK((Get(leaves, 1).ebx >> 16 & 0xff) == 3);
  CHECK((Get(leaves, 1).edx & Bit(28)) != 0);
  CHECK(Get(leaves, 0xb, 0).edx == id);
  CHECK(Get(leaves, 0xb, 1).eax == 2);  // Bits of an APIC id of 0 to 2.
  CHECK(Get(leaves, 0xb, 1).ebx == 3);
}

TEST_CASE("Topology on AMD is told in its own leaf") {
  const auto leaves = BuildCpuid(EverythingHost(kAmd), {.vcpus = 4}, 1);
  CHECK(Get(leaves, 0x8000'0008).ecx == (2u << 12 | 3));
  CHECK((Get(leaves, 0x8000'0001).ecx & Bit(1)) != 0);   // CmpLegacy
  CHECK((Get(leaves, 0x8000'0001).ecx & Bit(22)) == 0);  // TopologyExtensions
}

TEST_CASE("One vCPU is not a hyper-thread") {
  const auto leaves = BuildCpuid(EverythingHost(kIntel), {}, 0);
  CHECK((Get(leaves, 1).edx & Bit(28)) == 0);
}

TEST_CASE("The highest leaf of each range is one that exists") {
  const auto leaves =
      BuildCpuid(EverythingHost(kIntel), {CpuBaseline::kX86_64V2}, 0);
  CHECK(Find(leaves, Get(leaves, 0).eax) != nullptr);
  CHECK(Find(leaves, Get(leaves, 0x8000'0000).eax) != nullptr);
}

TEST_CASE("A host without any leaf gives only topology, and no crash") {
  const auto leaves = BuildCpuid({}, {}, 0);
  CHECK(leaves.size() == 2);
}

}  // namespace
}  // namespace catnap::arch
