#include <array>
#include <cstring>
#include <vector>

#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "memory/guest_memory.h"

// Random accesses at random addresses, compared with a model that knows one
// byte at a time which addresses are RAM.

namespace catnap::memory {
namespace {

// Two regions with a hole between them, as a guest above 3 GiB has.
constexpr uint64_t kLowSize = 8 << 10;
constexpr uint64_t kHighStart = 32 << 10;
constexpr uint64_t kHighSize = 4 << 10;
constexpr size_t kLongestAccess = 3 * kLowSize;

class Model {
 public:
  // The byte at `gpa`, null when it is not RAM.
  uint8_t* At(uint64_t gpa) {
    if (gpa < kLowSize) return &low_[gpa];
    if (gpa < kHighStart || gpa - kHighStart >= kHighSize) return nullptr;
    return &high_[gpa - kHighStart];
  }

  // Whether [gpa, gpa + length) is RAM of one region. Empty ranges may stand
  // at a region's end.
  bool Has(uint64_t gpa, uint64_t length) {
    if (length == 0) {
      return gpa <= kLowSize ||
             (gpa >= kHighStart && gpa <= kHighStart + kHighSize);
    }
    for (uint64_t i = 0; i < length; ++i) {
      if (gpa + i < gpa || At(gpa + i) == nullptr) return false;
    }
    return true;
  }

 private:
  std::array<uint8_t, kLowSize> low_{};
  std::array<uint8_t, kHighSize> high_{};
};

class Run {
 public:
  Run(GuestMemory* memory, Model* model) : memory_(memory), model_(model) {}

  void Step(fuzz::FuzzInput* input) {
    const auto operation = input->Between<uint8_t>(0, 3);
    // Mostly near RAM, sometimes anywhere.
    const uint64_t gpa = input->Between<uint8_t>(0, 7) == 0
                             ? input->Integer<uint64_t>()
                             : input->Between<uint32_t>(0, 64 << 10);
    switch (operation) {
      case 0:
        return Read(gpa, input->Between<uint16_t>(0, kLongestAccess));
      case 1:
        return Write(gpa, input->Bytes(input->Integer<uint8_t>()));
      case 2:
        return Store(gpa, input->Integer<uint32_t>());
      default:
        return Load(gpa);
    }
  }

 private:
  void Read(uint64_t gpa, size_t length) {
    std::vector<uint8_t> bytes(length);
    const bool ok = memory_->Read(Gpa{gpa}, bytes).ok();
    FUZZ_CHECK(ok == model_->Has(gpa, length));
    if (!ok) return;
    for (size_t i = 0; i < length; ++i) {
      FUZZ_CHECK(bytes[i] == *model_->At(gpa + i));
    }
  }

  void Write(uint64_t gpa, std::span<const uint8_t> bytes) {
    const bool ok = memory_->Write(Gpa{gpa}, bytes).ok();
    FUZZ_CHECK(ok == model_->Has(gpa, bytes.size()));
    if (!ok) return;
    for (size_t i = 0; i < bytes.size(); ++i) {
      *model_->At(gpa + i) = bytes[i];
    }
  }

  void Store(uint64_t gpa, uint32_t value) {
    const bool ok = memory_->Store<uint32_t>(Gpa{gpa}, value).ok();
    FUZZ_CHECK(ok == (gpa % 4 == 0 && model_->Has(gpa, 4)));
    if (ok) std::memcpy(model_->At(gpa), &value, sizeof(value));
  }

  void Load(uint64_t gpa) {
    const auto value = memory_->Load<uint32_t>(Gpa{gpa});
    FUZZ_CHECK(value.ok() == (gpa % 4 == 0 && model_->Has(gpa, 4)));
    if (!value.ok()) return;
    FUZZ_CHECK(std::memcmp(&*value, model_->At(gpa), sizeof(*value)) == 0);
  }

  GuestMemory* const memory_;  // Not owned.
  Model* const model_;         // Not owned.
};

}  // namespace
}  // namespace catnap::memory

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using catnap::memory::Gpa;
  auto memory = catnap::memory::GuestMemory::Reserve(
      {{Gpa{0}, catnap::memory::kLowSize, 0},
       {Gpa{catnap::memory::kHighStart}, catnap::memory::kHighSize,
        catnap::memory::kLowSize}});
  FUZZ_CHECK(memory.ok() && (*memory)->MapAnonymous().ok());
  catnap::memory::Model model;
  catnap::memory::Run run(memory->get(), &model);
  catnap::fuzz::FuzzInput input(data, size);
  while (!input.empty()) run.Step(&input);
  return 0;
}
