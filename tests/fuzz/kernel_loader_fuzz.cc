#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "arch/x86_64/boot.h"
#include "arch/x86_64/boot_params.h"
#include "arch/x86_64/layout.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

// Any file as a kernel, with an initramfs of any size: refused with
// INVALID_ARGUMENT, or loaded where nothing else is.

namespace catnap::arch {
namespace {

using memory::Gpa;
using memory::GuestMemory;

constexpr uint64_t kMemory = 4 << 20;
constexpr uint32_t kLargestInitramfs = 3 << 20;

// Not fresh for each input: what a kernel says is zero does not matter here.
GuestMemory& Memory() {
  static const std::unique_ptr<GuestMemory> instance = [] {
    auto memory = GuestMemory::Reserve({{Gpa{0}, kMemory, 0}});
    FUZZ_CHECK(memory.ok() && (*memory)->MapAnonymous().ok());
    return *std::move(memory);
  }();
  return *instance;
}

// Whether RAM below 1 MiB, where boot data and tables go, is as it was.
bool LowMemoryIsZero() {
  const auto low = Memory().Slice(Gpa{0}, kHighMemoryStart);
  FUZZ_CHECK(low.ok());
  // By words: it is looked at after every kernel.
  const auto* words = reinterpret_cast<const uint64_t*>(low->data());
  return std::all_of(words, words + low->size() / sizeof(uint64_t),
                     [](uint64_t word) { return word == 0; });
}

void CheckKernel(const LoadedKernel& kernel, std::span<const uint8_t> file) {
  FUZZ_CHECK(kernel.start.value >= kHighMemoryStart);
  FUZZ_CHECK(kernel.end.value <= kMemory);
  FUZZ_CHECK(kernel.entry.value >= kernel.start.value);
  FUZZ_CHECK(kernel.entry.value < kernel.end.value);
  FUZZ_CHECK(kernel.setup_header.size() <= file.size());
  FUZZ_CHECK(LowMemoryIsZero());
}

void CheckInitramfs(const LoadedKernel& kernel, uint32_t size) {
  static const std::vector<uint8_t> bytes(kLargestInitramfs);
  const auto at = LoadInitramfs(
      Memory(), kernel,
      ImageSource::FromBytes(std::span(bytes).first(size), "initramfs"));
  if (!at.ok()) {
    FUZZ_CHECK(at.status().code() == absl::StatusCode::kInvalidArgument);
    return;
  }
  const uint64_t end = at->value + size;
  FUZZ_CHECK(at->value % kPageSize == 0 && at->value >= kHighMemoryStart);
  FUZZ_CHECK(end <= kMemory && end <= kernel.initramfs_limit);
  FUZZ_CHECK(end <= kernel.start.value || at->value >= kernel.end.value);
}

void Check(uint32_t initramfs_size, std::span<const uint8_t> file) {
  const auto kernel =
      LoadKernel(Memory(), ImageSource::FromBytes(file, "kernel"));
  if (!kernel.ok()) {
    FUZZ_CHECK(kernel.status().code() == absl::StatusCode::kInvalidArgument);
    return;
  }
  CheckKernel(*kernel, file);
  CheckInitramfs(*kernel, initramfs_size);
  const auto page = BuildZeroPage(*kernel, {}, Memory().regions());
  FUZZ_CHECK(page.ok() && page->size() == kPageSize);
}

}  // namespace
}  // namespace catnap::arch

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::fuzz::FuzzInput input(data, size);
  const auto initramfs_size =
      input.Between<uint32_t>(0, catnap::arch::kLargestInitramfs);
  catnap::arch::Check(initramfs_size, input.Rest());
  return 0;
}
