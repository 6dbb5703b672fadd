#ifndef CATNAP_LIB_DEVICE_REGISTER_PAGE_H_
#define CATNAP_LIB_DEVICE_REGISTER_PAGE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "base/mapping.h"

namespace catnap::device {

inline constexpr size_t kRegisterPageSize = 4096;

// What the guest reads from one device's registers, without leaving the guest.
// Only the device writes here; a guest's write exits to the device's
// IoHandler. A view: copy it freely, within the life of its RegisterPages.
//
// Thread safety: any calls may overlap; the guest reads at any time. A
// naturally aligned 8, 16 or 32-bit value is always seen whole; whoever needs
// more than that (a 64-bit field, several fields) has the guest check again,
// as virtio's ConfigGeneration does.
class RegisterPage {
 public:
  // `offset` counts bytes from the start of the page. That it is a multiple of
  // 4 and inside the page is the caller's duty (asserted): it is never the
  // guest's value.
  void Store32(size_t offset, uint32_t value);
  uint32_t Load32(size_t offset) const;

  // Copies `bytes` to `offset`, in address order, by the largest aligned
  // pieces of at most 4 bytes. The caller's duty (asserted): they fit.
  void CopyIn(size_t offset, std::span<const uint8_t> bytes);

 private:
  friend class RegisterPages;
  explicit RegisterPage(uint8_t* base) : base_(base) {}

  uint8_t* base_;
};

// The memory behind the register pages of all devices of one machine, to be
// mapped as one read-only slot. Zeroed at first. MADV_DONTFORK and
// MADV_DONTDUMP, as all that a guest sees.
//
// Thread safety: thread-compatible; the views are as RegisterPage says.
class RegisterPages {
 public:
  // Errors: INVALID_ARGUMENT (`count` is 0), RESOURCE_EXHAUSTED.
  static absl::StatusOr<RegisterPages> Create(size_t count);

  size_t count() const { return mapping_.size() / kRegisterPageSize; }
  // The page of device `index`. REQUIRES: index < count().
  RegisterPage page(size_t index);

  // What the memory slot is made over. It stays where it is when this object
  // is moved.
  uint8_t* host_base() const { return mapping_.data(); }
  size_t size() const { return mapping_.size(); }

 private:
  explicit RegisterPages(base::Mapping mapping)
      : mapping_(std::move(mapping)) {}

  base::Mapping mapping_;
};

}  // namespace catnap::device

#endif  // CATNAP_LIB_DEVICE_REGISTER_PAGE_H_
