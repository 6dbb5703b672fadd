#ifndef CATNAP_LIB_RUNTIME_VM_STORE_H_
#define CATNAP_LIB_RUNTIME_VM_STORE_H_

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "runtime/vm_record.h"

namespace catnap::runtime {

// What a VM's directory says after its process died.
struct StoredVm {
  VmRecord record;
  bool ran = false;  // Since its newest snapshot, or without one.
};

// The directory of one MicroVM; VM_FORMAT.md says what is in it. After a crash
// at any point it reads as before or as after the call that was interrupted.
//
// Thread-safe, but snapshots are taken one at a time. Blocks on the disk.
class VmStore {
 public:
  // `durable` false: no record, and nothing is synced.
  VmStore(std::filesystem::path directory, bool durable)
      : directory_(std::move(directory)), durable_(durable) {}
  VmStore(const VmStore&) = delete;
  VmStore& operator=(const VmStore&) = delete;

  // Reads a directory of a process that ended, and removes what was left
  // unfinished in it. None: there never was a whole MicroVM.
  // Errors: as DecodeVmRecord(); DATA_LOSS, the snapshot is missing.
  static absl::StatusOr<std::optional<StoredVm>> Read(
      const std::filesystem::path& directory);

  const std::filesystem::path& directory() const { return directory_; }
  bool durable() const { return durable_; }
  // A running guest's own files.
  std::filesystem::path live() const { return directory_ / "live"; }
  std::filesystem::path SnapshotPath(uint64_t number) const;

  // Makes the directory, with live() in it. Before this or Adopt(), Remove()
  // removes nothing.
  // Errors: ALREADY_EXISTS, there is a record.
  absl::Status Create();
  void Adopt() { owned_ = true; }
  // Makes live() anew, empty.
  absl::Status ClearLive();

  // Writes the record. `sync` false: it survives the process at once, the
  // machine after Sync().
  absl::Status Write(const VmRecord& record, bool sync);
  absl::Status Sync();

  // A new, empty directory for snapshot `number`.
  absl::StatusOr<std::filesystem::path> BeginSnapshot(uint64_t number);
  void DropSnapshot(uint64_t number);
  // Makes it the one that `record` names; the older ones go. After an error
  // either may be what is found after a crash: the guest, which is to run on,
  // needs MarkAwake(), and a later snapshot another number.
  absl::Status PublishSnapshot(const VmRecord& record);
  // Where snapshot `number` is, published or not.
  std::filesystem::path FindSnapshot(uint64_t number) const;

  // Says that the guest ran on from snapshot `number`: to be said before it
  // does. Quick: survives the process at once, the machine after Sync().
  absl::Status MarkAwake(uint64_t number);
  absl::Status ClearAwake(uint64_t number);

  // Removes all of it.
  absl::Status Remove();

 private:
  std::filesystem::path NewPath(uint64_t number) const;
  std::filesystem::path AwakePath(uint64_t number) const;

  const std::filesystem::path directory_;
  const bool durable_;
  std::atomic<bool> owned_{false};
  base::Mutex mutex_;  // Of what is written.
};

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_VM_STORE_H_
