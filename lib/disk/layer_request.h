#ifndef CATNAP_LIB_DISK_LAYER_REQUEST_H_
#define CATNAP_LIB_DISK_LAYER_REQUEST_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "disk/block_io.h"
#include "disk/buffers.h"
#include "disk/layer_format.h"

namespace catnap::disk {

// One operation of a step: on the layer's own file, or on the parent.
struct LayerPart {
  enum class Kind : uint8_t { kReadFile, kReadParent, kWriteFile, kPunch };

  Kind kind{};
  uint64_t offset = 0;
  uint64_t length = 0;
  Buffers buffers;  // Empty: to punch.
};

// Bytes to be written to a range of the disk. A block that the layer does not
// hold yet is written as a whole, so at both ends the range may be widened to
// blocks, by what the disk reads there.
struct LayerTransfer {
  uint64_t offset = 0;
  Buffers buffers;
  // The widened range, its ends, and their bytes: the head's, then the tail's.
  uint64_t wide_offset = 0;
  uint64_t wide_end = 0;
  std::vector<uint8_t> edges;
  Buffers wide_buffers;
};

// What happens when all operations of a step have ended.
enum class LayerStep : uint8_t { kWriteData, kApplyToMap, kFinish };

// A request to a layer from its call to its completion.
struct LayerRequest {
  enum class Kind : uint8_t { kRead, kWrite, kZero };

  bool writes() const { return kind != Kind::kRead; }
  uint64_t first_block() const { return offset / kBlockBytes; }
  // REQUIRES: length is not 0.
  uint64_t last_block() const { return (offset + length - 1) / kBlockBytes; }
  bool ConflictsWith(const LayerRequest& other) const {
    return (writes() || other.writes()) &&
           first_block() <= other.last_block() &&
           other.first_block() <= last_block();
  }

  Kind kind{};
  uint64_t offset = 0;
  uint64_t length = 0;
  Buffers buffers;  // Not those of kZero.
  BlockCompletion done;

  uint64_t number = 0;  // Of InFlight.
  bool running = false;
  bool unable = false;  // Was parked, and has not ended since.
  // Of the step that runs.
  size_t parts_left = 0;
  LayerStep next{};
  absl::Status status;
  // kWrite: one. kZero: what is no whole block, and the blocks between.
  std::vector<LayerTransfer> transfers;
  uint64_t zero_first = 0;  // Block.
  uint64_t zero_end = 0;
};

}  // namespace catnap::disk

#endif  // CATNAP_LIB_DISK_LAYER_REQUEST_H_
