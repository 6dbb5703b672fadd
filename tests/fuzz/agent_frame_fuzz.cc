#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "agent/frame.h"
#include "fuzz/fuzz_target.h"

// The bytes of a connection, cut in two ways: the same frames come out, no body
// is above its bound, and what is kept of a frame that is not whole is no more
// than what came in.
namespace catnap::agent {
namespace {

std::vector<uint8_t> Replay(std::span<const uint8_t> bytes, size_t cut,
                            bool* failed) {
  FrameReader reader;
  std::vector<uint8_t> out;
  while (!bytes.empty() && reader.error() == nullptr) {
    auto piece = bytes.first(std::min(cut, bytes.size()));
    bytes = bytes.subspan(piece.size());
    while (const auto frame = reader.Next(&piece)) {
      FUZZ_CHECK(frame->body.size() <= kMaxBodyBytes);
      FUZZ_CHECK(frame->channel < kMaxChannels);
      AppendFrame(*frame, &out);
    }
    FUZZ_CHECK(reader.error() != nullptr || piece.empty());
    FUZZ_CHECK(reader.buffered_bytes() <= kHeaderBytes + kMaxBodyBytes);
  }
  *failed = reader.error() != nullptr;
  return out;
}

}  // namespace
}  // namespace catnap::agent

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const uint8_t> bytes(data + 1, size - 1);
  bool failed_whole = false;
  bool failed_cut = false;
  const auto whole = catnap::agent::Replay(bytes, size, &failed_whole);
  const auto cut = catnap::agent::Replay(bytes, data[0] + 1u, &failed_cut);
  FUZZ_CHECK(whole == cut);
  FUZZ_CHECK(failed_whole == failed_cut);
  // What was read is written as the same bytes.
  FUZZ_CHECK(whole.size() <= bytes.size());
  FUZZ_CHECK(std::equal(whole.begin(), whole.end(), bytes.begin()));
  return 0;
}
