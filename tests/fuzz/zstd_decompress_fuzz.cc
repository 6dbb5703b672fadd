#include <algorithm>
#include <vector>

#include "codec/zstd_codec.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

// Frames from anywhere, with contexts that live over all inputs as they do in
// the library: no frame may spoil the next one.

namespace catnap::codec {
namespace {

ZstdDecompressor* Decompressor() {
  static auto decompressor = ZstdDecompressor::Create();
  FUZZ_CHECK(decompressor.ok());
  return &*decompressor;
}

ZstdCompressor* Compressor() {
  static auto compressor = ZstdCompressor::Create(1);
  FUZZ_CHECK(compressor.ok());
  return &*compressor;
}

// What stands behind the output, to see that nothing is written there.
constexpr uint8_t kGuard = 0xa5;
constexpr size_t kGuardBytes = 64;

void Read(std::span<const uint8_t> frame, size_t room) {
  std::vector<uint8_t> out(room + kGuardBytes, kGuard);
  const auto into = std::span(out).first(room);
  const auto size = Decompressor()->Decompress(frame, into);
  FUZZ_CHECK(std::all_of(out.end() - kGuardBytes, out.end(),
                         [](uint8_t byte) { return byte == kGuard; }));
  FUZZ_CHECK(Decompressor()->memory_bytes() <=
             ZstdDecompressor::kMaxMemoryBytes);
  const bool exact = Decompressor()->DecompressExact(frame, into).ok();
  FUZZ_CHECK(exact == (size.ok() && *size == room));
}

void RoundTrip(std::span<const uint8_t> content) {
  std::vector<uint8_t> frame(ZstdCompressor::Bound(content.size()));
  const auto size = Compressor()->Compress(content, frame);
  FUZZ_CHECK(size.ok());
  std::vector<uint8_t> out(content.size());
  FUZZ_CHECK(
      Decompressor()->DecompressExact(std::span(frame).first(*size), out).ok());
  FUZZ_CHECK(std::equal(out.begin(), out.end(), content.begin()));
}

}  // namespace
}  // namespace catnap::codec

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::fuzz::FuzzInput input(data, size);
  const auto room = input.Integer<uint16_t>();
  const auto frame = input.Rest();
  catnap::codec::Read(frame, room);
  catnap::codec::RoundTrip(frame);
  return 0;
}
