#include "vmm/guest_template.h"

#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "base/page_range.h"
#include "base/status.h"
#include "memory/guest_memory.h"
#include "memory/memory_file.h"
#include "memory/page_filler.h"
#include "memory/page_map.h"
#include "memory/page_ranges.h"
#include "snapshot/reader.h"
#include "snapshot/writer.h"
#include "vmm/stored_pages.h"

namespace catnap::vmm {
namespace {

using base::PageRange;
using memory::Extent;
using memory::MemoryImage;

// Of what a guest touches first, what is entered into its page table ahead.
constexpr uint64_t kMostPopulated = uint64_t{16} << 20;

snapshot::WriteOptions WriteOptionsOf(const StorageOptions& options) {
  snapshot::WriteOptions write;
  write.pool = options.pool;
  write.level = options.level;
  write.frame_pages = options.frame_pages;
  write.durable = options.durable;
  write.stop = options.stop;
  write.deadline = options.deadline;
  return write;
}

snapshot::ReadOptions ReadOptionsOf(const StorageOptions& options) {
  snapshot::ReadOptions read;
  read.pool = options.pool;
  read.stop = options.stop;
  read.deadline = options.deadline;
  return read;
}

absl::Status ReadInto(memory::MemoryFile* file,
                      const snapshot::SnapshotReader& reader,
                      const snapshot::ReadOptions& options) {
  CATNAP_ASSIGN_OR_RETURN(const auto filler, memory::PageFiller::Create(file));
  return reader.ReadPages(
      [&filler](PageRange range, const uint8_t* from) {
        return filler.Put(range, from);
      },
      options);
}

uint64_t BytesOf(const std::vector<PageRange>& ranges) {
  uint64_t bytes = 0;
  for (const PageRange& range : ranges) bytes += range.length;
  return bytes;
}

uint64_t StoredBytesOf(const snapshot::PageIndex& index) {
  uint64_t bytes = 0;
  for (const snapshot::ChunkFile& file : index.files) bytes += file.file_bytes;
  return bytes;
}

// `base` with zeros where the snapshot says so. Short runs, which are not worth
// a mapping, are pages of zeros in `file`; they are added to `ranges`.
absl::StatusOr<std::shared_ptr<const MemoryImage>> LayZeros(
    const std::shared_ptr<const MemoryImage>& base,
    const std::vector<PageRange>& zeros, memory::MemoryFile* file,
    std::vector<PageRange>* ranges) {
  std::vector<PageRange> wide;
  for (const PageRange& zero : zeros) {
    if (zero.length >= MemoryImage::kMinZeroBytes) {
      wide.push_back(zero);
    } else {
      CATNAP_RETURN_IF_ERROR(file->Populate(zero));
      ranges->push_back(zero);
    }
  }
  if (wide.empty()) return base;
  std::vector<Extent> extents;
  auto next = wide.begin();
  for (const Extent& extent : base->extents()) {
    uint64_t at = extent.offset;
    const uint64_t end = extent.offset + extent.length;
    while (at < end) {
      while (next != wide.end() && next->offset + next->length <= at) ++next;
      const bool inside = next != wide.end() && next->offset <= at;
      uint64_t until = end;
      if (next != wide.end()) {
        until =
            std::min(end, inside ? next->offset + next->length : next->offset);
      }
      extents.push_back({.offset = at,
                         .length = until - at,
                         .file = inside ? Extent::kZero : extent.file});
      at = until;
    }
  }
  return MemoryImage::Create(base->size(), base->files(), std::move(extents));
}

// The pages of an image in this process's memory, to be read.
absl::StatusOr<std::unique_ptr<memory::GuestMemory>> MapForReading(
    const std::shared_ptr<const MemoryImage>& image) {
  CATNAP_ASSIGN_OR_RETURN(
      auto view, memory::GuestMemory::Reserve(
                     {{.start = {}, .size = image->size(), .offset = 0}}));
  CATNAP_RETURN_IF_ERROR(view->MapImage(image));
  return view;
}

std::vector<PageRange> UnionOf(const std::vector<PageRange>& a,
                               const std::vector<PageRange>& b) {
  return snapshot::UnionOf(a, b);
}

std::vector<PageRange> HotRangesOf(const snapshot::SnapshotReader& reader) {
  std::vector<PageRange> ranges;
  const std::vector<size_t> order = reader.FramesInOrder();
  for (size_t i = 0; i < reader.hot_frames(); ++i) {
    for (const snapshot::FramePlace& place : reader.PlacesOf(order[i])) {
      ranges.push_back(place.range);
    }
  }
  return ranges;
}

// Those of `ranges`, which overlap nowhere, that have `most` bytes together.
std::vector<PageRange> SortedStart(std::span<const PageRange> from,
                                   uint64_t most) {
  std::vector<PageRange> ranges;
  for (const PageRange& range : from) {
    if (range.length > most) break;
    most -= range.length;
    ranges.push_back(range);
  }
  std::sort(ranges.begin(), ranges.end(),
            [](const PageRange& a, const PageRange& b) {
              return a.offset < b.offset;
            });
  return memory::UniteRanges(ranges, {});
}

// OK, or why some of an image cannot be read.
absl::Status StatusOf(const MemoryImage& image) {
  for (const auto& file : image.files()) {
    if (file->pager() != nullptr) {
      CATNAP_RETURN_IF_ERROR(file->pager()->status());
    }
  }
  return absl::OkStatus();
}

// Of the files of `image` that are not in `below`, which may be null.
std::vector<memory::Pager*> PagersOf(const MemoryImage& image,
                                     const MemoryImage* below) {
  std::vector<memory::Pager*> pagers;
  for (const auto& file : image.files()) {
    if (file->pager() == nullptr) continue;
    if (below != nullptr &&
        std::find(below->files().begin(), below->files().end(), file) !=
            below->files().end()) {
      continue;
    }
    pagers.push_back(file->pager());
  }
  return pagers;
}

// What closes a gap between pages is read from `base`, and of one that is still
// being filled most is not there yet: more mappings take less time than waiting
// for it.
memory::OverlayOptions OverlayOver(const MemoryImage& base) {
  memory::OverlayOptions options;
  const bool is_full = std::all_of(
      base.files().begin(), base.files().end(), [](const auto& file) {
        return file->pager() == nullptr || file->pager()->full();
      });
  if (!is_full) options.wanted_extents = options.max_extents;
  return options;
}

// So that whoever reads them does not wait for pages that never come.
absl::Status WaitUntilFull(const MemoryImage& image, const MemoryImage* below,
                           const StorageOptions& options) {
  for (memory::Pager* const pager : PagersOf(image, below)) {
    CATNAP_RETURN_IF_ERROR(
        pager->WaitUntilFull(options.stop, options.deadline));
  }
  return absl::OkStatus();
}

bool IsDirectory(const std::string& path) {
  struct stat info {};
  return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
}

}  // namespace

std::vector<PageRange> GuestTemplate::OwnRangesOf(const MemoryImage& image,
                                                  const GuestTemplate* parent) {
  std::vector<PageRange> own;
  const auto add = [&own](uint64_t offset, uint64_t length) {
    if (!own.empty() && own.back().offset + own.back().length == offset) {
      own.back().length += length;
    } else {
      own.push_back({.offset = offset, .length = length});
    }
  };
  if (parent == nullptr) {
    for (const Extent& extent : image.extents()) {
      if (extent.file != Extent::kZero) add(extent.offset, extent.length);
    }
    return own;
  }
  const MemoryImage& below = *parent->memory_;
  size_t i = 0;
  for (const Extent& extent : image.extents()) {
    uint64_t at = extent.offset;
    const uint64_t end = at + extent.length;
    while (at < end) {
      const Extent& under = below.extents()[i];
      const uint64_t until = std::min(end, under.offset + under.length);
      if (image.FileOf(extent) != below.FileOf(under)) add(at, until - at);
      at = until;
      if (at == under.offset + under.length) ++i;
    }
  }
  return own;
}

absl::StatusOr<std::shared_ptr<const GuestTemplate>> GuestTemplate::Load(
    const std::string& directory, Role role,
    std::shared_ptr<const GuestTemplate> parent,
    const StorageOptions& options) {
  CATNAP_ASSIGN_OR_RETURN(
      std::shared_ptr<const snapshot::SnapshotReader> reader,
      snapshot::SnapshotReader::Open(directory));
  CATNAP_RETURN_IF_ERROR(CheckSections(reader->sections()));
  const std::optional<snapshot::Id> wanted = reader->parent();
  if (!wanted.has_value()) {
    parent = nullptr;
  } else if (parent == nullptr || !parent->stored_.has_value() ||
             parent->stored_->id != *wanted ||
             parent->memory_->size() != reader->ram_bytes()) {
    return Error(absl::StatusCode::kFailedPrecondition,
                 "the guest stored in {} shares the memory of an image's "
                 "snapshot {}, and that image is not here; bring it back, or "
                 "remove the stored guest",
                 directory, snapshot::IdText(*wanted));
  }
  CATNAP_ASSIGN_OR_RETURN(
      std::shared_ptr<memory::MemoryFile> file,
      memory::MemoryFile::Create("catnap-memory", reader->ram_bytes()));
  const snapshot::PageIndex& index = reader->index();
  std::shared_ptr<const MemoryImage> below;
  std::vector<PageRange> ranges =
      snapshot::RangesOf(index, snapshot::PageKind::kStored);
  if (parent == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(below, MemoryImage::Zero(reader->ram_bytes()));
  } else {
    CATNAP_ASSIGN_OR_RETURN(
        below, LayZeros(parent->memory_,
                        snapshot::RangesOf(index, snapshot::PageKind::kZero),
                        file.get(), &ranges));
    std::sort(ranges.begin(), ranges.end(),
              [](const PageRange& a, const PageRange& b) {
                return a.offset < b.offset;
              });
  }
  CATNAP_ASSIGN_OR_RETURN(auto overlaid, memory::Overlay(*below, file, ranges,
                                                         OverlayOver(*below)));

  // new: the constructor is private.
  std::shared_ptr<GuestTemplate> result(new GuestTemplate());
  CATNAP_RETURN_IF_ERROR(result->Fill(reader, file.get(), options));
  result->memory_ = std::move(overlaid.image);
  result->own_bytes_ = BytesOf(snapshot::OwnRanges(index));
  result->role_ = role;
  result->parent_ = std::move(parent);
  result->sections_ = reader->sections();
  result->stored_ =
      Stored{.id = reader->id(), .index = index, .directory = directory};
  return result;
}

absl::Status GuestTemplate::Fill(
    const std::shared_ptr<const snapshot::SnapshotReader>& reader,
    memory::MemoryFile* file, const StorageOptions& options) {
  hot_ = HotRangesOf(*reader);
  hot_is_read_ = options.prefetch == Prefetch::kAll ||
                 options.prefetch == Prefetch::kHotSet;
  snapshot::ReadOptions read = ReadOptionsOf(options);
  if (options.prefetch != Prefetch::kAll) {
    Bringing bringing = Bringing::kAll;
    if (options.prefetch == Prefetch::kHotSet) {
      read.frames = snapshot::FrameSet::kHot;
      CATNAP_RETURN_IF_ERROR(ReadInto(file, *reader, read));
      read.frames = snapshot::FrameSet::kRest;
      bringing = Bringing::kRest;
    } else if (options.prefetch == Prefetch::kRecord) {
      bringing = Bringing::kTouched;
    }
    auto pages = std::make_unique<StoredPages>(reader, options.pool, bringing);
    const StoredPages* const recorder = pages.get();
    no_paging_ = file->FillOnDemand(std::move(pages),
                                    /*fills=*/bringing == Bringing::kRest);
    if (no_paging_.ok()) {
      if (bringing == Bringing::kTouched) recorder_ = recorder;
      return absl::OkStatus();
    }
    if (!absl::IsFailedPrecondition(no_paging_)) return no_paging_;
  }
  CATNAP_RETURN_IF_ERROR(ReadInto(file, *reader, read));
  return file->Seal();
}

const MemoryImage* GuestTemplate::below() const {
  return parent_ == nullptr ? nullptr : parent_->memory_.get();
}

std::span<const PageRange> GuestTemplate::HotOf(
    const StorageOptions& options) const {
  if (!options.hot.empty() || image() == nullptr) return options.hot;
  return image()->hot_;
}

std::vector<PageRange> GuestTemplate::Touched() const {
  if (recorder_ == nullptr) return {};
  return recorder_->Touched();
}

void GuestTemplate::Populate(memory::GuestMemory* memory,
                             memory::GuestMemory::Access own) const {
  if (!hot_is_read_ || role_ != Role::kGuest) return;
  memory->Populate(SortedStart(hot_, kMostPopulated), own);
  if (parent_ == nullptr || !parent_->hot_is_read_) return;
  memory->Populate(
      memory::SubtractRanges(SortedStart(parent_->hot_, kMostPopulated),
                             snapshot::OwnRanges(stored_->index)),
      memory::GuestMemory::Access::kRead);
}

absl::Status GuestTemplate::Fetch(const StorageOptions& options) const {
  if (options.prefetch == Prefetch::kAll) {
    return WaitUntilFull(*memory_, below(), options);
  }
  if (options.prefetch != Prefetch::kHotSet) return absl::OkStatus();
  for (memory::Pager* const pager : PagersOf(*memory_, below())) {
    CATNAP_RETURN_IF_ERROR(pager->StartFilling());
  }
  return absl::OkStatus();
}

absl::Status GuestTemplate::memory_status() const { return StatusOf(*memory_); }

absl::StatusOr<StorageSizes> GuestTemplate::Store(
    const std::string& directory, const StorageOptions& options) const {
  CATNAP_RETURN_IF_ERROR(WaitUntilFull(*memory_, below(), options));
  CATNAP_ASSIGN_OR_RETURN(const auto view, MapForReading(memory_));
  const std::vector<PageRange> own = OwnRangesOf(*memory_, parent_.get());
  snapshot::SnapshotContent content;
  content.sections = sections_;
  content.memory = {view->host_base(), view->size()};
  content.changed = own;
  content.hot = HotOf(options);
  if (parent_ != nullptr && parent_->stored_.has_value()) {
    content.parent = parent_->stored_->id;
  }
  CATNAP_ASSIGN_OR_RETURN(
      const snapshot::WrittenSnapshot written,
      snapshot::WriteSnapshot(directory, content, WriteOptionsOf(options)));
  return StorageSizes{.written_bytes = written.written_bytes,
                      .stored_bytes = StoredBytesOf(written.index),
                      .own_bytes = written.own_bytes};
}

absl::StatusOr<StorageSizes> StoreMachine(
    Machine* machine, const std::vector<state::SavedSection>& sections,
    const GuestTemplate* origin, const std::string& directory,
    const StorageOptions& options) {
  const memory::GuestMemory& memory = machine->memory();
  CATNAP_ASSIGN_OR_RETURN(std::vector<PageRange> changed,
                          memory::OwnPages(memory));
  CATNAP_ASSIGN_OR_RETURN(changed, memory::DropUnchanged(memory, changed));

  const GuestTemplate* const parent =
      origin == nullptr ? nullptr : origin->image();
  const GuestTemplate::Stored* base = nullptr;
  // Of use only while the machine runs over just that: pages that a capture
  // took are in the image that is mapped now, and no longer the guest's own.
  if (origin != nullptr && origin != parent && origin->stored_.has_value() &&
      memory.image() == origin->memory_) {
    base = &*origin->stored_;
  }
  snapshot::SnapshotContent content;
  content.sections = sections;
  content.memory = {memory.host_base(), memory.size()};
  if (parent != nullptr && parent->stored_.has_value()) {
    content.parent = parent->stored_->id;
  }
  if (base != nullptr && IsDirectory(base->directory) &&
      !snapshot::ShouldCompact(base->index)) {
    content.base = snapshot::BaseSnapshot{.index = &base->index,
                                          .directory = base->directory};
  } else {
    CATNAP_RETURN_IF_ERROR(WaitUntilFull(
        *memory.image(), parent == nullptr ? nullptr : parent->memory_.get(),
        options));
    changed =
        UnionOf(changed, GuestTemplate::OwnRangesOf(*memory.image(), parent));
  }
  content.changed = changed;
  content.hot = origin == nullptr ? options.hot : origin->HotOf(options);
  CATNAP_ASSIGN_OR_RETURN(
      const snapshot::WrittenSnapshot written,
      snapshot::WriteSnapshot(directory, content, WriteOptionsOf(options)));
  // What the guest wrote over memory that was lost is of no worth.
  CATNAP_RETURN_IF_ERROR(StatusOf(*memory.image()));
  return StorageSizes{.written_bytes = written.written_bytes,
                      .stored_bytes = StoredBytesOf(written.index),
                      .own_bytes = written.own_bytes};
}

absl::StatusOr<std::unique_ptr<MachineCapture>> MachineCapture::Prepare(
    Machine* machine, std::shared_ptr<const GuestTemplate> origin,
    Memory memory, const StorageOptions& options) {
  // new: the constructor is private.
  std::unique_ptr<MachineCapture> capture(new MachineCapture(memory));
  const MemoryImage& image = *machine->memory().image();
  memory::ArenaOptions arena;
  if (memory == Memory::kShared) {
    // What GuestMemory::Rebase() maps anew must be there.
    CATNAP_RETURN_IF_ERROR(WaitUntilFull(image, nullptr, options));
    if (origin != nullptr && origin->image() != nullptr) {
      CATNAP_RETURN_IF_ERROR(
          WaitUntilFull(*origin->image()->memory_, nullptr, options));
    }
  } else {
    arena.overlay = OverlayOver(image);
  }
  CATNAP_ASSIGN_OR_RETURN(capture->arena_,
                          memory::Arena::Create(machine->memory(), arena));
  CATNAP_RETURN_IF_ERROR(capture->arena_->Prepare(machine->memory()));
  capture->origin_ = std::move(origin);
  return capture;
}

absl::Status MachineCapture::Take(Machine* machine,
                                  std::vector<state::SavedSection> sections) {
  CATNAP_RETURN_IF_ERROR(arena_->Capture(machine->memory()));
  result_ = std::shared_ptr<GuestTemplate>(new GuestTemplate());
  result_->sections_ = std::move(sections);
  if (memory_ == Memory::kApart) return absl::OkStatus();
  CATNAP_ASSIGN_OR_RETURN(auto overlaid, arena_->Image());
  CATNAP_RETURN_IF_ERROR(machine->memory().Rebase(overlaid.image));
  result_->memory_ = std::move(overlaid.image);
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<const GuestTemplate>> MachineCapture::Finish() {
  if (result_->memory_ == nullptr) {
    CATNAP_ASSIGN_OR_RETURN(auto overlaid, arena_->Image());
    result_->memory_ = std::move(overlaid.image);
  }
  CATNAP_RETURN_IF_ERROR(arena_->Seal());
  // Own are the pages beside the image's, however many captures lie between.
  if (origin_ != nullptr) {
    result_->parent_ = origin_->role_ == GuestTemplate::Role::kImage
                           ? origin_
                           : origin_->parent_;
  }
  result_->own_bytes_ = BytesOf(
      GuestTemplate::OwnRangesOf(*result_->memory_, result_->parent_.get()));
  return result_;
}

}  // namespace catnap::vmm
