#ifndef CATNAP_IMAGE_H_
#define CATNAP_IMAGE_H_

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "catnap/call.h"
#include "catnap/export.h"
#include "catnap/network.h"

namespace catnap {

class Host;
namespace runtime {
class HostCore;
struct ImageRecord;
}  // namespace runtime

// Where an image's root file system comes from.
struct DirectorySource {
  std::filesystem::path root{};  // What is the caller's becomes root's.
};
struct TarSource {
  std::filesystem::path tar{};  // Plain, or compressed by gzip, xz or zstd.
};
struct OciSource {
  std::filesystem::path layout{};
};
struct DockerfileSource {
  std::filesystem::path context{}, dockerfile = "Dockerfile";
  std::string target{};
  std::map<std::string, std::string> build_args{};
  bool use_cache = true;
};

// Called at points of a life; one of the two.
struct Hook {
  std::string http_path{};
  std::vector<std::string> command{};
  Millis timeout{5'000};
};
struct Hooks {
  uint16_t port = 9000;
  std::optional<Hook> ready{}, validate{}, run{}, resume{}, suspend{},
      terminate{};
};

// When the application counts as started, if there is no ready hook. What is
// set is waited for in this order, all within `timeout`.
struct Ready {
  std::optional<uint16_t> port{};      // A TCP port that accepts connections.
  std::vector<std::string> command{};  // Run until it ends with 0.
  Millis delay{0};                     // May be 0.
  Millis timeout{30'000};
};

// The instruction set that guests are shown: what their CPU must have.
enum class CpuBaseline { kX86_64V2, kX86_64V3, kHost };

// What happens to a MicroVM when its application ends.
enum class OnAppExit { kTerminate, kKeepRunning };

// What to build. Options that this version of the library does not have yet
// are UNIMPLEMENTED by name when they are set: OciSource, DockerfileSource,
// bases, resolve_base, hooks.
struct ImageSpec {
  // [a-zA-Z0-9-_]{1,64}; each build makes the next version: "1.0", "2.0", ...
  std::string name{};
  std::variant<DirectorySource, TarSource, OciSource, DockerfileSource>
      source{};
  static ImageSpec FromDirectory(std::string name, std::filesystem::path root) {
    ImageSpec spec;
    spec.name = std::move(name);
    spec.source = DirectorySource{std::move(root)};
    return spec;
  }
  static ImageSpec FromTar(std::string name, std::filesystem::path tar) {
    ImageSpec spec;
    spec.name = std::move(name);
    spec.source = TarSource{std::move(tar)};
    return spec;
  }
  static ImageSpec FromOciLayout(std::string name,
                                 std::filesystem::path layout) {
    ImageSpec spec;
    spec.name = std::move(name);
    spec.source = OciSource{std::move(layout)};
    return spec;
  }
  static ImageSpec FromDockerfile(std::string name,
                                  std::filesystem::path context) {
    ImageSpec spec;
    spec.name = std::move(name);
    DockerfileSource source;
    source.context = std::move(context);
    spec.source = std::move(source);
    return spec;
  }
  std::map<std::string, std::filesystem::path> bases{};
  std::function<absl::StatusOr<std::filesystem::path>(std::string_view ref)>
      resolve_base{};
  uint64_t memory_bytes = 512ull << 20;  // 64 MiB to 64 GiB, whole MiB.
  int vcpus = 1;                         // 1 to 32.
  uint64_t disk_bytes = 8ull << 30;      // 1 GiB to 1 TiB, thin; whole MiB.
  int extra_disk_slots = 2;              // 0 to 8 disks that a launch attaches.
  CpuBaseline cpu_baseline = CpuBaseline::kX86_64V2;
  // The application: entrypoint and, behind it, command. Nothing at all: the
  // guest runs only its agent.
  std::vector<std::string> entrypoint{}, command{};
  std::map<std::string, std::string> env{};
  std::string workdir{}, user{}, description{};  // Empty: "/", root.
  Hooks hooks{};
  Ready ready{};
  OnAppExit on_app_exit = OnAppExit::kTerminate;
  NetworkPolicy build_egress = NetworkPolicy::PublicInternet();
  Labels labels{};
};

enum class BuildPhase {
  kResolving,
  kAssembling,
  kRunningSteps,
  kBooting,
  kStarting,
  kWaitingReady,
  // A copy of the guest runs, without network, until it has executed a program,
  // and once more after a sleep: what it touches is what guests of the image
  // have first (Prefetch::kHotSet).
  kTraining,
  kSnapshotting,
  kPublishing
};

// Hears of a build, on the executor, in order. Not called any more once
// Image::Build() has returned.
class BuildObserver {
 public:
  virtual ~BuildObserver() = default;
  virtual void OnPhase(BuildPhase /*phase*/, std::string_view /*detail*/) {}
  virtual void OnLog(std::string_view /*line*/) {}
  virtual void OnProgress(double /*fraction*/) {}
};

enum class ImageStatus { kActive, kInactive };

// A root file system and what runs in it: what MicroVM::Run() starts machines
// from. A handle, cheap to copy; the image itself is immutable and stays in
// HostOptions::image_dir. A default-constructed one names nothing.
//
// It has the disk, and the memory of a guest whose application has started:
// each MicroVM goes on from there.
//
// Thread-safe.
class CATNAP_EXPORT Image {
 public:
  Image();
  ~Image();
  Image(const Image& other);
  Image& operator=(const Image& other);
  Image(Image&& other) noexcept;
  Image& operator=(Image&& other) noexcept;

  // Makes the next version of spec.name: an ext4 file system of the source, as
  // an ordinary user and without mounts, by the helper program catnap-rootfs;
  // then a guest that boots it and starts the application (or only its agent)
  // until it is ready, and whose memory is stored. Blocks: seconds for each
  // 100 MB, and the start. Cancelled or failed it leaves nothing.
  // Errors:
  //   INVALID_ARGUMENT     an option, by name; or what the source contains
  //   NOT_FOUND            the source does not exist
  //   PERMISSION_DENIED    a file of the source cannot be read
  //   DATA_LOSS            the archive is damaged
  //   RESOURCE_EXHAUSTED   the host's disk, or disk_bytes, is full
  //   FAILED_PRECONDITION  the helper is not installed; this machine cannot run
  //                        Linux guests; the application could not be started,
  //                        ended, or was not ready in time
  //   UNIMPLEMENTED        an option this version does not have, by name
  static absl::StatusOr<Image> Build(Host& host, const ImageSpec& spec,
                                     BuildObserver* observer = nullptr,
                                     CallOptions call = {});

  // The newest version of spec.name that was made by this call from the same
  // recipe: spec, content of the source, guest kernel and agent; else builds
  // it. Callers at once, in other processes too, share one build. Reads all of
  // the source: about a second for each 300 MB. Else as Build().
  static absl::StatusOr<Image> GetOrBuild(Host& host, const ImageSpec& spec,
                                          BuildObserver* observer = nullptr,
                                          CallOptions call = {});

  const std::string& name() const;     // Empty for an empty handle.
  const std::string& version() const;  // As above.
  ImageStatus status() const;
  uint64_t memory_bytes() const;  // Of the guests; 0 for an empty handle.
  uint64_t stored_bytes() const;  // What it occupies on disk.
  // Removes it from the disk. OK when it is gone already.
  // Errors: FAILED_PRECONDITION, an empty handle; with kInUse, a MicroVM that
  // has not ended, awake or asleep, or a snapshot comes from it. (Those of
  // other directories are seen while a Host of theirs is open.)
  absl::Status Delete() const;

 private:
  friend class runtime::HostCore;
  explicit Image(std::shared_ptr<const runtime::ImageRecord> record);
  std::shared_ptr<const runtime::ImageRecord> record_;  // Null: empty.
};

}  // namespace catnap

#endif  // CATNAP_IMAGE_H_
