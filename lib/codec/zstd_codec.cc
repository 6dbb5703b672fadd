#include "codec/zstd_codec.h"

#include <zstd.h>
#include <zstd_errors.h>

#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::codec {
namespace {

absl::Status NoMemory(const char* what) {
  return Error(absl::StatusCode::kResourceExhausted, "no memory for a zstd {}",
               what);
}

// What zstd's error means for who reads a frame.
absl::Status ReadError(size_t result) {
  switch (ZSTD_getErrorCode(result)) {
    case ZSTD_error_memory_allocation:
      return NoMemory("decompression");
    case ZSTD_error_frameParameter_windowTooLarge:
      return Error(absl::StatusCode::kResourceExhausted,
                   "zstd frame needs a window above 2^{} bytes",
                   ZstdDecompressor::kMaxWindowLog);
    default:
      return Error(absl::StatusCode::kDataLoss, "bad zstd frame: {}",
                   ZSTD_getErrorName(result));
  }
}

// Looks at what the frame says of itself, before any of it is decoded.
absl::Status CheckHeader(std::span<const uint8_t> frame, size_t limit,
                         absl::StatusCode too_large) {
  // Skippable frames have other numbers: they hold no content, and zstd would
  // read on behind them.
  if (frame.size() < sizeof(uint32_t) ||
      base::LoadLe<uint32_t>(frame.data()) != ZSTD_MAGICNUMBER) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} bytes that are not a zstd frame", frame.size());
  }
  const auto declared = ZSTD_getFrameContentSize(frame.data(), frame.size());
  if (declared == ZSTD_CONTENTSIZE_UNKNOWN) return absl::OkStatus();
  if (declared == ZSTD_CONTENTSIZE_ERROR) {
    return absl::DataLossError("bad zstd frame: its header is cut or wrong");
  }
  if (declared > limit) {
    return Error(too_large, "zstd frame declares {} bytes, must be at most {}",
                 declared, limit);
  }
  return absl::OkStatus();
}

}  // namespace

void ZstdCompressor::Free::operator()(ZSTD_CCtx_s* context) const {
  ZSTD_freeCCtx(context);
}

absl::StatusOr<ZstdCompressor> ZstdCompressor::Create(int level) {
  if (level < kMinLevel || level > kMaxLevel) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "compression level is {}, must be {} to {}", level, kMinLevel,
                 kMaxLevel);
  }
  Context context(ZSTD_createCCtx());
  if (context == nullptr) return NoMemory("compressor");
  const size_t result =
      ZSTD_CCtx_setParameter(context.get(), ZSTD_c_compressionLevel, level);
  if (ZSTD_isError(result) != 0) {
    return Error(absl::StatusCode::kInternal, "set compression level {}: {}",
                 level, ZSTD_getErrorName(result));
  }
  return ZstdCompressor(std::move(context));
}

size_t ZstdCompressor::Bound(size_t size) { return ZSTD_compressBound(size); }

absl::StatusOr<size_t> ZstdCompressor::Compress(
    std::span<const uint8_t> content, std::span<uint8_t> into) {
  const size_t result = ZSTD_compress2(context_.get(), into.data(), into.size(),
                                       content.data(), content.size());
  if (ZSTD_isError(result) == 0) return result;
  switch (ZSTD_getErrorCode(result)) {
    case ZSTD_error_memory_allocation:
      return NoMemory("compression");
    case ZSTD_error_dstSize_tooSmall:
      return Error(absl::StatusCode::kResourceExhausted,
                   "zstd frame of {} bytes of content needs more than {} bytes",
                   content.size(), into.size());
    default:
      return Error(absl::StatusCode::kInternal, "zstd compression: {}",
                   ZSTD_getErrorName(result));
  }
}

size_t ZstdCompressor::memory_bytes() const {
  return ZSTD_sizeof_CCtx(context_.get());
}

void ZstdDecompressor::Free::operator()(ZSTD_DCtx_s* context) const {
  ZSTD_freeDCtx(context);
}

absl::StatusOr<ZstdDecompressor> ZstdDecompressor::Create() {
  Context context(ZSTD_createDCtx());
  if (context == nullptr) return NoMemory("decompressor");
  const size_t result =
      ZSTD_DCtx_setParameter(context.get(), ZSTD_d_windowLogMax, kMaxWindowLog);
  if (ZSTD_isError(result) != 0) {
    return Error(absl::StatusCode::kInternal, "set window limit 2^{}: {}",
                 kMaxWindowLog, ZSTD_getErrorName(result));
  }
  return ZstdDecompressor(std::move(context));
}

absl::StatusOr<size_t> ZstdDecompressor::Read(std::span<const uint8_t> frame,
                                              std::span<uint8_t> into,
                                              absl::StatusCode too_large) {
  CATNAP_RETURN_IF_ERROR(CheckHeader(frame, into.size(), too_large));
  // The last call may have ended in the middle of its frame.
  ZSTD_DCtx_reset(context_.get(), ZSTD_reset_session_only);
  ZSTD_inBuffer in = {frame.data(), frame.size(), 0};
  ZSTD_outBuffer out = {into.data(), into.size(), 0};
  // A frame that declares its size is decoded in one call, straight into
  // `into`. One that does not goes through a window; each call takes or gives
  // something, or is the last.
  size_t left = 1;  // 0: the frame has ended.
  while (left != 0) {
    const size_t taken_before = in.pos;
    const size_t given_before = out.pos;
    left = ZSTD_decompressStream(context_.get(), &out, &in);
    if (ZSTD_isError(left) != 0) return ReadError(left);
    const bool stuck = in.pos == taken_before && out.pos == given_before;
    if (left != 0 && stuck) break;
  }
  if (left != 0 && out.pos == out.size) {
    // `into` is full. Content that waits behind it comes out now.
    uint8_t more = 0;
    ZSTD_outBuffer rest = {&more, sizeof(more), 0};
    left = ZSTD_decompressStream(context_.get(), &rest, &in);
    if (ZSTD_isError(left) != 0) return ReadError(left);
    if (rest.pos != 0) {
      return Error(too_large, "zstd frame holds more than {} bytes",
                   into.size());
    }
  }
  if (left != 0) {
    return Error(absl::StatusCode::kDataLoss,
                 "bad zstd frame: cut after {} bytes", frame.size());
  }
  if (in.pos != in.size) {
    return Error(absl::StatusCode::kDataLoss, "{} bytes behind a zstd frame",
                 in.size - in.pos);
  }
  return out.pos;
}

absl::StatusOr<size_t> ZstdDecompressor::Decompress(
    std::span<const uint8_t> frame, std::span<uint8_t> into) {
  return Read(frame, into, absl::StatusCode::kResourceExhausted);
}

absl::Status ZstdDecompressor::DecompressExact(std::span<const uint8_t> frame,
                                               std::span<uint8_t> into) {
  const auto size = Read(frame, into, absl::StatusCode::kDataLoss);
  if (!size.ok()) return size.status();
  if (*size != into.size()) {
    return Error(absl::StatusCode::kDataLoss,
                 "zstd frame holds {} bytes, must hold {}", *size, into.size());
  }
  return absl::OkStatus();
}

size_t ZstdDecompressor::memory_bytes() const {
  return ZSTD_sizeof_DCtx(context_.get());
}

}  // namespace catnap::codec
