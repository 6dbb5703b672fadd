#ifndef CATNAP_LIB_VMM_PERSIST_H_
#define CATNAP_LIB_VMM_PERSIST_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "state/decoder.h"
#include "state/encoder.h"
#include "state/saved_section.h"

// What a saved machine consists of; Machine::Save() and a Machine::Launch()
// from what it returned are in persist.cc.
namespace catnap::vmm {

struct SavedDevice {
  uint32_t page = 0;
  uint32_t device_id = 0;  // virtio::DeviceId.

  friend bool operator==(const SavedDevice&, const SavedDevice&) = default;
};

// What the machine was built of; the same must be there to load it.
struct SavedMachine {
  uint64_t memory_bytes = 0;
  uint32_t vcpus = 0;
  uint32_t device_pages = 0;
  std::vector<SavedDevice> devices;  // By page.

  friend bool operator==(const SavedMachine&, const SavedMachine&) = default;
};

void EncodeMachine(const SavedMachine& machine, state::StateEncoder& out);
// From hostile bytes. Errors: DATA_LOSS.
absl::StatusOr<SavedMachine> DecodeMachine(state::StateDecoder in);

// The shape of the machine, without looking at anything else: for who has to
// make a shell that fits.
// Errors: DATA_LOSS; UNIMPLEMENTED, a section that is needed is not known.
absl::StatusOr<SavedMachine> ReadSavedMachine(
    std::span<const state::SavedSection> sections);

// Errors: UNIMPLEMENTED, a section that is needed is not known to this library
// or is of a newer version; DATA_LOSS, a section is there twice.
absl::Status CheckSections(std::span<const state::SavedSection> sections);

}  // namespace catnap::vmm

#endif  // CATNAP_LIB_VMM_PERSIST_H_
