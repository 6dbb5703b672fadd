// Stored records of images: whatever is read is valid, and reads the same
// when it is written again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "fuzz/fuzz_target.h"
#include "runtime/image_record.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kHeader = 16;
  constexpr size_t kCrcAt = 12;
  std::vector<uint8_t> bytes(data, data + size);
  // Behind a right checksum there is more to find.
  if (size >= kHeader && (size & 1) == 0) {
    catnap::base::StoreLe(
        &bytes[kCrcAt],
        catnap::base::Crc32c(std::span(bytes).subspan(kHeader)));
  }
  const auto record = catnap::runtime::DecodeImageRecord(bytes);
  if (!record.ok()) return 0;
  const auto again = catnap::runtime::EncodeImageRecord(*record);
  if (!again.ok()) return 0;  // Above the limit when written plainly.
  const auto back = catnap::runtime::DecodeImageRecord(*again);
  if (!back.ok() || back->name != record->name || back->env != record->env ||
      back->application != record->application ||
      back->labels != record->labels) {
    std::abort();
  }
  return 0;
}
