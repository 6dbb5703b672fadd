#include "snapshot/page_index.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/status.h"

namespace catnap::snapshot {
namespace {

constexpr int kKindBits = 2;
constexpr uint64_t kKindMask = (1 << kKindBits) - 1;
constexpr size_t kMaxVarintBytes = 10;
// The shortest a frame can be written: gap, bytes, pages, checksum.
constexpr size_t kMinFrameEntryBytes = 1 + 1 + 1 + 4;

static_assert(kKindBits == 2 && kMinFrameEntryBytes == 7,
              "on-disk format: read lib/snapshot/FORMAT.md first");

uint64_t ZigZag(int64_t value) {
  return (static_cast<uint64_t>(value) << 1) ^
         static_cast<uint64_t>(value >> 63);
}

int64_t UnZigZag(uint64_t value) {
  return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
}

class ByteWriter {
 public:
  void Varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      bytes_.push_back(static_cast<uint8_t>(value | 0x80));
    }
    bytes_.push_back(static_cast<uint8_t>(value));
  }
  void Fixed32(uint32_t value) {
    std::array<uint8_t, sizeof(value)> raw{};
    base::StoreLe(raw.data(), value);
    Raw(raw);
  }
  void Raw(std::span<const uint8_t> raw) {
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
  }
  std::vector<uint8_t> Take() { return std::move(bytes_); }

 private:
  std::vector<uint8_t> bytes_;
};

// Reads hostile bytes. After the first error everything reads as 0 and ok() is
// false, so that a caller may check once for several values.
class ByteReader {
 public:
  explicit ByteReader(std::span<const uint8_t> bytes) : rest_(bytes) {}

  bool ok() const { return ok_; }
  size_t left() const { return rest_.size(); }

  uint64_t Varint() {
    uint64_t value = 0;
    for (size_t i = 0; i < std::min(rest_.size(), kMaxVarintBytes); ++i) {
      const uint64_t bits = rest_[i] & 0x7fU;
      if (i == kMaxVarintBytes - 1 && rest_[i] > 1) break;
      value |= bits << (7 * i);
      if ((rest_[i] & 0x80U) != 0) continue;
      if (rest_[i] == 0 && i > 0) break;  // Not the shortest form.
      rest_ = rest_.subspan(i + 1);
      return value;
    }
    return Fail();
  }
  uint32_t Fixed32() {
    std::array<uint8_t, sizeof(uint32_t)> raw{};
    Raw(raw);
    return base::LoadLe<uint32_t>(raw.data());
  }
  void Raw(std::span<uint8_t> into) {
    if (rest_.size() < into.size()) {
      Fail();
      return;
    }
    std::copy_n(rest_.begin(), into.size(), into.begin());
    rest_ = rest_.subspan(into.size());
  }

 private:
  uint64_t Fail() {
    ok_ = false;
    rest_ = {};
    return 0;
  }

  std::span<const uint8_t> rest_;
  bool ok_ = true;
};

absl::Status Cut() {
  return absl::DataLossError("page index is cut or has a bad number");
}

// Makes the longest run of what follows `runs` without a gap.
void AppendRun(std::vector<PageRun>* runs, const PageRun& run) {
  if (!runs->empty()) {
    PageRun& last = runs->back();
    if (last.kind == run.kind &&
        (run.kind != PageKind::kStored || last.slot + last.pages == run.slot)) {
      last.pages += run.pages;
      return;
    }
  }
  runs->push_back(run);
  if (run.kind != PageKind::kStored) runs->back().slot = 0;
}

void AppendRange(std::vector<base::PageRange>* ranges,
                 const base::PageRange& range) {
  if (range.length == 0) return;
  if (!ranges->empty() &&
      ranges->back().offset + ranges->back().length >= range.offset) {
    const uint64_t end = std::max(ranges->back().offset + ranges->back().length,
                                  range.offset + range.length);
    ranges->back().length = end - ranges->back().offset;
    return;
  }
  ranges->push_back(range);
}

base::PageRange RangeOf(const PageRun& run) {
  return {.offset = run.page * base::kPageBytes,
          .length = run.pages * base::kPageBytes};
}

uint32_t Slots(const PageIndex& index) {
  return index.frames.empty()
             ? 0
             : index.frames.back().first_slot + index.frames.back().pages;
}

absl::Status DecodeFrames(ByteReader* reader, PageIndex* index) {
  const ChunkFile& file = index->files.back();
  const auto file_index = static_cast<uint32_t>(index->files.size() - 1);
  const uint64_t count = reader->Varint();
  if (!reader->ok()) return Cut();
  if (count == 0 || count > index->ram_pages - index->frames.size() ||
      count > reader->left() / kMinFrameEntryBytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} has {} frames, more than pages of memory, or none",
                 file.name, count);
  }
  index->frames.reserve(index->frames.size() + count);
  uint64_t end = kChunkHeaderBytes;
  for (uint64_t i = 0; i < count; ++i) {
    const uint64_t gap = reader->Varint();
    const uint64_t bytes = reader->Varint();
    const uint64_t pages = reader->Varint();
    const uint32_t crc = reader->Fixed32();
    if (!reader->ok()) return Cut();
    if (gap > file.file_bytes - end || bytes == 0 || bytes > kMaxFrameBytes ||
        bytes > file.file_bytes - end - gap || pages == 0 ||
        pages > kMaxFramePages) {
      return Error(absl::StatusCode::kDataLoss,
                   "{} frame {}: {} bytes, {} behind {}, with {} pages, leave "
                   "the file or the limits",
                   file.name, i, bytes, gap, end, pages);
    }
    const auto slots =
        base::CheckedAdd<uint32_t>(Slots(*index), static_cast<uint32_t>(pages));
    if (!slots.has_value()) return absl::DataLossError("too many frames");
    index->frames.push_back(
        {.file = file_index,
         .bytes = static_cast<uint32_t>(bytes),
         .offset = end + gap,
         .crc32c = crc,
         .pages = static_cast<uint32_t>(pages),
         .first_slot = *slots - static_cast<uint32_t>(pages)});
    end += gap + bytes;
  }
  return absl::OkStatus();
}

absl::Status DecodeFile(ByteReader* reader, PageIndex* index) {
  ChunkFile file;
  const uint64_t name_bytes = reader->Varint();
  if (!reader->ok() || name_bytes > kMaxNameBytes) return Cut();
  std::array<uint8_t, kMaxNameBytes> name{};
  reader->Raw(std::span(name).first(name_bytes));
  file.name.assign(name.begin(), name.begin() + name_bytes);
  reader->Raw(file.id);
  file.file_bytes = reader->Varint();
  file.hot_bytes = reader->Varint();
  if (!reader->ok()) return Cut();
  if (!IsChunkFileName(file.name)) {
    return absl::DataLossError("page index has a bad name of a chunk file");
  }
  for (const ChunkFile& other : index->files) {
    if (other.name == file.name || other.id == file.id) {
      return Error(absl::StatusCode::kDataLoss, "{} is there twice", file.name);
    }
  }
  if (file.file_bytes < kChunkHeaderBytes ||
      !base::CheckedCast<int64_t>(file.file_bytes).has_value() ||
      file.hot_bytes > file.file_bytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} has {} bytes, {} of them hot; must be at least {}",
                 file.name, file.file_bytes, file.hot_bytes, kChunkHeaderBytes);
  }
  index->files.push_back(std::move(file));
  return DecodeFrames(reader, index);
}

absl::Status DecodeRun(ByteReader* reader, uint64_t* page, uint32_t* next_slot,
                       PageIndex* index) {
  const uint64_t head = reader->Varint();
  const uint64_t pages = head >> kKindBits;
  const uint64_t kind = head & kKindMask;
  if (!reader->ok()) return Cut();
  if (pages == 0 || pages > index->ram_pages - *page ||
      kind > static_cast<uint64_t>(PageKind::kStored) ||
      (kind == static_cast<uint64_t>(PageKind::kParent) &&
       !index->has_parent)) {
    return Error(absl::StatusCode::kDataLoss,
                 "page index: {} pages of kind {} at page {} of {}", pages,
                 kind, *page, index->ram_pages);
  }
  PageRun run = {.page = static_cast<uint32_t>(*page),
                 .pages = static_cast<uint32_t>(pages),
                 .kind = static_cast<PageKind>(kind)};
  if (run.kind == PageKind::kStored) {
    const int64_t delta = UnZigZag(reader->Varint());
    if (!reader->ok()) return Cut();
    const auto slot = base::CheckedAdd<int64_t>(*next_slot, delta);
    if (!slot.has_value() || *slot < 0 ||
        !base::InRange<uint64_t>(static_cast<uint64_t>(*slot), pages,
                                 Slots(*index))) {
      return Error(absl::StatusCode::kDataLoss,
                   "page index: pages at {} are in no frame", *page);
    }
    run.slot = static_cast<uint32_t>(*slot);
    *next_slot = run.slot + run.pages;
  }
  const size_t before = index->runs.size();
  AppendRun(&index->runs, run);
  if (index->runs.size() == before) {
    return Error(absl::StatusCode::kDataLoss,
                 "page index: the run at page {} continues the one before",
                 *page);
  }
  *page += pages;
  return absl::OkStatus();
}

// No slot has two pages, no frame none.
absl::Status CheckSlots(const PageIndex& index) {
  uint32_t free_from = 0;
  size_t frame = 0;  // The first whose use is not known yet.
  for (const PageRun& run : RunsBySlot(index)) {
    if (run.slot < free_from) {
      return Error(absl::StatusCode::kDataLoss,
                   "page index: two pages are at one place of a frame");
    }
    free_from = run.slot + run.pages;
    if (frame < index.frames.size() &&
        index.frames[frame].first_slot + index.frames[frame].pages <=
            run.slot) {
      break;
    }
    while (frame < index.frames.size() &&
           index.frames[frame].first_slot < free_from) {
      ++frame;
    }
  }
  if (frame < index.frames.size()) {
    return Error(absl::StatusCode::kDataLoss,
                 "page index: frame {} holds no page", frame);
  }
  return absl::OkStatus();
}

// Live pages of each frame.
std::vector<uint32_t> LivePages(const PageIndex& index) {
  std::vector<uint32_t> live(index.frames.size());
  for (const PageRun& run : index.runs) {
    if (run.kind != PageKind::kStored) continue;
    uint32_t slot = run.slot;
    const uint32_t end = run.slot + run.pages;
    for (size_t i = FrameOfSlot(index, slot); slot < end; ++i) {
      const uint32_t frame_end =
          index.frames[i].first_slot + index.frames[i].pages;
      const uint32_t until = std::min(end, frame_end);
      live[i] += until - slot;
      slot = until;
    }
  }
  return live;
}

// A run of the base or of what is added, before slots are counted anew.
struct Piece {
  PageRun run;
  bool added = false;
};

std::vector<Piece> Compose(const PageIndex* base, uint64_t ram_pages,
                           PageKind background,
                           const std::vector<PageRun>& added) {
  const std::vector<PageRun> all = {{.page = 0,
                                     .pages = static_cast<uint32_t>(ram_pages),
                                     .kind = background}};
  const std::vector<PageRun>& below = base == nullptr ? all : base->runs;
  std::vector<Piece> pieces;
  size_t above = 0;
  for (const PageRun& run : below) {
    uint32_t page = run.page;
    const uint32_t end = run.page + run.pages;
    while (page < end) {
      // Added runs may reach beyond this one of the base.
      if (above < added.size() &&
          added[above].page + added[above].pages <= page) {
        ++above;
        continue;
      }
      const bool covered = above < added.size() && added[above].page <= page;
      if (covered) {
        PageRun cut = added[above];
        cut.slot += page - cut.page;
        cut.pages -= page - cut.page;
        cut.page = page;
        cut.pages = std::min(cut.pages, end - page);
        pieces.push_back({.run = cut, .added = true});
        page += cut.pages;
        continue;
      }
      const uint32_t until =
          above < added.size() ? std::min(end, added[above].page) : end;
      PageRun cut = run;
      cut.slot += page - run.page;
      cut.page = page;
      cut.pages = until - page;
      pieces.push_back({.run = cut, .added = false});
      page = until;
    }
  }
  return pieces;
}

// Copies what `needed` says of the base's frames and their files. Returns the
// new number of each frame.
std::vector<size_t> KeepFrames(const PageIndex& base,
                               const std::vector<bool>& needed,
                               PageIndex* index) {
  std::vector<size_t> renamed(base.frames.size());
  constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();
  uint32_t last_file = kNone;
  for (size_t i = 0; i < base.frames.size(); ++i) {
    if (!needed[i]) continue;
    Frame frame = base.frames[i];
    if (frame.file != last_file) {
      last_file = frame.file;
      index->files.push_back(base.files[frame.file]);
    }
    frame.file = static_cast<uint32_t>(index->files.size() - 1);
    frame.first_slot = Slots(*index);
    renamed[i] = index->frames.size();
    index->frames.push_back(frame);
  }
  return renamed;
}

}  // namespace

std::vector<uint8_t> EncodePageIndex(const PageIndex& index) {
  ByteWriter writer;
  writer.Varint(index.files.size());
  size_t next = 0;
  for (size_t i = 0; i < index.files.size(); ++i) {
    const ChunkFile& file = index.files[i];
    writer.Varint(file.name.size());
    writer.Raw(std::span(reinterpret_cast<const uint8_t*>(file.name.data()),
                         file.name.size()));
    writer.Raw(file.id);
    writer.Varint(file.file_bytes);
    writer.Varint(file.hot_bytes);
    size_t end_frame = next;
    while (end_frame < index.frames.size() &&
           index.frames[end_frame].file == i) {
      ++end_frame;
    }
    writer.Varint(end_frame - next);
    uint64_t end = kChunkHeaderBytes;
    for (; next < end_frame; ++next) {
      const Frame& frame = index.frames[next];
      writer.Varint(frame.offset - end);
      writer.Varint(frame.bytes);
      writer.Varint(frame.pages);
      writer.Fixed32(frame.crc32c);
      end = frame.offset + frame.bytes;
    }
  }
  uint32_t next_slot = 0;
  for (const PageRun& run : index.runs) {
    writer.Varint((uint64_t{run.pages} << kKindBits) |
                  static_cast<uint64_t>(run.kind));
    if (run.kind != PageKind::kStored) continue;
    writer.Varint(ZigZag(int64_t{run.slot} - int64_t{next_slot}));
    next_slot = run.slot + run.pages;
  }
  return writer.Take();
}

absl::StatusOr<PageIndex> DecodePageIndex(std::span<const uint8_t> bytes,
                                          uint64_t ram_pages, bool has_parent) {
  ByteReader reader(bytes);
  PageIndex index;
  index.ram_pages = ram_pages;
  index.has_parent = has_parent;
  const uint64_t files = reader.Varint();
  if (!reader.ok()) return Cut();
  if (files > kMaxChunkFiles) {
    return Error(absl::StatusCode::kDataLoss,
                 "page index has {} chunk files, must be at most {}", files,
                 kMaxChunkFiles);
  }
  for (uint64_t i = 0; i < files; ++i) {
    CATNAP_RETURN_IF_ERROR(DecodeFile(&reader, &index));
  }
  uint32_t next_slot = 0;
  for (uint64_t page = 0; page < ram_pages;) {
    CATNAP_RETURN_IF_ERROR(DecodeRun(&reader, &page, &next_slot, &index));
  }
  if (reader.left() != 0) {
    return Error(absl::StatusCode::kDataLoss, "{} bytes behind the page index",
                 reader.left());
  }
  CATNAP_RETURN_IF_ERROR(CheckSlots(index));
  return index;
}

std::vector<base::PageRange> RangesOf(const PageIndex& index, PageKind kind) {
  std::vector<base::PageRange> ranges;
  for (const PageRun& run : index.runs) {
    if (run.kind == kind) AppendRange(&ranges, RangeOf(run));
  }
  return ranges;
}

std::vector<base::PageRange> OwnRanges(const PageIndex& index) {
  std::vector<base::PageRange> ranges;
  for (const PageRun& run : index.runs) {
    if (run.kind == PageKind::kStored ||
        (run.kind == PageKind::kZero && index.has_parent)) {
      AppendRange(&ranges, RangeOf(run));
    }
  }
  return ranges;
}

std::vector<base::PageRange> UnionOf(std::span<const base::PageRange> a,
                                     std::span<const base::PageRange> b) {
  std::vector<base::PageRange> sorted(a.begin(), a.end());
  sorted.insert(sorted.end(), b.begin(), b.end());
  std::sort(sorted.begin(), sorted.end(),
            [](const base::PageRange& x, const base::PageRange& y) {
              return x.offset < y.offset;
            });
  std::vector<base::PageRange> ranges;
  for (const base::PageRange& range : sorted) AppendRange(&ranges, range);
  return ranges;
}

std::vector<PageRun> RunsBySlot(const PageIndex& index) {
  std::vector<PageRun> runs;
  for (const PageRun& run : index.runs) {
    if (run.kind == PageKind::kStored) runs.push_back(run);
  }
  std::sort(runs.begin(), runs.end(),
            [](const PageRun& a, const PageRun& b) { return a.slot < b.slot; });
  return runs;
}

size_t FrameOfSlot(const PageIndex& index, uint32_t slot) {
  const auto after = std::upper_bound(
      index.frames.begin(), index.frames.end(), slot,
      [](uint32_t at, const Frame& frame) { return at < frame.first_slot; });
  return static_cast<size_t>(after - index.frames.begin()) - 1;
}

PageIndex OverlayPages(const PageIndex* base, uint64_t ram_pages,
                       bool has_parent, const NewPages& added) {
  const std::vector<Piece> pieces =
      Compose(base, ram_pages, has_parent ? PageKind::kParent : PageKind::kZero,
              added.runs);
  PageIndex index;
  index.ram_pages = ram_pages;
  index.has_parent = has_parent;
  std::vector<size_t> renamed;
  if (base != nullptr) {
    PageIndex kept;  // Only what LivePages() looks at.
    kept.frames = base->frames;
    for (const Piece& piece : pieces) {
      if (!piece.added) kept.runs.push_back(piece.run);
    }
    const std::vector<uint32_t> live = LivePages(kept);
    std::vector<bool> needed(live.size());
    for (size_t i = 0; i < live.size(); ++i) needed[i] = live[i] > 0;
    renamed = KeepFrames(*base, needed, &index);
  }
  const uint32_t added_from = Slots(index);
  if (!added.frames.empty()) index.files.push_back(added.file);
  for (Frame frame : added.frames) {
    frame.file = static_cast<uint32_t>(index.files.size() - 1);
    frame.first_slot = Slots(index);
    index.frames.push_back(frame);
  }
  for (const Piece& piece : pieces) {
    if (piece.added || piece.run.kind != PageKind::kStored) {
      PageRun run = piece.run;
      run.slot += added_from;
      AppendRun(&index.runs, run);
      continue;
    }
    // Frames that went may have stood between the frames of one run's pages.
    uint32_t slot = piece.run.slot;
    uint32_t page = piece.run.page;
    const uint32_t end = slot + piece.run.pages;
    for (size_t i = FrameOfSlot(*base, slot); slot < end; ++i) {
      const Frame& before = base->frames[i];
      const uint32_t until = std::min(end, before.first_slot + before.pages);
      AppendRun(&index.runs, {.page = page,
                              .pages = until - slot,
                              .kind = PageKind::kStored,
                              .slot = index.frames[renamed[i]].first_slot +
                                      (slot - before.first_slot)});
      page += until - slot;
      slot = until;
    }
  }
  return index;
}

bool ShouldCompact(const PageIndex& index) {
  if (index.files.size() >= kCompactFiles) return true;
  uint64_t all = 0;
  for (const ChunkFile& file : index.files) all += file.file_bytes;
  const std::vector<uint32_t> live_pages = LivePages(index);
  uint64_t live = 0;
  for (size_t i = 0; i < live_pages.size(); ++i) {
    const Frame& frame = index.frames[i];
    live += uint64_t{frame.bytes} * live_pages[i] / frame.pages;
  }
  // Small files are mostly header.
  constexpr uint64_t kNotWorthIt = uint64_t{64} << 10;
  return all - std::min(all, live) > kNotWorthIt &&
         live < (all - std::min(all, live));
}

}  // namespace catnap::snapshot
