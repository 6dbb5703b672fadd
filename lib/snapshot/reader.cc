#include "snapshot/reader.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/checked.h"
#include "base/crc32c.h"
#include "base/mutex.h"
#include "base/status.h"
#include "io/file.h"
#include "io/transfer_queue.h"
#include "snapshot/chunk_file.h"
#include "snapshot/memory_file.h"

namespace catnap::snapshot {
namespace {

constexpr uint64_t kPage = base::kPageBytes;
// What is read at once, and how much of it is on its way: enough to keep a disk
// and the pool busy, small enough that a small snapshot uses all threads.
constexpr size_t kBatchBytes = size_t{256} << 10;
constexpr size_t kBufferMemory = size_t{4} << 20;

// Frames that follow each other in a file.
struct Batch {
  int fd = -1;
  uint64_t offset = 0;
  size_t bytes = 0;
  std::vector<size_t> frames;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SnapshotReader>> SnapshotReader::Open(
    const std::string& directory) {
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd folder,
                          io::OpenFile(directory, O_RDONLY | O_DIRECTORY));
  const std::string name(kMemoryFileName);
  const auto in_directory = [&](const absl::Status& status) {
    return AddContext(status, directory);
  };
  auto fd = io::OpenFileAt(folder.get(), name,
                           O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  if (!fd.ok()) return in_directory(fd.status());
  auto file = ReadMemoryFile(fd->get());
  if (!file.ok()) return in_directory(AddContext(file.status(), name));
  std::unique_ptr<SnapshotReader> reader(new SnapshotReader);
  reader->header_ = file->header;
  reader->sections_ = std::move(file->sections);
  reader->index_ = std::move(file->index);
  for (const ChunkFile& chunks : reader->index_.files) {
    auto opened = OpenChunkFile(folder.get(), chunks);
    if (!opened.ok()) return in_directory(opened.status());
    reader->files_.push_back(std::move(*opened));
  }
  reader->by_slot_ = RunsBySlot(reader->index_);
  return reader;
}

std::optional<Id> SnapshotReader::parent() const {
  if (!header_.has_parent) return std::nullopt;
  return header_.parent;
}

uint64_t SnapshotReader::stored_bytes() const {
  uint64_t bytes = header_.file_bytes;
  for (const ChunkFile& file : index_.files) bytes += file.file_bytes;
  return bytes;
}

std::vector<size_t> SnapshotReader::FramesInOrder() const {
  std::vector<size_t> order(index_.frames.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_partition(order.begin(), order.end(), [this](size_t frame) {
    return IsHot(index_.frames[frame]);
  });
  return order;
}

size_t SnapshotReader::hot_frames() const {
  return static_cast<size_t>(
      std::count_if(index_.frames.begin(), index_.frames.end(),
                    [this](const Frame& frame) { return IsHot(frame); }));
}

std::optional<size_t> SnapshotReader::FrameAt(uint64_t offset) const {
  if (offset >= header_.ram_bytes) return std::nullopt;
  const auto page = static_cast<uint32_t>(offset / kPage);
  const auto after = std::upper_bound(
      index_.runs.begin(), index_.runs.end(), page,
      [](uint32_t at, const PageRun& run) { return at < run.page; });
  const PageRun& run = *(after - 1);  // The first run begins at page 0.
  if (run.kind != PageKind::kStored) return std::nullopt;
  return FrameOfSlot(index_, run.slot + (page - run.page));
}

std::vector<FramePlace> SnapshotReader::PlacesOf(size_t frame) const {
  const Frame& about = index_.frames[frame];
  const uint32_t end = about.first_slot + about.pages;
  auto run = std::upper_bound(
      by_slot_.begin(), by_slot_.end(), about.first_slot,
      [](uint32_t slot, const PageRun& at) { return slot < at.slot; });
  if (run != by_slot_.begin()) --run;
  std::vector<FramePlace> places;
  for (; run != by_slot_.end() && run->slot < end; ++run) {
    const uint32_t from = std::max(run->slot, about.first_slot);
    const uint32_t until = std::min(run->slot + run->pages, end);
    if (from >= until) continue;  // Ends before the frame.
    places.push_back(
        {.first = from - about.first_slot,
         .range = {.offset = (run->page + (from - run->slot)) * kPage,
                   .length = (until - from) * kPage}});
  }
  return places;
}

std::string SnapshotReader::NameOf(size_t frame) const {
  const Frame& about = index_.frames[frame];
  return fmt::format("{} frame {} ({} bytes at {})",
                     index_.files[about.file].name, frame, about.bytes,
                     about.offset);
}

absl::Status SnapshotReader::Unpack(size_t frame,
                                    std::span<const uint8_t> compressed,
                                    codec::ZstdDecompressor* decompressor,
                                    std::span<uint8_t> into) const {
  const Frame& about = index_.frames[frame];
  const uint32_t sum = base::Crc32c(compressed);
  if (sum != about.crc32c) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} has checksum {:#010x}, must have {:#010x}", NameOf(frame),
                 sum, about.crc32c);
  }
  return AddContext(decompressor->DecompressExact(
                        compressed, into.first(about.pages * kPage)),
                    NameOf(frame));
}

absl::Status SnapshotReader::ReadFrame(size_t frame,
                                       codec::ZstdDecompressor* decompressor,
                                       base::ScratchBuffer* compressed,
                                       std::span<uint8_t> into) const {
  const Frame& about = index_.frames[frame];
  const std::span<uint8_t> bytes = compressed->Get(about.bytes);
  const absl::Status status = io::ReadFully(
      files_[about.file].get(), bytes.data(), bytes.size(), about.offset);
  if (status.code() == absl::StatusCode::kOutOfRange) {
    return Error(absl::StatusCode::kDataLoss, "{} is cut", NameOf(frame));
  }
  CATNAP_RETURN_IF_ERROR(AddContext(status, NameOf(frame)));
  return Unpack(frame, bytes, decompressor, into);
}

// Reads all frames: this thread has the disk, the pool the rest.
class SnapshotReader::Bulk {
 public:
  Bulk(const SnapshotReader& reader, const ReadOptions& options,
       absl::FunctionRef<bool(size_t)> wanted, TakeFrame take)
      : reader_(reader),
        options_(options),
        wanted_(wanted),
        take_(take),
        client_(options.pool) {}

  absl::Status Run();

 private:
  void Plan();
  absl::Status CheckStop();
  void StartReads();
  // Waits for something to end, and passes on what was read.
  absl::Status Advance();
  void UnpackBatch(const Batch& batch, unsigned buffer, WorkerTools& tools);
  absl::Status UnpackOne(size_t frame, std::span<const uint8_t> compressed,
                         WorkerTools& tools);

  const SnapshotReader& reader_;
  const ReadOptions& options_;
  const absl::FunctionRef<bool(size_t)> wanted_;
  const TakeFrame take_;
  size_t buffer_bytes_ = kBatchBytes;
  std::vector<Batch> batches_;
  size_t next_batch_ = 0;
  std::unique_ptr<io::TransferQueue> queue_;
  std::vector<size_t> reading_;  // The batch of each buffer.
  base::Mutex mutex_;
  base::CondVar changed_;
  std::vector<unsigned> free_ ABSL_GUARDED_BY(mutex_);
  size_t unpacking_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);  // The first error.
  WorkerPool::Client client_;                    // Last: its jobs use the rest.
};

void SnapshotReader::Bulk::Plan() {
  const PageIndex& index = reader_.index_;
  for (const Frame& frame : index.frames) {
    buffer_bytes_ = std::max<size_t>(buffer_bytes_, frame.bytes);
  }
  constexpr size_t kAlignment = 4096;
  buffer_bytes_ = (buffer_bytes_ + kAlignment - 1) & ~(kAlignment - 1);
  for (const size_t i : reader_.FramesInOrder()) {
    const Frame& frame = index.frames[i];
    if (options_.frames != FrameSet::kAll &&
        reader_.IsHot(frame) != (options_.frames == FrameSet::kHot)) {
      continue;
    }
    const int fd = reader_.files_[frame.file].get();
    if (batches_.empty() || batches_.back().fd != fd ||
        batches_.back().offset + batches_.back().bytes != frame.offset ||
        batches_.back().bytes + frame.bytes > buffer_bytes_) {
      batches_.push_back({.fd = fd, .offset = frame.offset, .frames = {}});
    }
    batches_.back().bytes += frame.bytes;
    batches_.back().frames.push_back(i);
  }
}

absl::Status SnapshotReader::Bulk::CheckStop() {
  if (options_.stop.stop_requested()) {
    return absl::CancelledError("reading the snapshot was cancelled");
  }
  if (options_.deadline.has_value() &&
      std::chrono::steady_clock::now() >= *options_.deadline) {
    return absl::DeadlineExceededError("reading the snapshot took too long");
  }
  base::MutexLock lock(&mutex_);
  return status_;
}

void SnapshotReader::Bulk::StartReads() {
  while (next_batch_ < batches_.size()) {
    unsigned buffer = 0;
    {
      base::MutexLock lock(&mutex_);
      if (free_.empty()) return;
      buffer = free_.back();
      free_.pop_back();
    }
    reading_[buffer] = next_batch_;
    const Batch& batch = batches_[next_batch_++];
    queue_->StartRead(batch.fd, buffer, batch.bytes, batch.offset);
    // A plain read has ended by now: the pool shall have it.
    if (!queue_->uses_ring()) return;
  }
}

absl::Status SnapshotReader::Bulk::Advance() {
  if (queue_->in_flight() == 0) {
    // All buffers are with the pool, or everything was read.
    base::MutexLock lock(&mutex_);
    const size_t before = unpacking_;
    while (unpacking_ == before && before > 0) changed_.Wait(&mutex_);
    return absl::OkStatus();
  }
  const io::TransferQueue::Finished finished = queue_->Wait();
  const Batch& batch = batches_[reading_[finished.buffer]];
  if (!finished.result.ok()) {
    return AddContext(finished.result.status(),
                      reader_.NameOf(batch.frames.front()));
  }
  if (*finished.result != batch.bytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} or what follows is cut: the file ends at {}",
                 reader_.NameOf(batch.frames.front()),
                 batch.offset + *finished.result);
  }
  {
    base::MutexLock lock(&mutex_);
    ++unpacking_;
  }
  client_.Submit([this, &batch, buffer = finished.buffer](WorkerTools& tools) {
    UnpackBatch(batch, buffer, tools);
  });
  return absl::OkStatus();
}

void SnapshotReader::Bulk::UnpackBatch(const Batch& batch, unsigned buffer,
                                       WorkerTools& tools) {
  std::span<const uint8_t> bytes(queue_->buffer(buffer), batch.bytes);
  absl::Status status;
  for (const size_t frame : batch.frames) {
    const uint32_t size = reader_.index_.frames[frame].bytes;
    status = UnpackOne(frame, bytes.first(size), tools);
    if (!status.ok()) break;
    bytes = bytes.subspan(size);
  }
  base::MutexLock lock(&mutex_);
  if (status_.ok()) status_ = status;
  free_.push_back(buffer);
  --unpacking_;
  changed_.NotifyOne();
}

absl::Status SnapshotReader::Bulk::UnpackOne(
    size_t frame, std::span<const uint8_t> compressed, WorkerTools& tools) {
  if (!wanted_(frame)) return absl::OkStatus();
  CATNAP_ASSIGN_OR_RETURN(codec::ZstdDecompressor* const decompressor,
                          tools.Decompressor());
  const size_t size = reader_.index_.frames[frame].pages * kPage;
  const std::span<uint8_t> pages = tools.Scratch(size);
  CATNAP_RETURN_IF_ERROR(
      reader_.Unpack(frame, compressed, decompressor, pages));
  return take_(frame, pages);
}

absl::Status SnapshotReader::Bulk::Run() {
  Plan();
  if (batches_.empty()) return CheckStop();
  io::TransferQueueOptions queue_options;
  queue_options.buffer_bytes = buffer_bytes_;
  // Fresh memory and its pinning cost as much as some reads: each buffer is
  // used twice at least, and pinned when it is used again and again.
  queue_options.buffers = static_cast<unsigned>(
      std::min(std::max<size_t>(kBufferMemory / buffer_bytes_, 2),
               (batches_.size() + 1) / 2));
  queue_options.register_buffers =
      batches_.size() >= size_t{4} * queue_options.buffers;
  queue_options.plain = options_.plain_io;
  CATNAP_ASSIGN_OR_RETURN(queue_, io::TransferQueue::Create(queue_options));
  reading_.resize(queue_->buffers());
  {
    base::MutexLock lock(&mutex_);
    for (unsigned i = queue_->buffers(); i > 0; --i) free_.push_back(i - 1);
  }
  while (true) {
    CATNAP_RETURN_IF_ERROR(CheckStop());
    StartReads();
    bool idle = queue_->in_flight() == 0;
    if (idle) {
      base::MutexLock lock(&mutex_);
      idle = unpacking_ == 0;
    }
    if (idle && next_batch_ == batches_.size()) return CheckStop();
    if (!idle) CATNAP_RETURN_IF_ERROR(Advance());
  }
}

absl::Status SnapshotReader::ReadPages(PutPages put,
                                       const ReadOptions& options) const {
  return ReadFrames(
      options, [](size_t) { return true; },
      [this, put](size_t frame, std::span<const uint8_t> pages) {
        for (const FramePlace& place : PlacesOf(frame)) {
          CATNAP_RETURN_IF_ERROR(
              put(place.range, pages.data() + place.first * kPage));
        }
        return absl::OkStatus();
      });
}

absl::Status SnapshotReader::ReadAll(std::span<uint8_t> memory,
                                     const ReadOptions& options) const {
  if (memory.size() != header_.ram_bytes) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "memory has {} bytes, must have {}", memory.size(),
                 header_.ram_bytes);
  }
  return ReadPages(
      [memory](base::PageRange range, const uint8_t* from) {
        std::memcpy(memory.data() + range.offset, from, range.length);
        return absl::OkStatus();
      },
      options);
}

absl::Status SnapshotReader::ReadFrames(const ReadOptions& options,
                                        absl::FunctionRef<bool(size_t)> wanted,
                                        TakeFrame take) const {
  if (options.pool == nullptr) {
    return absl::InvalidArgumentError("reading needs a pool");
  }
  return Bulk(*this, options, wanted, take).Run();
}

absl::Status SnapshotReader::Verify(const ReadOptions& options) const {
  return ReadFrames(
      options, [](size_t) { return true; },
      [](size_t, std::span<const uint8_t>) { return absl::OkStatus(); });
}

}  // namespace catnap::snapshot
