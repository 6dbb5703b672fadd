#include "memory/guest_memory.h"

#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/checked.h"
#include "base/status.h"

// Linux 5.14; an older kernel says EINVAL.
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace catnap::memory {
namespace {

constexpr uint64_t kPageSize = 4096;
// The range starts on a huge-page boundary so that the kernel may back it with
// huge pages.
constexpr uint64_t kHugePageSize = 2 << 20;

absl::Status CheckRegions(const std::vector<Region>& regions) {
  if (regions.empty()) return absl::InvalidArgumentError("no memory regions");
  uint64_t offset = 0;
  uint64_t end = 0;  // Of the region before, in the guest's addresses.
  for (const Region& region : regions) {
    const auto next = base::CheckedAdd(region.start.value, region.size);
    if (region.size == 0 || !next.has_value() ||
        !base::IsAligned(region.size, kPageSize) ||
        !base::IsAligned(region.start.value, kPageSize) ||
        region.start.value < end || region.offset != offset) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "memory region at gpa {:#x} of {} bytes, offset {:#x}: "
                   "regions must be sorted, disjoint, 4 KiB aligned and packed",
                   region.start.value, region.size, region.offset);
    }
    end = *next;
    const auto total = base::CheckedAdd(offset, region.size);
    if (!total.has_value()) {
      return absl::InvalidArgumentError("memory regions exceed 2^64 bytes");
    }
    offset = *total;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<GuestMemory>> GuestMemory::Reserve(
    std::vector<Region> regions) {
  CATNAP_RETURN_IF_ERROR(CheckRegions(regions));
  const uint64_t size = regions.back().offset + regions.back().size;
  CATNAP_ASSIGN_OR_RETURN(base::Mapping mapping,
                          base::Mapping::Reserve(size, kHugePageSize));
  // Already now what it will be where the guest has zeros. Before there are
  // slots over it this costs nothing.
  if (::mprotect(mapping.data(), size, PROT_READ | PROT_WRITE) != 0) {
    return ErrnoError(errno, "reserve {} bytes of guest memory", size);
  }
  // new: the constructor is private.
  return std::unique_ptr<GuestMemory>(
      new GuestMemory(std::move(regions), std::move(mapping)));
}

absl::Status GuestMemory::Map(uint64_t offset, uint64_t length, int memfd) {
  const int flags =
      MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED | (memfd < 0 ? MAP_ANONYMOUS : 0);
  void* data = ::mmap(mapping_.data() + offset, length, PROT_READ | PROT_WRITE,
                      flags, memfd, memfd < 0 ? 0 : static_cast<off_t>(offset));
  if (data == MAP_FAILED) {
    return ErrnoError(errno, "map {} bytes of guest memory at {:#x}", length,
                      offset);
  }
  return absl::OkStatus();
}

absl::Status GuestMemory::Advise(uint64_t offset, uint64_t length) {
  // A fork of the host program must not copy guest page tables, and a core
  // dump must not hold guest memory.
  for (const int advice : {MADV_DONTFORK, MADV_DONTDUMP}) {
    if (::madvise(mapping_.data() + offset, length, advice) != 0) {
      return ErrnoError(errno, "madvise {} over guest memory", advice);
    }
  }
  // A kernel built without huge pages says EINVAL, and needs no advice.
  if (::madvise(mapping_.data() + offset, length, MADV_NOHUGEPAGE) != 0 &&
      errno != EINVAL) {
    return ErrnoError(errno, "madvise {} over guest memory", MADV_NOHUGEPAGE);
  }
  return absl::OkStatus();
}

absl::Status GuestMemory::MapAnonymous() {
  CATNAP_ASSIGN_OR_RETURN(auto zero, MemoryImage::Zero(size()));
  return MapImage(std::move(zero));
}

absl::Status GuestMemory::MapPrivate(int memfd) {
  struct stat info {};
  if (::fstat(memfd, &info) != 0) {
    return ErrnoError(errno, "fstat of guest memory file {}", memfd);
  }
  if (static_cast<uint64_t>(info.st_size) < size()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "guest memory file is {} bytes, must be at least {}",
                 info.st_size, size());
  }
  CATNAP_RETURN_IF_ERROR(Map(0, size(), memfd));
  CATNAP_RETURN_IF_ERROR(Advise(0, size()));
  image_.reset();
  mapped_ = true;
  return absl::OkStatus();
}

void GuestMemory::Populate(std::span<const base::PageRange> ranges,
                           Access access) {
  const int advice =
      access == Access::kRead ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
  for (const base::PageRange& range : ranges) {
    int result = 0;
    do {
      result = ::madvise(mapping_.data() + range.offset, range.length, advice);
    } while (result != 0 && errno == EINTR);
    // Who touches a page gets it all the same, or is told why not.
    if (result != 0) return;
  }
}

absl::Status GuestMemory::MapImage(std::shared_ptr<const MemoryImage> image,
                                   const Pager::OnLost& on_lost) {
  if (image->size() != size()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "memory image is {} bytes, guest memory {}", image->size(),
                 size());
  }
  attachments_.clear();  // Of what is mapped over now.
  for (const Extent& extent : image->extents()) {
    const MemoryFile* file = image->FileOf(extent);
    // Zeros are what was reserved: a mapping in its place would have KVM look
    // through all that it has of that memory.
    if (file == nullptr && !mapped_) continue;
    CATNAP_RETURN_IF_ERROR(
        Map(extent.offset, extent.length, file == nullptr ? -1 : file->fd()));
  }
  // Once over everything: a third of the cost of once for each extent.
  CATNAP_RETURN_IF_ERROR(Advise(0, size()));
  CATNAP_RETURN_IF_ERROR(AttachFiles(image, on_lost));
  image_ = std::move(image);
  mapped_ = true;
  return absl::OkStatus();
}

absl::Status GuestMemory::AttachFiles(
    const std::shared_ptr<const MemoryImage>& image,
    const Pager::OnLost& on_lost) {
  std::vector<Pager::Attachment> attachments;
  std::vector<Pager*> pagers;
  for (const Extent& extent : image->extents()) {
    const MemoryFile* const file = image->FileOf(extent);
    if (file == nullptr || file->pager() == nullptr || file->pager()->full()) {
      continue;
    }
    CATNAP_ASSIGN_OR_RETURN(
        auto attachment,
        file->pager()->Attach(mapping_.data() + extent.offset,
                              {extent.offset, extent.length}, on_lost));
    if (attachment.pager() == nullptr) continue;
    attachments.push_back(std::move(attachment));
    if (std::find(pagers.begin(), pagers.end(), file->pager()) ==
        pagers.end()) {
      pagers.push_back(file->pager());
    }
  }
  attachments_ = std::move(attachments);
  pagers_ = std::move(pagers);
  filling_ = attachments_.empty() ? nullptr : image;
  // relaxed: who asks came to know of this memory after it was mapped.
  may_miss_pages_.store(!pagers_.empty(), std::memory_order_relaxed);
  return absl::OkStatus();
}

std::pair<Pager*, std::vector<base::PageRange>> GuestMemory::MissingOf(
    std::span<const iovec> parts) const {
  std::pair<Pager*, std::vector<base::PageRange>> missing{nullptr, {}};
  for (const iovec& part : parts) {
    if (part.iov_len == 0) continue;
    const auto first = reinterpret_cast<uintptr_t>(part.iov_base);
    const uintptr_t start = base::AlignDown<uintptr_t>(first, kPageSize);
    const uintptr_t end =
        base::AlignDown<uintptr_t>(first + part.iov_len - 1, kPageSize) +
        kPageSize;
    auto at = std::upper_bound(
        attachments_.begin(), attachments_.end(), start,
        [](uintptr_t address, const Pager::Attachment& attachment) {
          return address < attachment.start();
        });
    if (at != attachments_.begin()) --at;
    for (; at != attachments_.end() && at->start() < end; ++at) {
      const uintptr_t from = std::max(start, at->start());
      const uintptr_t to = std::min(end, at->start() + at->range().length);
      if (from >= to) continue;
      const base::PageRange range{at->range().offset + (from - at->start()),
                                  to - from};
      if (at->pager()->Has(range)) continue;
      if (missing.first == nullptr) missing.first = at->pager();
      if (missing.first == at->pager()) missing.second.push_back(range);
    }
  }
  return missing;
}

bool GuestMemory::BringSoon(std::span<const iovec> parts,
                            const std::shared_ptr<PageWaiter>& waiter) const {
  if (!may_miss_pages()) return true;
  if (std::all_of(pagers_.begin(), pagers_.end(),
                  [](const Pager* pager) { return pager->HasAll(); })) {
    // release: with may_miss_pages().
    may_miss_pages_.store(false, std::memory_order_release);
    return true;
  }
  while (true) {
    auto [pager, ranges] = MissingOf(parts);
    if (pager == nullptr) return true;
    if (!pager->BringSoon(std::move(ranges), waiter)) return false;
    // They came meanwhile; others may be missing.
  }
}

absl::Status GuestMemory::Rebase(std::shared_ptr<const MemoryImage> image) {
  if (image_ == nullptr) {
    return absl::FailedPreconditionError("no memory image is mapped");
  }
  if (image->size() != size()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "memory image is {} bytes, guest memory {}", image->size(),
                 size());
  }
  // From here on the guest's own pages are what differs from the new image,
  // also if a mapping fails: own pages stay where they are, and others have
  // the same content in both images.
  const auto old = std::exchange(image_, std::move(image));
  absl::Status status;
  for (const Extent& extent : image_->extents()) {
    status = RebaseExtent(*old, extent);
    if (!status.ok()) break;
  }
  const absl::Status advised = Advise(0, size());
  return status.ok() ? advised : status;
}

absl::Status GuestMemory::RebaseExtent(const MemoryImage& old,
                                       const Extent& extent) {
  const MemoryFile* file = image_->FileOf(extent);
  const auto map = [&](uint64_t start, uint64_t end) {
    if (start == end) return absl::OkStatus();
    return Map(start, end - start, file == nullptr ? -1 : file->fd());
  };
  const uint64_t end = extent.offset + extent.length;
  uint64_t start = extent.offset;  // Of what is to be mapped as one.
  for (const Extent& piece : old.ExtentsFrom(extent.offset)) {
    if (piece.offset >= end) break;
    if (old.FileOf(piece) != file) continue;
    CATNAP_RETURN_IF_ERROR(map(start, std::max(start, piece.offset)));
    start = std::min(end, piece.offset + piece.length);
  }
  return map(start, end);
}

absl::Status GuestMemory::Discard(std::span<const base::PageRange> ranges) {
  for (const base::PageRange& range : ranges) {
    if (::madvise(mapping_.data() + range.offset, range.length,
                  MADV_DONTNEED) != 0) {
      return ErrnoError(errno, "give back {} bytes of guest memory at {:#x}",
                        range.length, range.offset);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::span<uint8_t>> GuestMemory::Slice(Gpa gpa,
                                                      uint64_t length) const {
  if (!mapped_) {
    return absl::FailedPreconditionError("guest memory is not mapped yet");
  }
  for (const Region& region : regions_) {
    if (gpa < region.start) break;
    const uint64_t start = gpa.value - region.start.value;
    if (base::InRange(start, length, region.size)) {
      return std::span<uint8_t>(mapping_.data() + region.offset + start,
                                length);
    }
  }
  return Error(absl::StatusCode::kOutOfRange,
               "{} bytes at gpa {:#x} are not in guest memory", length,
               gpa.value);
}

absl::Status GuestMemory::Read(Gpa gpa, std::span<uint8_t> into) const {
  CATNAP_ASSIGN_OR_RETURN(const auto bytes, Slice(gpa, into.size()));
  if (!into.empty()) std::memcpy(into.data(), bytes.data(), into.size());
  return absl::OkStatus();
}

absl::Status GuestMemory::Write(Gpa gpa, std::span<const uint8_t> from) {
  CATNAP_ASSIGN_OR_RETURN(const auto bytes, Slice(gpa, from.size()));
  if (!from.empty()) std::memcpy(bytes.data(), from.data(), from.size());
  return absl::OkStatus();
}

absl::StatusOr<uint8_t*> GuestMemory::Scalar(Gpa gpa, uint64_t size) const {
  if (!base::IsAligned(gpa.value, size)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "gpa {:#x} is not aligned to {} bytes", gpa.value, size);
  }
  CATNAP_ASSIGN_OR_RETURN(const auto bytes, Slice(gpa, size));
  return bytes.data();
}

}  // namespace catnap::memory
