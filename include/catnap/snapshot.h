#ifndef CATNAP_SNAPSHOT_H_
#define CATNAP_SNAPSHOT_H_

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/call.h"
#include "catnap/export.h"
#include "catnap/image.h"

namespace catnap {

class Host;
namespace runtime {
class HostCore;
class SnapshotData;
}  // namespace runtime

// A MicroVM's memory, disk and machine at one instant, from MicroVM::
// TakeSnapshot(): what MicroVM::Restore() starts machines from. A handle, cheap
// to copy; the snapshot itself is immutable. One with a name stays, over
// restarts of the host process too when it is stored, until Delete(). One
// without goes with its last handle, or with its Host.
//
// Errors of all calls: FAILED_PRECONDITION, an empty handle or a deleted
// snapshot; CANCELLED with kHostClosed. Thread-safe. Handles may outlive the
// Host; what only tells about the snapshot still answers.
class CATNAP_EXPORT Snapshot {
 public:
  Snapshot();
  ~Snapshot();
  Snapshot(const Snapshot& other);
  Snapshot& operator=(const Snapshot& other);
  Snapshot(Snapshot&& other) noexcept;
  Snapshot& operator=(Snapshot&& other) noexcept;
  explicit operator bool() const { return data_ != nullptr; }

  const std::string& id() const;     // Empty for an empty handle.
  const std::string& name() const;   // Empty: it has none.
  uint64_t memory_bytes() const;     // Of its guest's RAM.
  uint64_t own_bytes() const;        // Of that, what its image does not share.
  uint64_t stored_bytes() const;     // On disk, its own; 0: in memory only.
  CpuBaseline cpu_baseline() const;  // What a CPU must have to run it.

  // Writes all that is needed to load it elsewhere, its image too, into `dir`,
  // which must not exist; it appears whole or not at all. Blocks on the disk;
  // files are cloned where the file system can.
  // Errors: ALREADY_EXISTS; NOT_FOUND, the folder of `dir`; RESOURCE_EXHAUSTED,
  // the disk; CANCELLED, DEADLINE_EXCEEDED: nothing is left.
  absl::Status Save(const std::filesystem::path& dir,
                    CallOptions call = {}) const;
  // Reads what Save() wrote into the Host's directories; `dir` is not needed
  // afterwards. Its image becomes one of this Host, unless it is there. The
  // memory is checked when it is restored, or by Verify().
  // Errors: NOT_FOUND; DATA_LOSS; UNIMPLEMENTED, a newer format;
  // ALREADY_EXISTS, a snapshot has its name; RESOURCE_EXHAUSTED, the disk.
  static absl::StatusOr<Snapshot> Load(Host& host,
                                       const std::filesystem::path& dir,
                                       CallOptions call = {});
  // Reads and checks every byte of what is stored. OK for one in memory.
  // Errors: DATA_LOSS, names what is damaged.
  absl::Status Verify(CallOptions call = {}) const;
  // Takes its name and its storage away, now or when what is being restored
  // from it runs. MicroVMs that were restored go on. Idempotent.
  absl::Status Delete() const;

 private:
  friend class runtime::HostCore;
  explicit Snapshot(std::shared_ptr<runtime::SnapshotData> data);
  std::shared_ptr<runtime::SnapshotData> data_;  // Null: empty.
};

}  // namespace catnap

#endif  // CATNAP_SNAPSHOT_H_
