#include "virtio/chain.h"

#include <algorithm>
#include <cstring>

#include "base/checked.h"

namespace catnap::virtio {
namespace {

// Calls `use` with each run of host bytes in [offset, offset + length) of
// `pieces`. Returns how many bytes those were.
template <typename Use>
size_t ForEachRun(std::span<const iovec> pieces, uint64_t offset,
                  uint64_t length, Use use) {
  size_t done = 0;
  for (const iovec& piece : pieces) {
    if (done == length) break;
    if (offset >= piece.iov_len) {
      offset -= piece.iov_len;
      continue;
    }
    const size_t size = static_cast<size_t>(
        std::min<uint64_t>(piece.iov_len - offset, length - done));
    use(static_cast<uint8_t*>(piece.iov_base) + offset, size);
    done += size;
    offset = 0;
  }
  return done;
}

}  // namespace

size_t Chain::CopyOut(uint64_t offset, std::span<uint8_t> into) const {
  uint8_t* to = into.data();
  return ForEachRun(readable(), offset, into.size(),
                    [&](const uint8_t* from, size_t size) {
                      std::memcpy(to, from, size);
                      to += size;
                    });
}

size_t Chain::CopyIn(uint64_t offset, std::span<const uint8_t> from) const {
  const uint8_t* next = from.data();
  return ForEachRun(writable(), offset, from.size(),
                    [&](uint8_t* to, size_t size) {
                      std::memcpy(to, next, size);
                      next += size;
                    });
}

void Chain::Clear(uint16_t head) {
  head_ = head;
  pieces_.clear();
  readable_count_ = 0;
  readable_bytes_ = 0;
  writable_bytes_ = 0;
}

bool Chain::Add(std::span<uint8_t> bytes, bool writable) {
  if (bytes.empty()) return true;
  if (pieces_.size() == kMaxPieces) return false;
  if (!writable && readable_count_ != pieces_.size()) return false;
  const auto size = base::CheckedCast<uint32_t>(bytes.size());
  if (!size.has_value()) return false;
  uint32_t& total = writable ? writable_bytes_ : readable_bytes_;
  const auto sum = base::CheckedAdd<uint32_t>(total, *size);
  if (!sum.has_value()) return false;
  total = *sum;
  pieces_.push_back({.iov_base = bytes.data(), .iov_len = bytes.size()});
  if (!writable) ++readable_count_;
  return true;
}

size_t AppendPart(std::span<const iovec> pieces, uint64_t offset,
                  uint64_t length, std::vector<iovec>* part) {
  return ForEachRun(pieces, offset, length,
                    [part](uint8_t* bytes, size_t size) {
                      part->push_back({.iov_base = bytes, .iov_len = size});
                    });
}

}  // namespace catnap::virtio
