#include <algorithm>
#include <vector>

#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "net/frame.h"
#include "net/frame_stream.h"
#include "net/wire.h"

// A helper's stream of frames, in parts of any size: the first byte is the size
// of the parts. However it is cut, the same frames come out.

namespace catnap::net {
namespace {

// Every frame of `stream`, in one go.
std::vector<std::vector<uint8_t>> FramesOf(std::span<const uint8_t> stream) {
  std::vector<std::vector<uint8_t>> frames;
  while (stream.size() >= 4) {
    const size_t length = Load32(stream, 0);
    if (length > kMaxFrameBytes || length > stream.size() - 4) break;
    const auto frame = stream.subspan(4, length);
    frames.emplace_back(frame.begin(), frame.end());
    stream = stream.subspan(4 + length);
  }
  return frames;
}

}  // namespace
}  // namespace catnap::net

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace catnap::net;  // NOLINT(google-build-using-namespace)
  catnap::fuzz::FuzzInput input(data, size);
  const size_t part = size_t{input.Integer<uint8_t>()} + 1;
  const auto stream = input.Rest();
  const auto wanted = FramesOf(stream);
  FrameReader reader;
  size_t at = 0;
  size_t frames = 0;
  for (;;) {
    std::span<const uint8_t> frame;
    const FrameReader::Next next = reader.Take(&frame);
    if (next == FrameReader::Next::kBroken) break;
    if (next == FrameReader::Next::kFrame) {
      FUZZ_CHECK(frames < wanted.size());
      FUZZ_CHECK(std::equal(frame.begin(), frame.end(), wanted[frames].begin(),
                            wanted[frames].end()));
      ++frames;
      continue;
    }
    if (at == stream.size()) break;
    const auto room = reader.Room();
    FUZZ_CHECK(!room.empty());
    const size_t count = std::min({part, room.size(), stream.size() - at});
    std::copy_n(stream.begin() + static_cast<std::ptrdiff_t>(at), count,
                room.begin());
    reader.Filled(count);
    at += count;
  }
  FUZZ_CHECK(frames == wanted.size());
  return 0;
}
