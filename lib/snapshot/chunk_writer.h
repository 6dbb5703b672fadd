#ifndef CATNAP_LIB_SNAPSHOT_CHUNK_WRITER_H_
#define CATNAP_LIB_SNAPSHOT_CHUNK_WRITER_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "io/transfer_queue.h"
#include "snapshot/format.h"

namespace catnap::snapshot {

struct ChunkWriterOptions {
  size_t buffer_memory_bytes = size_t{4} << 20;
  bool plain_io = false;
  // What is written starts on its way to stable storage at once, so that
  // Finish() finds little to wait for.
  bool write_back = false;
};

// Writes one chunk file from its start to its end, several buffers at a time.
// Thread-hostile, as io::TransferQueue.
class ChunkWriter {
 public:
  // Creates `name`, which must not exist, in `directory`.
  static absl::StatusOr<std::unique_ptr<ChunkWriter>> Create(
      int directory, const std::string& name, const Id& id,
      const ChunkWriterOptions& options);
  ChunkWriter(const ChunkWriter&) = delete;
  ChunkWriter& operator=(const ChunkWriter&) = delete;
  ~ChunkWriter() = default;  // Waits for what is in flight.

  // Where the next byte goes.
  uint64_t offset() const { return offset_; }
  // Blocks while all buffers are in flight. After an error, only destroy it.
  absl::Status Append(std::span<const uint8_t> bytes);
  // The rest, and on request to stable storage. At most once.
  absl::Status Finish(bool durable);

 private:
  ChunkWriter(std::string name, base::UniqueFd file,
              std::unique_ptr<io::TransferQueue> queue, bool write_back);
  absl::Status Flush();
  // Takes one transfer that ended.
  absl::Status Reap();

  const std::string name_;
  const base::UniqueFd file_;
  const std::unique_ptr<io::TransferQueue> queue_;
  const bool write_back_;
  std::vector<unsigned> free_;
  struct Transfer {
    uint64_t offset = 0;
    size_t length = 0;
  };
  std::vector<Transfer> transfers_;  // What is in flight, by buffer.
  unsigned current_ = 0;
  size_t filled_ = 0;
  uint64_t offset_ = 0;
};

}  // namespace catnap::snapshot

#endif  // CATNAP_LIB_SNAPSHOT_CHUNK_WRITER_H_
