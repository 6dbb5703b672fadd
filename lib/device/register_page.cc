#include "device/register_page.h"

#include <sys/mman.h>

#include <atomic>
#include <cassert>
#include <cerrno>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/status.h"

namespace catnap::device {
namespace {

// Stores the first sizeof(T) of `bytes` at `to` in one access.
template <typename T>
size_t StorePiece(uint8_t* to, std::span<const uint8_t> bytes) {
  // release: a guest that sees this piece sees what was stored before it.
  std::atomic_ref<T>(*reinterpret_cast<T*>(to))
      .store(base::LoadLe<T>(bytes.data()), std::memory_order_release);
  return sizeof(T);
}

}  // namespace

void RegisterPage::Store32(size_t offset, uint32_t value) {
  assert(offset < kRegisterPageSize && offset % sizeof(value) == 0);
  // release: a guest that sees `value` sees what was stored before it.
  std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(base_ + offset))
      .store(value, std::memory_order_release);
}

uint32_t RegisterPage::Load32(size_t offset) const {
  assert(offset < kRegisterPageSize && offset % sizeof(uint32_t) == 0);
  // acquire: pairs with the release in Store32() and CopyIn().
  return std::atomic_ref<uint32_t>(*reinterpret_cast<uint32_t*>(base_ + offset))
      .load(std::memory_order_acquire);
}

void RegisterPage::CopyIn(size_t offset, std::span<const uint8_t> bytes) {
  assert(base::InRange(offset, bytes.size(), kRegisterPageSize));
  while (!bytes.empty()) {
    // The page is aligned, so the offset's alignment is the address's.
    uint8_t* const to = base_ + offset;
    size_t stored = 0;
    if (bytes.size() >= 4 && offset % 4 == 0) {
      stored = StorePiece<uint32_t>(to, bytes);
    } else if (bytes.size() >= 2 && offset % 2 == 0) {
      stored = StorePiece<uint16_t>(to, bytes);
    } else {
      stored = StorePiece<uint8_t>(to, bytes);
    }
    offset += stored;
    bytes = bytes.subspan(stored);
  }
}

absl::StatusOr<RegisterPages> RegisterPages::Create(size_t count) {
  const auto size = base::CheckedMul<size_t>(count, kRegisterPageSize);
  if (count == 0 || !size.has_value()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} register pages, must be at least 1 and fit the address "
                 "space",
                 count);
  }
  CATNAP_ASSIGN_OR_RETURN(base::Mapping mapping,
                          base::Mapping::Anonymous(*size));
  for (const int advice : {MADV_DONTFORK, MADV_DONTDUMP}) {
    if (::madvise(mapping.data(), mapping.size(), advice) != 0) {
      return ErrnoError(errno, "madvise {} over register pages", advice);
    }
  }
  return RegisterPages(std::move(mapping));
}

RegisterPage RegisterPages::page(size_t index) {
  assert(index < count());
  return RegisterPage(mapping_.data() + index * kRegisterPageSize);
}

}  // namespace catnap::device
