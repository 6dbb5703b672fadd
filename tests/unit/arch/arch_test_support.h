#ifndef CATNAP_TESTS_UNIT_ARCH_ARCH_TEST_SUPPORT_H_
#define CATNAP_TESTS_UNIT_ARCH_ARCH_TEST_SUPPORT_H_

#include <unistd.h>

#include <catch2/catch.hpp>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"
#include "memory/guest_memory.h"

namespace catnap::arch {

// Fresh RAM of `size` bytes from 0.
inline std::unique_ptr<memory::GuestMemory> MakeMemory(uint64_t size) {
  auto memory = memory::GuestMemory::Reserve({{memory::Gpa{0}, size, 0}});
  REQUIRE(memory.ok());
  REQUIRE((*memory)->MapAnonymous().ok());
  return *std::move(memory);
}

inline std::vector<uint8_t> ReadMemory(const memory::GuestMemory& memory,
                                       uint64_t at, size_t size) {
  std::vector<uint8_t> bytes(size);
  REQUIRE(memory.Read(memory::Gpa{at}, bytes).ok());
  return bytes;
}

inline base::UniqueFd MakeFile(std::span<const uint8_t> bytes) {
  auto fd = base::CreateMemFd("file", 0);
  REQUIRE(fd.ok());
  REQUIRE(::pwrite(fd->get(), bytes.data(), bytes.size(), 0) ==
          static_cast<ssize_t>(bytes.size()));
  return *std::move(fd);
}

// Whether `status` is INVALID_ARGUMENT with a message that holds all of
// `parts`.
inline void CheckInvalid(const absl::Status& status,
                         const std::vector<std::string>& parts) {
  CHECK(status.code() == absl::StatusCode::kInvalidArgument);
  for (const std::string& part : parts) {
    CHECK_THAT(std::string(status.message()), Catch::Contains(part));
  }
}

}  // namespace catnap::arch

#endif  // CATNAP_TESTS_UNIT_ARCH_ARCH_TEST_SUPPORT_H_
