#ifndef CATNAP_LIB_VIRTIO_CHAIN_H_
#define CATNAP_LIB_VIRTIO_CHAIN_H_

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace catnap::virtio {

// One buffer that the driver made available (a descriptor chain, virtio 1.2,
// 2.7.4): pieces of guest memory that the device reads, then pieces that it
// writes. The pieces are checked: each lies in guest RAM, none is empty, and
// no side exceeds 2^32 - 1 bytes. What they hold is the guest's, and may change
// at any time: copy out, check the copy, use the copy.
//
// Thread-compatible. A Chain that is used again keeps its memory, at most
// kMaxPieces * 16 bytes.
class Chain {
 public:
  // More descriptors than any driver needs that keeps to what our devices
  // advertise (blk: seg_max + 2).
  static constexpr size_t kMaxPieces = 256;

  uint16_t head() const { return head_; }
  std::span<const iovec> readable() const {
    return std::span(pieces_).first(readable_count_);
  }
  std::span<const iovec> writable() const {
    return std::span(pieces_).subspan(readable_count_);
  }
  // Both sides.
  std::span<const iovec> pieces() const { return pieces_; }
  uint32_t readable_bytes() const { return readable_bytes_; }
  uint32_t writable_bytes() const { return writable_bytes_; }

  // Copies from byte `offset` of the readable side. Returns how many bytes
  // there were, at most into.size().
  size_t CopyOut(uint64_t offset, std::span<uint8_t> into) const;
  // Copies to byte `offset` of the writable side. Returns how many bytes there
  // was room for, at most from.size().
  size_t CopyIn(uint64_t offset, std::span<const uint8_t> from) const;

 private:
  friend class SplitQueue;

  void Clear(uint16_t head);
  // False: too many pieces, too many bytes, or the device would read after it
  // writes.
  bool Add(std::span<uint8_t> bytes, bool writable);

  uint16_t head_ = 0;
  std::vector<iovec> pieces_;
  size_t readable_count_ = 0;
  uint32_t readable_bytes_ = 0;
  uint32_t writable_bytes_ = 0;
};

// The part [offset, offset + length) of `pieces`, appended to `part`. Returns
// how many bytes that were; fewer than `length` at the end of the pieces.
size_t AppendPart(std::span<const iovec> pieces, uint64_t offset,
                  uint64_t length, std::vector<iovec>* part);

}  // namespace catnap::virtio

#endif  // CATNAP_LIB_VIRTIO_CHAIN_H_
