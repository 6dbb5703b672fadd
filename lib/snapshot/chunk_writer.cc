#include "snapshot/chunk_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/status.h"
#include "io/file.h"

namespace catnap::snapshot {
namespace {

constexpr size_t kBufferBytes = size_t{512} << 10;
constexpr unsigned kMaxBuffers = 16;

}  // namespace

ChunkWriter::ChunkWriter(std::string name, base::UniqueFd file,
                         std::unique_ptr<io::TransferQueue> queue,
                         bool write_back)
    : name_(std::move(name)),
      file_(std::move(file)),
      queue_(std::move(queue)),
      write_back_(write_back),
      transfers_(queue_->buffers()) {
  for (unsigned i = 1; i < queue_->buffers(); ++i) free_.push_back(i);
}

absl::StatusOr<std::unique_ptr<ChunkWriter>> ChunkWriter::Create(
    int directory, const std::string& name, const Id& id,
    const ChunkWriterOptions& options) {
  CATNAP_ASSIGN_OR_RETURN(
      base::UniqueFd file,
      io::OpenFileAt(directory, name, O_WRONLY | O_CREAT | O_EXCL));
  io::TransferQueueOptions queue_options;
  queue_options.buffers = static_cast<unsigned>(std::clamp<size_t>(
      options.buffer_memory_bytes / kBufferBytes, 1, kMaxBuffers));
  queue_options.buffer_bytes = kBufferBytes;
  queue_options.register_buffers = queue_options.buffers > 2;
  queue_options.plain = options.plain_io;
  CATNAP_ASSIGN_OR_RETURN(auto queue, io::TransferQueue::Create(queue_options));
  std::unique_ptr<ChunkWriter> writer(new ChunkWriter(
      name, std::move(file), std::move(queue), options.write_back));
  std::array<uint8_t, kChunkHeaderBytes> header{};
  EncodeChunkHeader(id, header);
  CATNAP_RETURN_IF_ERROR(writer->Append(header));
  return writer;
}

absl::Status ChunkWriter::Append(std::span<const uint8_t> bytes) {
  while (!bytes.empty()) {
    const size_t room = queue_->buffer_bytes() - filled_;
    const auto part = bytes.first(std::min(room, bytes.size()));
    std::memcpy(queue_->buffer(current_) + filled_, part.data(), part.size());
    filled_ += part.size();
    offset_ += part.size();
    bytes = bytes.subspan(part.size());
    if (filled_ < queue_->buffer_bytes()) continue;
    CATNAP_RETURN_IF_ERROR(Flush());
    while (free_.empty()) CATNAP_RETURN_IF_ERROR(Reap());
    current_ = free_.back();
    free_.pop_back();
  }
  return absl::OkStatus();
}

absl::Status ChunkWriter::Flush() {
  if (filled_ == 0) return absl::OkStatus();
  transfers_[current_] = {.offset = offset_ - filled_, .length = filled_};
  queue_->StartWrite(file_.get(), current_, filled_, offset_ - filled_);
  filled_ = 0;
  return absl::OkStatus();
}

absl::Status ChunkWriter::Reap() {
  const io::TransferQueue::Finished finished = queue_->Wait();
  if (!finished.result.ok()) {
    return AddContext(finished.result.status(), name_);
  }
  const Transfer& transfer = transfers_[finished.buffer];
  if (*finished.result != transfer.length) {
    return Error(absl::StatusCode::kInternal, "{}: wrote {} of {} bytes", name_,
                 *finished.result, transfer.length);
  }
  if (write_back_) {
    // A hint: what goes wrong with it, fsync() reports.
    ::sync_file_range(file_.get(), static_cast<off64_t>(transfer.offset),
                      static_cast<off64_t>(transfer.length),
                      SYNC_FILE_RANGE_WRITE);
  }
  free_.push_back(finished.buffer);
  return absl::OkStatus();
}

absl::Status ChunkWriter::Finish(bool durable) {
  CATNAP_RETURN_IF_ERROR(Flush());
  while (queue_->in_flight() > 0) CATNAP_RETURN_IF_ERROR(Reap());
  if (!durable) return absl::OkStatus();
  return AddContext(io::FsyncFile(file_.get()), name_);
}

}  // namespace catnap::snapshot
