#ifndef CATNAP_LIB_RUNTIME_IMAGE_RECORD_H_
#define CATNAP_LIB_RUNTIME_IMAGE_RECORD_H_

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/image.h"
#include "disk/block_io.h"

namespace catnap::runtime {

// One version of an image, as it is stored. Immutable once made.
struct ImageRecord {
  std::string name{};
  uint32_t major = 0;  // The version is "major.0".
  uint64_t memory_bytes = 0;
  uint32_t vcpus = 0;
  uint64_t disk_bytes = 0;
  uint32_t extra_disk_slots = 0;
  CpuBaseline cpu_baseline = CpuBaseline::kX86_64V2;
  std::vector<std::string> application{};  // Entrypoint, then command.
  std::map<std::string, std::string> env{};
  std::string workdir{}, user{}, description{};
  Ready ready{};
  OnAppExit on_app_exit = OnAppExit::kTerminate;
  Labels labels{};
  disk::DiskId disk_id{};  // Of the root disk.
  // There is a state of a guest whose application has started.
  bool has_guest = false;
  // What GetOrBuild() knows it by; empty: it was made by Build().
  std::vector<uint8_t> recipe{};

  // Not stored: where it was found.
  std::filesystem::path directory{};
  uint64_t stored_bytes = 0;
  std::string version{};  // Text of `major`.
};

// Who has one needs the image's files: it is not deleted meanwhile.
using ImageUse = std::shared_ptr<const void>;

inline constexpr size_t kMaxImageRecordBytes = 1 << 20;
inline constexpr char kImageRecordName[] = "image.catnap";
inline constexpr char kRootDiskName[] = "root.ext4";
inline constexpr char kImageGuestName[] = "guest";
inline constexpr size_t kRecipeBytes = 32;

// The bytes of image.catnap; IMAGE_FORMAT.md has the layout.
// Errors: INVALID_ARGUMENT, more than kMaxImageRecordBytes.
absl::StatusOr<std::vector<uint8_t>> EncodeImageRecord(
    const ImageRecord& record);

// Reads them, whoever wrote them. What it returns is valid as a spec is.
// Errors: DATA_LOSS; UNIMPLEMENTED, a newer format.
absl::StatusOr<ImageRecord> DecodeImageRecord(std::span<const uint8_t> bytes);

// Whether the options of `spec` can be built; names the first that cannot.
// Errors: INVALID_ARGUMENT, UNIMPLEMENTED.
absl::Status CheckImageSpec(const ImageSpec& spec);
// What the spec says of a record.
ImageRecord RecordOf(const ImageSpec& spec);

// [a-zA-Z0-9-_]{1,64}. Errors: INVALID_ARGUMENT, names `option`.
absl::Status CheckName(const std::string& option, const std::string& name);
absl::Status CheckLabels(const Labels& labels);
// Names without '=' and zeros, at most 1,024 variables and 128 KiB.
absl::Status CheckEnvironment(const std::string& option,
                              const std::map<std::string, std::string>& env);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_IMAGE_RECORD_H_
