// Stored records of MicroVMs and snapshots: whatever is read is valid, and
// reads the same when it is written again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "fuzz/fuzz_target.h"
#include "runtime/snapshot_record.h"
#include "runtime/vm_record.h"

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
  if (const auto record = catnap::runtime::DecodeVmRecord(bytes); record.ok()) {
    const auto again = catnap::runtime::EncodeVmRecord(*record);
    if (again.ok()) {  // Else above the limit when written plainly.
      const auto back = catnap::runtime::DecodeVmRecord(*again);
      FUZZ_CHECK(back.ok());
      FUZZ_CHECK(back->options.id == record->options.id);
      FUZZ_CHECK(back->options.env == record->options.env);
      FUZZ_CHECK(back->options.labels == record->options.labels);
      FUZZ_CHECK(back->options.egress == record->options.egress);
      FUZZ_CHECK(back->snapshot == record->snapshot);
      const auto third = catnap::runtime::EncodeVmRecord(*back);
      FUZZ_CHECK(third.ok() && *third == *again);
    }
  }
  if (const auto record = catnap::runtime::DecodeSnapshotRecord(bytes);
      record.ok()) {
    const auto again = catnap::runtime::EncodeSnapshotRecord(*record);
    FUZZ_CHECK(again.ok());
    const auto back = catnap::runtime::DecodeSnapshotRecord(*again);
    FUZZ_CHECK(back.ok() && back->labels == record->labels);
  }
  return 0;
}
