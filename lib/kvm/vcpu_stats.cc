#include <sys/ioctl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "kvm/vcpu_fd.h"

namespace catnap::kvm {
namespace {

// struct kvm_stats_desc before its name, which ends in a flexible array (see
// fam.h): u32 flags, s16 exponent, u16 size, u32 offset, u32 bucket_size.
constexpr size_t kDescriptorBytes = 16;
constexpr size_t kOffsetAt = 8;
constexpr size_t kMaxNameBytes = 256;

bool ReadAt(int fd, void* to, size_t bytes, uint64_t offset) {
  return ::pread(fd, to, bytes, static_cast<off_t>(offset)) ==
         static_cast<ssize_t>(bytes);
}

}  // namespace

absl::StatusOr<uint64_t> VcpuFd::ReadStat(std::string_view name) const {
  const base::UniqueFd stats(::ioctl(fd_.get(), KVM_GET_STATS_FD, 0));
  if (!stats.valid()) {
    return Error(absl::StatusCode::kUnimplemented,
                 "KVM_GET_STATS_FD: this kernel does not count");
  }
  const auto damaged = [] {
    return absl::UnavailableError("KVM_GET_STATS_FD: cannot be read");
  };
  kvm_stats_header header{};
  if (!ReadAt(stats.get(), &header, sizeof(header), 0) ||
      header.name_size > kMaxNameBytes) {
    return damaged();
  }
  std::array<char, kDescriptorBytes + kMaxNameBytes> descriptor{};
  const size_t size = kDescriptorBytes + header.name_size;
  for (uint64_t i = 0; i < header.num_desc; ++i) {
    if (!ReadAt(stats.get(), descriptor.data(), size,
                header.desc_offset + i * size)) {
      return damaged();
    }
    const char* const text = &descriptor[kDescriptorBytes];
    if (std::string_view(text, ::strnlen(text, header.name_size)) != name) {
      continue;
    }
    uint32_t offset = 0;
    std::memcpy(&offset, &descriptor[kOffsetAt], sizeof(offset));
    uint64_t value = 0;
    if (!ReadAt(stats.get(), &value, sizeof(value),
                uint64_t{header.data_offset} + offset)) {
      return damaged();
    }
    return value;
  }
  return Error(absl::StatusCode::kNotFound, "KVM has no counter {}",
               std::string(name));
}

}  // namespace catnap::kvm
