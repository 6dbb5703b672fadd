#ifndef CATNAP_LIB_MEMORY_GUEST_MEMORY_H_
#define CATNAP_LIB_MEMORY_GUEST_MEMORY_H_

#include <sys/uio.h>

#include <atomic>
#include <concepts>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mapping.h"
#include "base/page_range.h"
#include "memory/gpa.h"
#include "memory/memory_image.h"
#include "memory/page_waiter.h"
#include "memory/pager.h"

namespace catnap::memory {

// A run of guest RAM: [start, start + size) in the guest's address space is
// [offset, offset + size) in the host range. All three are multiples of 4 KiB.
struct Region {
  Gpa start;
  uint64_t size = 0;
  uint64_t offset = 0;
};

// The RAM of one guest: one range of host address space, cut into regions.
//
// First the range is only reserved, so that memory slots can be made over it
// before it is known what the guest will hold; then one of the Map calls puts
// memory there. Every mapping is MADV_DONTFORK and MADV_DONTDUMP, and has no
// huge pages: the first write to a page would take 2 MiB of its guest's own,
// where the launch of a fork takes 4 KiB for each page that it writes.
//
// Thread safety: the accessors may be called from any thread, and the guest
// may write at the same time: copy out, check the copy, use the copy. The Map
// calls must not overlap with anything.
class GuestMemory {
 public:
  // Reserves address space for `regions`, which must be sorted, disjoint,
  // page-aligned, not empty and packed (each offset is the sum of the sizes
  // before it). Costs no memory, but counts where the kernel does not
  // overcommit (vm.overcommit_memory 2). Errors: INVALID_ARGUMENT (regions),
  // RESOURCE_EXHAUSTED (address space).
  static absl::StatusOr<std::unique_ptr<GuestMemory>> Reserve(
      std::vector<Region> regions);

  // Puts zeroed private memory over the whole range, as an image of zeros.
  absl::Status MapAnonymous();

  // Puts a private copy-on-write view of `image` over the whole range, with one
  // mapping for each extent of a file. After an error some of it may be mapped:
  // the range is of no use any more. Files of the image that are being filled
  // bring what is touched; `on_lost` learns that they cannot, and must not let
  // go of this. Errors: INVALID_ARGUMENT (another size), RESOURCE_EXHAUSTED
  // (mappings); why a file of the image was lost.
  absl::Status MapImage(std::shared_ptr<const MemoryImage> image,
                        const Pager::OnLost& on_lost = nullptr);

  // Makes `image`, which has what the range shows now, what the range shows:
  // where the image mapped before has another place for a page, it is mapped
  // anew, and the guest's own copy of it is given back. Own pages elsewhere
  // stay. What it maps anew must be full. After an error
  // the content is still what it was, some of it mapped anew: the kernel looks
  // at its limits before it unmaps anything.
  // REQUIRES: an image is mapped; nothing touches the range meanwhile (the
  // guest is paused, its devices are quiet); the content is equal.
  // Errors: INVALID_ARGUMENT (another size), FAILED_PRECONDITION (no image is
  // mapped), RESOURCE_EXHAUSTED (mappings).
  absl::Status Rebase(std::shared_ptr<const MemoryImage> image);

  // Gives back the guest's own copies of these pages, which show the image's
  // again. REQUIRES: an image is mapped, and holds the same there; nothing
  // writes to those pages meanwhile.
  // Errors: INVALID_ARGUMENT, memory that is locked (mlock(2)); some of them
  // may be given back.
  absl::Status Discard(std::span<const base::PageRange> ranges);

  // Puts a private copy-on-write view of [0, size()) of `memfd` over the whole
  // range; the descriptor may be closed afterwards. The file must be at least
  // size() bytes and must never shrink (seal it), or a guest access ends in
  // KVM_EXIT with EFAULT and a host access in SIGBUS.
  // Errors: INVALID_ARGUMENT (file too short), RESOURCE_EXHAUSTED.
  absl::Status MapPrivate(int memfd);

  // Enters pages that are about to be used into the page table: for reading, or
  // each as a copy of the guest's own. A hint: a kernel that cannot (before
  // 5.14), or has no memory, leaves them to be faulted in. Blocks while pages
  // of them are missing and have to be brought. REQUIRES: something is mapped,
  // and the ranges lie in it.
  enum class Access { kRead, kWrite };
  void Populate(std::span<const base::PageRange> ranges, Access access);

  const std::vector<Region>& regions() const { return regions_; }
  // Bytes of RAM over all regions.
  uint64_t size() const { return mapping_.size(); }
  // The start of the host range; what memory slots are made over.
  uint8_t* host_base() const { return mapping_.data(); }
  bool mapped() const { return mapped_; }
  // What was mapped; null after MapPrivate and before anything is mapped.
  const std::shared_ptr<const MemoryImage>& image() const { return image_; }

  // The host bytes of [gpa, gpa + length), the one place where guest addresses
  // are checked. The range must lie in one region.
  // Errors: OUT_OF_RANGE (not RAM), FAILED_PRECONDITION (nothing mapped yet).
  absl::StatusOr<std::span<uint8_t>> Slice(Gpa gpa, uint64_t length) const;

  // Whether all pages of `parts`, bytes of the host range, can be touched
  // without waiting for a pager to read them; also later: they stay. If not,
  // has some of those that are missing brought, and tells `waiter` to ask
  // again; what it asked for before is forgotten. Where they cannot be read, it
  // hears nothing, but `on_lost` of MapImage() does.
  //
  // For threads that others need, too, as an event loop's. Does not block.
  // Cost: one atomic load when no page is missing; else some for each part,
  // and an allocation when pages of it are.
  bool BringSoon(std::span<const iovec> parts,
                 const std::shared_ptr<PageWaiter>& waiter) const;
  // Whether BringSoon() may find pages missing: one atomic load. Once false, it
  // is so for as long as what is mapped.
  bool may_miss_pages() const {
    // acquire: pages that were missing are seen.
    return may_miss_pages_.load(std::memory_order_acquire);
  }

  absl::Status Read(Gpa gpa, std::span<uint8_t> into) const;
  absl::Status Write(Gpa gpa, std::span<const uint8_t> from);

  // One atomic access to a naturally aligned scalar that the guest shares.
  // Errors: OUT_OF_RANGE, INVALID_ARGUMENT (not aligned).
  template <std::unsigned_integral T>
  absl::StatusOr<T> Load(Gpa gpa) const {
    auto bytes = Scalar(gpa, sizeof(T));
    if (!bytes.ok()) return bytes.status();
    // acquire: pairs with the guest's release of what the scalar guards.
    return std::atomic_ref<T>(*reinterpret_cast<T*>(*bytes))
        .load(std::memory_order_acquire);
  }
  template <std::unsigned_integral T>
  absl::Status Store(Gpa gpa, T value) {
    auto bytes = Scalar(gpa, sizeof(T));
    if (!bytes.ok()) return bytes.status();
    // release: what we wrote before is seen by a guest that sees `value`.
    std::atomic_ref<T>(*reinterpret_cast<T*>(*bytes))
        .store(value, std::memory_order_release);
    return absl::OkStatus();
  }

 private:
  GuestMemory(std::vector<Region> regions, base::Mapping mapping)
      : regions_(std::move(regions)), mapping_(std::move(mapping)) {}
  absl::StatusOr<uint8_t*> Scalar(Gpa gpa, uint64_t size) const;
  // Maps [offset, offset + length) of `memfd` there; of zeros if it is -1.
  absl::Status Map(uint64_t offset, uint64_t length, int memfd);
  // Applies what every guest mapping needs, after each Map().
  absl::Status Advise(uint64_t offset, uint64_t length);
  // Has the files of `image`, which is mapped, serve the faults there.
  absl::Status AttachFiles(const std::shared_ptr<const MemoryImage>& image,
                           const Pager::OnLost& on_lost);
  // The pages of `parts` that the first pager lacks who lacks any, with that.
  std::pair<Pager*, std::vector<base::PageRange>> MissingOf(
      std::span<const iovec> parts) const;
  // Maps what `extent` of the image takes from another place than `old`.
  absl::Status RebaseExtent(const MemoryImage& old, const Extent& extent);

  const std::vector<Region> regions_;
  const base::Mapping mapping_;
  bool mapped_ = false;
  // Not needed by the mappings, which keep their files; but what has no
  // extent in it is the guest's own.
  std::shared_ptr<const MemoryImage> image_;
  // The image whose files bring what is touched. After a Rebase() another one
  // than image_, which need not name all of them.
  std::shared_ptr<const MemoryImage> filling_;
  // In the order of their addresses. Go first.
  std::vector<Pager::Attachment> attachments_;
  // Of what is attached, each once.
  std::vector<Pager*> pagers_;
  mutable std::atomic<bool> may_miss_pages_{false};
};

}  // namespace catnap::memory

#endif  // CATNAP_LIB_MEMORY_GUEST_MEMORY_H_
