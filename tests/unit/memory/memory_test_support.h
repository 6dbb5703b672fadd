#ifndef CATNAP_TESTS_UNIT_MEMORY_MEMORY_TEST_SUPPORT_H_
#define CATNAP_TESTS_UNIT_MEMORY_MEMORY_TEST_SUPPORT_H_

#include <catch2/catch.hpp>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/page_range.h"
#include "memory/guest_memory.h"
#include "memory/memory_file.h"
#include "memory/memory_image.h"
#include "memory/page_map.h"

namespace catnap::memory {

inline constexpr uint64_t kPage = base::kPageBytes;

// REQUIREs that `value` is OK and unwraps it.
template <typename T>
T Must(absl::StatusOr<T> value) {
  INFO(value.status().ToString());
  REQUIRE(value.ok());
  return *std::move(value);
}

inline void Must(const absl::Status& status) {
  INFO(status.ToString());
  REQUIRE(status.ok());
}

inline base::PageRange Pages(uint64_t first, uint64_t count) {
  return {first * kPage, count * kPage};
}

inline std::shared_ptr<MemoryFile> NewFile(uint64_t size) {
  return Must(MemoryFile::Create("test", size));
}

// Fills pages with `value`.
inline void Fill(MemoryFile& file, base::PageRange range, uint8_t value) {
  const auto bytes = Must(file.Writable(range));
  std::memset(bytes.data(), value, bytes.size());
}

inline std::unique_ptr<GuestMemory> NewGuest(uint64_t size) {
  return Must(GuestMemory::Reserve({{Gpa{0}, size, 0}}));
}

inline std::unique_ptr<GuestMemory> NewGuest(
    const std::shared_ptr<const MemoryImage>& image) {
  auto memory = NewGuest(image->size());
  Must(memory->MapImage(image));
  return memory;
}

// The first byte of a page as the guest sees it.
inline uint8_t At(const GuestMemory& memory, uint64_t page) {
  return *static_cast<volatile uint8_t*>(memory.host_base() + page * kPage);
}
inline void Put(GuestMemory& memory, uint64_t page, uint8_t value) {
  *static_cast<volatile uint8_t*>(memory.host_base() + page * kPage) = value;
}

inline std::vector<uint8_t> ContentOf(const MemoryImage& image) {
  std::vector<uint8_t> bytes(image.size());
  Must(image.Read(0, bytes));
  return bytes;
}
inline std::vector<uint8_t> ContentOf(const GuestMemory& memory) {
  return {memory.host_base(), memory.host_base() + memory.size()};
}

// The "VmFlags" lines of all mappings in [start, start + size).
inline std::vector<std::string> VmFlagsIn(const void* start, uint64_t size) {
  std::ifstream in("/proc/self/smaps");
  const auto first = reinterpret_cast<uintptr_t>(start);
  std::vector<std::string> flags;
  bool inside = false;
  for (std::string line; std::getline(in, line);) {
    char* end = nullptr;
    const uintptr_t at = std::strtoull(line.c_str(), &end, 16);
    if (*end == '-') inside = at >= first && at - first < size;
    if (inside && line.rfind("VmFlags:", 0) == 0) flags.push_back(line);
  }
  return flags;
}

}  // namespace catnap::memory

#endif  // CATNAP_TESTS_UNIT_MEMORY_MEMORY_TEST_SUPPORT_H_
