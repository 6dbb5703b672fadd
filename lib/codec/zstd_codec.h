#ifndef CATNAP_LIB_CODEC_ZSTD_CODEC_H_
#define CATNAP_LIB_CODEC_ZSTD_CODEC_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

// zstd's contexts, so that its header stays in this folder.
struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace catnap::codec {

// Makes zstd frames, each by itself, that declare their content's size and
// have no checksum of their own: whoever stores them covers the stored bytes.
// Keeps its working memory from frame to frame. Thread-compatible.
class ZstdCompressor {
 public:
  static constexpr int kMinLevel = -7;
  static constexpr int kMaxLevel = 19;

  // `level` is kMinLevel (fastest) to kMaxLevel (smallest); 0 is zstd's own
  // default, 3.
  // Errors: INVALID_ARGUMENT (level), RESOURCE_EXHAUSTED (memory).
  static absl::StatusOr<ZstdCompressor> Create(int level);

  // Bytes that always suffice for a frame of `size` bytes of content.
  static size_t Bound(size_t size);

  // Writes one frame and returns its size.
  // Errors: RESOURCE_EXHAUSTED, `into` is too small (never with Bound()), or
  // there is no memory; `into` is then unspecified.
  absl::StatusOr<size_t> Compress(std::span<const uint8_t> content,
                                  std::span<uint8_t> into);

  // What the context holds now.
  size_t memory_bytes() const;

 private:
  struct Free {
    void operator()(ZSTD_CCtx_s* context) const;
  };
  using Context = std::unique_ptr<ZSTD_CCtx_s, Free>;

  explicit ZstdCompressor(Context context) : context_(std::move(context)) {}

  Context context_;
};

// Reads zstd frames that may be hostile. Keeps its working memory from frame
// to frame, also after an error, and never has more than kMaxMemoryBytes,
// whatever a frame asks for. Thread-compatible.
class ZstdDecompressor {
 public:
  // Frames that declare a larger window are refused, unless they also declare
  // their size and it fits the output: those need no window.
  static constexpr int kMaxWindowLog = 23;
  // The window, and what zstd needs beside it.
  static constexpr size_t kMaxMemoryBytes =
      (size_t{1} << kMaxWindowLog) + (1 << 20);

  // Errors: RESOURCE_EXHAUSTED (memory).
  static absl::StatusOr<ZstdDecompressor> Create();

  // Reads `frame`, exactly one frame, and returns the size of its content, at
  // most into.size(). On an error `into` is unspecified.
  // Errors:
  //   DATA_LOSS           not a frame, corrupt, cut, or bytes behind it
  //   RESOURCE_EXHAUSTED  the content is larger than `into`, the window than
  //                       2^kMaxWindowLog, or there is no memory
  absl::StatusOr<size_t> Decompress(std::span<const uint8_t> frame,
                                    std::span<uint8_t> into);

  // The same for content that must fill `into` exactly; another size is
  // DATA_LOSS.
  absl::Status DecompressExact(std::span<const uint8_t> frame,
                               std::span<uint8_t> into);

  // What the context holds now.
  size_t memory_bytes() const;

 private:
  struct Free {
    void operator()(ZSTD_DCtx_s* context) const;
  };
  using Context = std::unique_ptr<ZSTD_DCtx_s, Free>;

  explicit ZstdDecompressor(Context context) : context_(std::move(context)) {}
  // `too_large` is the code for content above into.size().
  absl::StatusOr<size_t> Read(std::span<const uint8_t> frame,
                              std::span<uint8_t> into,
                              absl::StatusCode too_large);

  Context context_;
};

}  // namespace catnap::codec

#endif  // CATNAP_LIB_CODEC_ZSTD_CODEC_H_
