#ifndef CATNAP_LIB_NET_FRAME_STREAM_H_
#define CATNAP_LIB_NET_FRAME_STREAM_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace catnap::net {

// Frames on a byte stream as QEMU's socket back-end and passt write them: each
// behind its length, 4 bytes in network order. Thread-compatible.
class FrameReader {
 public:
  // Where the next bytes of the stream go; never empty. Say Filled() then.
  std::span<uint8_t> Room();
  void Filled(size_t bytes) { end_ += bytes; }

  enum class Next { kFrame, kMore, kBroken };
  // The next whole frame, valid until Room(). kBroken: what comes is no such
  // stream, or a frame that is longer than any link's.
  Next Take(std::span<const uint8_t>* frame);

 private:
  std::vector<uint8_t> buffer_;  // Of a fixed size, made when first used.
  size_t begin_ = 0;
  size_t end_ = 0;
};

// What could not be written yet, at most kMaxBytes. Thread-compatible.
class FrameWriter {
 public:
  static constexpr size_t kMaxBytes = 512 << 10;

  // Writes the frame, or keeps what does not go now. False: there is no room,
  // the frame is lost. `*error` is set to an errno value when the socket is
  // broken.
  bool Send(int socket, std::span<const uint8_t> frame, int* error);
  // Writes what was kept. Returns 0, or an errno value when it is broken.
  int Flush(int socket);
  bool empty() const { return begin_ == kept_.size(); }

 private:
  std::vector<uint8_t> kept_;
  size_t begin_ = 0;
};

}  // namespace catnap::net

#endif  // CATNAP_LIB_NET_FRAME_STREAM_H_
