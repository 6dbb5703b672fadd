#include "memory/arena.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "base/thread.h"
#include "memory/page_ranges.h"

namespace catnap::memory {
namespace {

using base::kPageBytes;
using base::PageRange;

constexpr int kMaxThreads = 16;
// What a thread takes at a time.
constexpr uint64_t kPieceBytes = 2 << 20;
// Below this a second thread takes longer to start than it saves.
constexpr uint64_t kMinThreadBytes = 8 << 20;

// Own pages of one extent.
struct Piece {
  PageRange range;
  bool zero_base = false;
  std::vector<PageRange> zeros;  // Out: what was left out.
};

std::vector<Piece> Cut(const std::vector<PageRange>& own,
                       const MemoryImage& base) {
  std::vector<Piece> pieces;
  for (const PageRange& range : own) {
    const uint64_t end = range.offset + range.length;
    uint64_t at = range.offset;
    for (const Extent& extent : base.ExtentsFrom(at)) {
      if (extent.offset >= end) break;
      const uint64_t extent_end = std::min(end, extent.offset + extent.length);
      while (at < extent_end) {
        const uint64_t length = std::min(kPieceBytes, extent_end - at);
        pieces.push_back({.range = {at, length},
                          .zero_base = extent.file == Extent::kZero,
                          .zeros = {}});
        at += length;
      }
    }
  }
  return pieces;
}

// `to` reads as zeros where the base does, so zeros are not copied.
void Copy(const uint8_t* from, uint8_t* to, Piece& piece) {
  const uint64_t end = piece.range.offset + piece.range.length;
  if (!piece.zero_base) {
    std::memcpy(to + piece.range.offset, from + piece.range.offset,
                piece.range.length);
    return;
  }
  uint64_t zeros = piece.range.offset;  // [zeros, at) are pages of zeros.
  for (uint64_t at = piece.range.offset; at <= end; at += kPageBytes) {
    if (at < end && IsZero({from + at, kPageBytes})) continue;
    if (at - zeros >= MemoryImage::kMinZeroBytes) {
      piece.zeros.push_back({zeros, at - zeros});
    }
    if (at < end) std::memcpy(to + at, from + at, kPageBytes);
    zeros = at + kPageBytes;
  }
}

void CopyAll(const uint8_t* from, uint8_t* to, std::vector<Piece>& pieces,
             int threads) {
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next.fetch_add(1); i < pieces.size();
         i = next.fetch_add(1)) {
      Copy(from, to, pieces[i]);
    }
  };
  std::vector<base::Thread> helpers;
  for (int i = 1; i < threads; ++i) {
    // Without a thread the others copy all.
    auto helper = base::Thread::Start("catnap-copy", work);
    if (!helper.ok()) break;
    helpers.push_back(*std::move(helper));
  }
  work();
  for (base::Thread& helper : helpers) helper.Join();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Arena>> Arena::Create(
    const GuestMemory& memory, const ArenaOptions& options) {
  if (memory.image() == nullptr) {
    return absl::FailedPreconditionError("no memory image is mapped");
  }
  if (options.threads < 1 || options.threads > kMaxThreads) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "threads is {}, must be 1 to {}", options.threads,
                 kMaxThreads);
  }
  CATNAP_ASSIGN_OR_RETURN(auto file,
                          MemoryFile::Create("catnap-arena", memory.size()));
  // new: the constructor is private.
  return std::unique_ptr<Arena>(
      new Arena(memory.image(), std::move(file), options));
}

absl::Status Arena::CheckGuest(const GuestMemory& memory) const {
  if (captured_) {
    return absl::FailedPreconditionError("an arena captures once");
  }
  if (memory.image() != base_) {
    return absl::FailedPreconditionError(
        "the guest has another memory image than the arena");
  }
  return absl::OkStatus();
}

absl::Status Arena::Populate(const std::vector<PageRange>& ranges) {
  for (const PageRange& range : SubtractRanges(ranges, populated_)) {
    CATNAP_RETURN_IF_ERROR(file_->Populate(range));
  }
  populated_ = UniteRanges(populated_, ranges);
  return absl::OkStatus();
}

absl::Status Arena::Prepare(const GuestMemory& memory) {
  CATNAP_RETURN_IF_ERROR(CheckGuest(memory));
  CATNAP_ASSIGN_OR_RETURN(
      const auto own,
      OwnPages(memory, {.backend = options_.backend, .running = true}));
  CATNAP_RETURN_IF_ERROR(Populate(own));
  const auto full = UniteRanges(own, filled_);
  CATNAP_ASSIGN_OR_RETURN(const auto gaps,
                          GapsToClose(*base_, full, options_.overlay));
  CATNAP_RETURN_IF_ERROR(CopyFromImage(*base_, gaps, *file_));
  populated_ = UniteRanges(populated_, gaps);
  filled_ = UniteRanges(filled_, gaps);
  return absl::OkStatus();
}

absl::Status Arena::Capture(const GuestMemory& memory) {
  CATNAP_RETURN_IF_ERROR(CheckGuest(memory));
  captured_ = true;
  CATNAP_ASSIGN_OR_RETURN(own_,
                          OwnPages(memory, {.backend = options_.backend}));
  CATNAP_RETURN_IF_ERROR(Populate(own_));
  CATNAP_ASSIGN_OR_RETURN(const auto bytes,
                          file_->Writable({0, file_->size()}));
  std::vector<Piece> pieces = Cut(own_, *base_);
  CopyAll(memory.host_base(), bytes.data(), pieces,
          TotalBytes(own_) < kMinThreadBytes ? 1 : options_.threads);
  std::vector<PageRange> zeros;
  for (const Piece& piece : pieces) {
    for (const PageRange& range : piece.zeros) AppendPages(zeros, range);
  }
  own_ = SubtractRanges(own_, zeros);
  return absl::OkStatus();
}

absl::StatusOr<Overlaid> Arena::Image() {
  if (!captured_ || !file_->writable()) {
    return absl::FailedPreconditionError(captured_ ? "the arena is sealed"
                                                   : "nothing was captured");
  }
  CATNAP_ASSIGN_OR_RETURN(Overlaid result,
                          Overlay(*base_, file_, own_, options_.overlay,
                                  SubtractRanges(filled_, own_)));
  used_.clear();
  for (const Extent& extent : result.image->extents()) {
    if (result.image->FileOf(extent) == file_.get()) {
      AppendPages(used_, {extent.offset, extent.length});
    }
  }
  imaged_ = true;
  return result;
}

absl::Status Arena::Seal() {
  if (!imaged_) return absl::FailedPreconditionError("no image was made");
  if (file_->writable()) {
    for (const PageRange& range : SubtractRanges(populated_, used_)) {
      CATNAP_RETURN_IF_ERROR(file_->Discard(range));
    }
  }
  return file_->Seal();
}

}  // namespace catnap::memory
