#include "arch/x86_64/cpu_identity.h"

#include <catch2/catch.hpp>
#include <string>

#include "base/status.h"

namespace catnap::arch {
namespace {

kvm_cpuid_entry2 Leaf(uint32_t function, uint32_t index, uint32_t eax,
                      uint32_t ebx, uint32_t ecx, uint32_t edx) {
  kvm_cpuid_entry2 leaf{};
  leaf.function = function;
  leaf.index = index;
  leaf.eax = eax;
  leaf.ebx = ebx;
  leaf.ecx = ecx;
  leaf.edx = edx;
  return leaf;
}

constexpr uint32_t kAvx2 = 1u << 5;

CpuIdentity Saved() {
  return {.cpuid = {Leaf(0, 0, 0xd, 0x756e6547, 0x6c65746e, 0x49656e69),
                    Leaf(1, 0, 0x806c1, 0x10800, 1u << 26, 1),
                    Leaf(7, 0, 0, kAvx2, 0, 0), Leaf(0xd, 0, 7, 832, 832, 0),
                    Leaf(0xd, 2, 256, 576, 0, 0)},
          .tsc_khz = 2'000'000,
          .xsave_bytes = 4096};
}

CpuOffer Host() {
  CpuOffer host{.cpuid = Saved().cpuid,
                .tsc_khz = 2'000'000,
                .tsc_scaling = false,
                .xsave_bytes = 4096};
  host.cpuid[1].eax = 0xa0652;  // Another model,
  host.cpuid[1].ebx = 0x3080800;
  host.cpuid[1].ecx |= 1u << 28;  // and more features.
  return host;
}

std::string Refused(const CpuIdentity& saved, const CpuOffer& host) {
  const absl::Status status = CheckCpu(saved, host);
  CHECK(status.code() == absl::StatusCode::kFailedPrecondition);
  CHECK(ReasonOf(status) == ErrorReason::kCpuMismatch);
  return status.ToString();
}

TEST_CASE("A CPU that has all that was shown will do") {
  CHECK(CheckCpu(Saved(), Host()).ok());
}

TEST_CASE("The first feature that is missing is named") {
  CpuOffer host = Host();
  host.cpuid[2].ebx = 0;
  CHECK_THAT(Refused(Saved(), host),
             Catch::Contains("AVX2 (CPUID leaf 0x7.0 EBX bit 5)"));
  host.cpuid.erase(host.cpuid.begin() + 2);
  CHECK_THAT(Refused(Saved(), host), Catch::Contains("AVX2"));
}

TEST_CASE("Another vendor is refused") {
  CpuOffer host = Host();
  host.cpuid[0] = Leaf(0, 0, 0xd, 0x68747541, 0x444d4163, 0x69746e65);
  CHECK_THAT(Refused(Saved(), host), Catch::Contains("GenuineIntel") &&
                                         Catch::Contains("AuthenticAMD"));
}

TEST_CASE("Another layout of the XSAVE area is refused") {
  CpuOffer host = Host();
  host.cpuid[4].ebx = 640;
  CHECK_THAT(Refused(Saved(), host), Catch::Contains("component 2"));
  CpuIdentity saved = Saved();
  saved.xsave_bytes = 8192;
  CHECK_THAT(Refused(saved, Host()), Catch::Contains("8192"));
}

TEST_CASE("A TSC may be off by 250 millionths, or be scaled") {
  CpuOffer host = Host();
  for (const uint32_t khz : {1'999'500u, 2'000'500u}) {
    host.tsc_khz = khz;
    CHECK(CheckCpu(Saved(), host).ok());
  }
  for (const uint32_t khz : {0u, 1'999'499u, 2'000'501u, 4'000'000u}) {
    host.tsc_khz = khz;
    CHECK_THAT(Refused(Saved(), host), Catch::Contains("2000000 kHz"));
  }
  host.tsc_scaling = true;
  CHECK(CheckCpu(Saved(), host).ok());
}

TEST_CASE("An identity is decoded as it was, or not at all") {
  std::vector<uint8_t> bytes;
  state::StateEncoder out(&bytes);
  EncodeIdentity(Saved(), out);
  REQUIRE(out.status().ok());
  const auto again = DecodeIdentity(state::StateDecoder(bytes));
  REQUIRE(again.ok());
  CHECK(again->cpuid.size() == Saved().cpuid.size());
  CHECK(again->tsc_khz == Saved().tsc_khz);
  CHECK(again->xsave_bytes == Saved().xsave_bytes);
  CHECK(CheckCpu(*again, Host()).ok());
  CHECK_FALSE(DecodeIdentity(state::StateDecoder({})).ok());
  CHECK_FALSE(
      DecodeIdentity(state::StateDecoder(std::span(bytes).first(5))).ok());
}

}  // namespace
}  // namespace catnap::arch
