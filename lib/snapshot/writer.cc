#include "snapshot/writer.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>

#include "base/checked.h"
#include "base/crc32c.h"
#include "base/mutex.h"
#include "base/random.h"
#include "base/status.h"
#include "io/file.h"
#include "snapshot/chunk_file.h"
#include "snapshot/chunk_writer.h"
#include "snapshot/memory_file.h"

namespace catnap::snapshot {
namespace {

constexpr uint64_t kPage = base::kPageBytes;
constexpr size_t kMinMemoryBytes = size_t{2} << 20;

bool IsZeroPage(const uint8_t* page) {
  // Most pages that are not zero show it at once.
  uint64_t start[8] = {};
  std::memcpy(start, page, sizeof(start));
  for (const uint64_t word : start) {
    if (word != 0) return false;
  }
  return std::memcmp(page, page + sizeof(start), kPage - sizeof(start)) == 0;
}

absl::Status CheckRanges(std::span<const base::PageRange> ranges,
                         uint64_t ram_bytes, const char* what, bool sorted) {
  uint64_t end = 0;
  for (const base::PageRange& range : ranges) {
    if (!base::IsAligned<uint64_t>(range.offset | range.length, kPage) ||
        !base::InRange<uint64_t>(range.offset, range.length, ram_bytes) ||
        (sorted && range.offset < end)) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "{} has {} bytes at {}, must be pages of {} bytes{}", what,
                   range.length, range.offset, ram_bytes,
                   sorted ? " in order" : "");
    }
    end = range.offset + range.length;
  }
  return absl::OkStatus();
}

absl::Status CheckContent(const SnapshotContent& content,
                          const WriteOptions& options) {
  const uint64_t ram_bytes = content.memory.size();
  if (options.pool == nullptr || options.max_memory_bytes < kMinMemoryBytes ||
      options.level < codec::ZstdCompressor::kMinLevel ||
      options.level > codec::ZstdCompressor::kMaxLevel) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "snapshot needs a pool, a level of {} to {} (is {}) and {} "
                 "bytes of memory (has {})",
                 codec::ZstdCompressor::kMinLevel,
                 codec::ZstdCompressor::kMaxLevel, options.level,
                 kMinMemoryBytes, options.max_memory_bytes);
  }
  if (options.frame_pages == 0 || options.frame_pages > kMaxFramePages) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "frame_pages is {}, must be 1 to {}", options.frame_pages,
                 kMaxFramePages);
  }
  if (ram_bytes == 0 || ram_bytes > kMaxRamBytes ||
      !base::IsAligned<uint64_t>(ram_bytes, kPage)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "memory is {} bytes, must be pages, at most {} bytes",
                 ram_bytes, kMaxRamBytes);
  }
  if (!content.parent_memory.empty() &&
      (content.parent_memory.size() != ram_bytes ||
       !content.parent.has_value())) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "parent's memory is {} bytes, must be {}, of a parent",
                 content.parent_memory.size(), ram_bytes);
  }
  if (content.base.has_value()) {
    const PageIndex& base = *content.base->index;
    if (base.ram_pages * kPage != ram_bytes ||
        base.has_parent != content.parent.has_value()) {
      return Error(absl::StatusCode::kFailedPrecondition,
                   "the base has {} pages and {} parent, memory is {} bytes",
                   base.ram_pages, base.has_parent ? "a" : "no", ram_bytes);
    }
    if (base.files.size() >= kMaxChunkFiles) {
      return Error(absl::StatusCode::kFailedPrecondition,
                   "the base has {} chunk files, must be fewer than {}",
                   base.files.size(), kMaxChunkFiles);
    }
  }
  CATNAP_RETURN_IF_ERROR(
      CheckRanges(content.changed, ram_bytes, "changed", true));
  CATNAP_RETURN_IF_ERROR(CheckRanges(content.hot, ram_bytes, "hot", false));
  uint64_t section_bytes = 0;
  for (const state::SavedSection& section : content.sections) {
    if (section.bytes.size() > state::kMaxSectionBytes) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "{} is {} bytes, must be at most {}",
                   state::SectionName(section.id, section.instance),
                   section.bytes.size(), state::kMaxSectionBytes);
    }
    section_bytes += section.bytes.size();
  }
  if (content.sections.size() > state::kMaxSections ||
      section_bytes > kMaxAllSectionsBytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "{} sections of {} bytes, must be at most {} of {}",
                 content.sections.size(), section_bytes, state::kMaxSections,
                 kMaxAllSectionsBytes);
  }
  return absl::OkStatus();
}

absl::Status CheckStop(const WriteOptions& options) {
  if (options.stop.stop_requested()) {
    return absl::CancelledError("the snapshot was cancelled");
  }
  if (options.deadline.has_value() &&
      std::chrono::steady_clock::now() >= *options.deadline) {
    return absl::DeadlineExceededError("the snapshot took too long");
  }
  return absl::OkStatus();
}

// One frame on its way from memory to the file.
struct FrameJob {
  std::vector<uint32_t> pages;
  std::unique_ptr<uint8_t[]> room;  // For the largest frame; not cleared.
  size_t size = 0;
  uint32_t crc32c = 0;
  absl::Status status;
  bool done = false;  // Guarded by FramePipeline::mutex_.

  std::span<const uint8_t> compressed() const { return {room.get(), size}; }
};

// A frame's pages may stand anywhere in memory; often they stand together.
bool FollowEachOther(const std::vector<uint32_t>& pages) {
  for (size_t i = 1; i < pages.size(); ++i) {
    if (pages[i] != pages[0] + i) return false;
  }
  return true;
}

// Compresses frames on the pool and writes them in the order they came.
class FramePipeline {
 public:
  FramePipeline(const SnapshotContent& content, const WriteOptions& options,
                int directory)
      : content_(content),
        options_(options),
        directory_(directory),
        client_(options.pool) {}

  absl::Status Open(const Id& id, uint64_t most_bytes);
  // Stores the page in the next place of the frame that is being filled.
  // Returns its slot.
  absl::StatusOr<uint32_t> Add(uint32_t page);
  // What comes next begins a new frame; what came was the hot set.
  absl::Status EndHotSet();
  // Everything is in the file.
  absl::Status Finish();

  NewPages& added() { return added_; }
  uint64_t written_bytes() const {
    return writer_ == nullptr ? 0 : writer_->offset();
  }

 private:
  absl::Status EndFrame();
  // Waits for the oldest job and writes its frame.
  absl::Status WriteOldest();
  void Compress(FrameJob* job, WorkerTools& tools);

  const SnapshotContent& content_;
  const WriteOptions& options_;
  const int directory_;
  Id id_{};
  uint32_t hot_frame_pages_ = 1;
  uint32_t rest_frame_pages_ = 1;
  uint32_t frame_pages_ = 1;  // In the frame that is being filled.
  size_t room_bytes_ = 0;     // Of each job.
  size_t most_jobs_ = 1;
  size_t buffer_memory_ = 0;
  std::unique_ptr<ChunkWriter> writer_;  // Made for the first frame.
  NewPages added_;
  uint32_t slots_ = 0;
  std::vector<std::unique_ptr<FrameJob>> spare_;
  std::deque<std::unique_ptr<FrameJob>> jobs_;  // The oldest first.
  std::unique_ptr<FrameJob> filling_;
  base::Mutex mutex_;
  base::CondVar done_;
  WorkerPool::Client client_;  // Last: its jobs use the rest.
};

absl::Status FramePipeline::Open(const Id& id, uint64_t most_bytes) {
  id_ = id;
  // A quarter for what is with the disk, the rest for frames.
  buffer_memory_ = static_cast<size_t>(std::min<uint64_t>(
      std::min(options_.max_memory_bytes / 4, size_t{4} << 20), most_bytes));
  const size_t job_memory =
      options_.max_memory_bytes - options_.max_memory_bytes / 4;
  const size_t threads = options_.pool->threads();
  const uint64_t share = std::min<uint64_t>(job_memory, most_bytes) /
                         (2 * threads) / codec::ZstdCompressor::Bound(kPage);
  rest_frame_pages_ = static_cast<uint32_t>(std::clamp<uint64_t>(
      share, std::min(kHotFramePages, options_.frame_pages),
      options_.frame_pages));
  hot_frame_pages_ = std::min(kHotFramePages, rest_frame_pages_);
  frame_pages_ = content_.hot.empty() ? rest_frame_pages_ : hot_frame_pages_;
  room_bytes_ = codec::ZstdCompressor::Bound(rest_frame_pages_ * kPage);
  // Enough that workers do not wait for this thread to look around.
  most_jobs_ = std::clamp<size_t>(4 * threads, 2, job_memory / room_bytes_);
  return absl::OkStatus();
}

absl::StatusOr<uint32_t> FramePipeline::Add(uint32_t page) {
  if (filling_ == nullptr) {
    while (jobs_.size() >= most_jobs_) CATNAP_RETURN_IF_ERROR(WriteOldest());
    if (spare_.empty()) {
      filling_ = std::make_unique<FrameJob>();
      filling_->pages.reserve(rest_frame_pages_);
      filling_->room = std::make_unique_for_overwrite<uint8_t[]>(room_bytes_);
    } else {
      filling_ = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  filling_->pages.push_back(page);
  const uint32_t slot = slots_++;
  if (filling_->pages.size() == frame_pages_) {
    CATNAP_RETURN_IF_ERROR(EndFrame());
  }
  return slot;
}

absl::Status FramePipeline::EndFrame() {
  if (filling_ == nullptr) return absl::OkStatus();
  CATNAP_RETURN_IF_ERROR(CheckStop(options_));
  FrameJob* const job = filling_.get();
  job->done = false;
  jobs_.push_back(std::move(filling_));
  client_.Submit([this, job](WorkerTools& tools) {
    Compress(job, tools);
    base::MutexLock lock(&mutex_);
    job->done = true;
    done_.NotifyOne();
  });
  return absl::OkStatus();
}

void FramePipeline::Compress(FrameJob* job, WorkerTools& tools) {
  const auto compressor = tools.Compressor(options_.level);
  if (!compressor.ok()) {
    job->status = compressor.status();
    return;
  }
  const size_t bytes = job->pages.size() * kPage;
  std::span<const uint8_t> gathered =
      content_.memory.subspan(job->pages.front() * kPage);
  if (FollowEachOther(job->pages)) {
    gathered = gathered.first(bytes);
  } else {
    const std::span<uint8_t> copy = tools.Scratch(bytes);
    for (size_t i = 0; i < job->pages.size(); ++i) {
      std::memcpy(copy.data() + i * kPage,
                  content_.memory.data() + job->pages[i] * kPage, kPage);
    }
    gathered = copy;
  }
  const auto size =
      (*compressor)->Compress(gathered, {job->room.get(), room_bytes_});
  job->status = size.status();
  if (!size.ok()) return;
  job->size = *size;
  job->crc32c = base::Crc32c(job->compressed());
}

absl::Status FramePipeline::WriteOldest() {
  FrameJob* const job = jobs_.front().get();
  {
    base::MutexLock lock(&mutex_);
    while (!job->done) done_.Wait(&mutex_);
  }
  CATNAP_RETURN_IF_ERROR(job->status);
  if (writer_ == nullptr) {
    added_.file.id = id_;
    added_.file.name = IdText(id_) + std::string(kChunkFileSuffix);
    CATNAP_ASSIGN_OR_RETURN(
        writer_, ChunkWriter::Create(directory_, added_.file.name, id_,
                                     {.buffer_memory_bytes = buffer_memory_,
                                      .plain_io = options_.plain_io,
                                      .write_back = options_.durable}));
  }
  added_.frames.push_back({.bytes = static_cast<uint32_t>(job->size),
                           .offset = writer_->offset(),
                           .crc32c = job->crc32c,
                           .pages = static_cast<uint32_t>(job->pages.size())});
  CATNAP_RETURN_IF_ERROR(writer_->Append(job->compressed()));
  job->pages.clear();
  spare_.push_back(std::move(jobs_.front()));
  jobs_.pop_front();
  return absl::OkStatus();
}

absl::Status FramePipeline::EndHotSet() {
  CATNAP_RETURN_IF_ERROR(EndFrame());
  while (!jobs_.empty()) CATNAP_RETURN_IF_ERROR(WriteOldest());
  added_.file.hot_bytes = written_bytes();
  frame_pages_ = rest_frame_pages_;
  return absl::OkStatus();
}

absl::Status FramePipeline::Finish() {
  CATNAP_RETURN_IF_ERROR(EndFrame());
  while (!jobs_.empty()) CATNAP_RETURN_IF_ERROR(WriteOldest());
  if (writer_ == nullptr) return absl::OkStatus();
  added_.file.file_bytes = writer_->offset();
  return writer_->Finish(options_.durable);
}

// Looks at every changed page once and says what becomes of it.
class PageSorter {
 public:
  PageSorter(const SnapshotContent& content, const WriteOptions& options,
             FramePipeline* pipeline, WrittenSnapshot* result)
      : content_(content),
        options_(options),
        pipeline_(pipeline),
        result_(result),
        pending_(content.memory.size() / kPage) {}

  absl::Status Run();

 private:
  absl::Status Take(uint64_t page);
  void Record(uint32_t page, PageKind kind, uint32_t slot);

  const SnapshotContent& content_;
  const WriteOptions& options_;
  FramePipeline* const pipeline_;
  WrittenSnapshot* const result_;
  std::vector<bool> pending_;  // Changed, and not taken yet.
  uint64_t taken_ = 0;
};

absl::Status PageSorter::Run() {
  for (const base::PageRange& range : content_.changed) {
    const auto first =
        pending_.begin() + static_cast<ptrdiff_t>(range.offset / kPage);
    std::fill(first, first + static_cast<ptrdiff_t>(range.length / kPage),
              true);
  }
  for (const auto ranges : {content_.hot, content_.changed}) {
    for (const base::PageRange& range : ranges) {
      const uint64_t end = (range.offset + range.length) / kPage;
      for (uint64_t page = range.offset / kPage; page < end; ++page) {
        if (pending_[page]) CATNAP_RETURN_IF_ERROR(Take(page));
      }
    }
    if (ranges.data() == content_.hot.data() && !content_.hot.empty()) {
      CATNAP_RETURN_IF_ERROR(pipeline_->EndHotSet());
    }
  }
  std::vector<PageRun>& runs = pipeline_->added().runs;
  std::sort(runs.begin(), runs.end(),
            [](const PageRun& a, const PageRun& b) { return a.page < b.page; });
  return absl::OkStatus();
}

absl::Status PageSorter::Take(uint64_t page) {
  pending_[page] = false;
  // Also where nothing is stored for long.
  if (++taken_ % 1024 == 0) CATNAP_RETURN_IF_ERROR(CheckStop(options_));
  const auto number = static_cast<uint32_t>(page);
  const uint8_t* const bytes = content_.memory.data() + page * kPage;
  if (!content_.parent_memory.empty() &&
      std::memcmp(bytes, content_.parent_memory.data() + page * kPage, kPage) ==
          0) {
    ++result_->parent_pages;
    Record(number, PageKind::kParent, 0);
    return absl::OkStatus();
  }
  if (IsZeroPage(bytes)) {
    ++result_->zero_pages;
    Record(number, PageKind::kZero, 0);
    return absl::OkStatus();
  }
  ++result_->stored_pages;
  CATNAP_ASSIGN_OR_RETURN(const uint32_t slot, pipeline_->Add(number));
  Record(number, PageKind::kStored, slot);
  return absl::OkStatus();
}

void PageSorter::Record(uint32_t page, PageKind kind, uint32_t slot) {
  std::vector<PageRun>& runs = pipeline_->added().runs;
  if (!runs.empty()) {
    PageRun& last = runs.back();
    if (last.kind == kind && last.page + last.pages == page &&
        (kind != PageKind::kStored || last.slot + last.pages == slot)) {
      ++last.pages;
      return;
    }
  }
  runs.push_back({.page = page, .pages = 1, .kind = kind, .slot = slot});
}

// Makes the base's files that are still needed part of the new directory.
absl::Status LinkFiles(const SnapshotContent& content, const PageIndex& index,
                       int directory, const WriteOptions& options,
                       uint64_t* copied_bytes) {
  if (!content.base.has_value()) return absl::OkStatus();
  CATNAP_ASSIGN_OR_RETURN(
      const base::UniqueFd from,
      io::OpenFile(content.base->directory, O_RDONLY | O_DIRECTORY));
  const std::vector<ChunkFile>& known = content.base->index->files;
  for (const ChunkFile& file : index.files) {
    if (std::find(known.begin(), known.end(), file) == known.end()) continue;
    CATNAP_ASSIGN_OR_RETURN(
        const bool linked,
        io::LinkOrCopy(from.get(), directory, file.name, options.stop));
    if (!linked) *copied_bytes += file.file_bytes;
    CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd fd,
                            OpenChunkFile(directory, file));
    if (!options.durable) continue;
    // The snapshot that it was written for need not have been durable.
    CATNAP_RETURN_IF_ERROR(AddContext(io::FsyncFile(fd.get()), file.name));
  }
  return absl::OkStatus();
}

absl::Status WriteMemoryFile(std::span<const uint8_t> bytes, int directory,
                             const WriteOptions& options) {
  const std::string name(kMemoryFileName);
  CATNAP_ASSIGN_OR_RETURN(
      const base::UniqueFd file,
      io::OpenFileAt(directory, name, O_WRONLY | O_CREAT | O_EXCL));
  constexpr size_t kStep = size_t{4} << 20;
  for (size_t at = 0; at < bytes.size(); at += kStep) {
    CATNAP_RETURN_IF_ERROR(CheckStop(options));
    const auto part = bytes.subspan(at, std::min(kStep, bytes.size() - at));
    CATNAP_RETURN_IF_ERROR(AddContext(
        io::WriteFully(file.get(), part.data(), part.size(), at), name));
  }
  if (!options.durable) return absl::OkStatus();
  CATNAP_RETURN_IF_ERROR(AddContext(io::FsyncFile(file.get()), name));
  return AddContext(io::FsyncFile(directory), "directory of the snapshot");
}

}  // namespace

absl::StatusOr<WrittenSnapshot> WriteSnapshot(const std::string& directory,
                                              const SnapshotContent& content,
                                              const WriteOptions& options) {
  CATNAP_RETURN_IF_ERROR(CheckContent(content, options));
  CATNAP_RETURN_IF_ERROR(CheckStop(options));
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd folder,
                          io::OpenFile(directory, O_RDONLY | O_DIRECTORY));
  WrittenSnapshot result;
  CATNAP_ASSIGN_OR_RETURN(result.id, base::RandomBytes<16>());
  CATNAP_ASSIGN_OR_RETURN(const Id file_id, base::RandomBytes<16>());
  uint64_t changed_bytes = 0;
  for (const base::PageRange& range : content.changed) {
    changed_bytes += range.length;
  }
  FramePipeline pipeline(content, options, folder.get());
  CATNAP_RETURN_IF_ERROR(pipeline.Open(file_id, changed_bytes));
  CATNAP_RETURN_IF_ERROR(
      PageSorter(content, options, &pipeline, &result).Run());
  CATNAP_RETURN_IF_ERROR(pipeline.Finish());
  result.index =
      OverlayPages(content.base.has_value() ? content.base->index : nullptr,
                   content.memory.size() / kPage, content.parent.has_value(),
                   pipeline.added());
  result.written_bytes = pipeline.written_bytes();
  CATNAP_RETURN_IF_ERROR(LinkFiles(content, result.index, folder.get(), options,
                                   &result.written_bytes));
  Header header;
  header.id = result.id;
  header.has_parent = content.parent.has_value();
  if (header.has_parent) header.parent = *content.parent;
  header.ram_bytes = content.memory.size();
  const std::vector<uint8_t> file =
      EncodeMemoryFile(header, content.sections, result.index);
  CATNAP_RETURN_IF_ERROR(WriteMemoryFile(file, folder.get(), options));
  result.written_bytes += file.size();
  for (const base::PageRange& range : OwnRanges(result.index)) {
    result.own_bytes += range.length;
  }
  return result;
}

}  // namespace catnap::snapshot
