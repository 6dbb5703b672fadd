#include "kvm/fam.h"

#include <catch2/catch.hpp>

namespace catnap::kvm {
namespace {

TEST_CASE("A FamBuffer holds count, then entries at the offset of C") {
  kvm_msr_entry first{};
  first.index = 0x10;
  first.data = 7;
  kvm_msr_entry second{};
  second.index = 0x11;
  second.data = 8;
  MsrBuffer buffer(std::vector<kvm_msr_entry>{first, second});
  const auto* bytes = static_cast<const uint8_t*>(buffer.data());
  uint32_t count = 0;
  uint32_t index = 0;
  std::memcpy(&count, bytes, sizeof(count));
  std::memcpy(&index, bytes + 8 + 16, sizeof(index));
  CHECK(count == 2);
  CHECK(index == 0x11);
}

TEST_CASE("A FamBuffer never reads more entries than it has room for") {
  MsrListBuffer buffer(3);
  const uint32_t lie = 1000;
  std::memcpy(buffer.data(), &lie, sizeof(lie));
  CHECK(buffer.Entries().size() == 3);
}

TEST_CASE("A FamBuffer gives back what the kernel left") {
  CpuidBuffer buffer(size_t{4});
  const uint32_t used = 2;
  std::memcpy(buffer.data(), &used, sizeof(used));
  CHECK(buffer.Entries().size() == 2);
}

}  // namespace
}  // namespace catnap::kvm
