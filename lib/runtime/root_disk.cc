#include "runtime/root_disk.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/checked.h"
#include "base/log_text.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "io/file.h"
#include "runtime/tool_process.h"

namespace catnap::runtime {
namespace {

constexpr const char* kToolName = "catnap-rootfs";
constexpr uint64_t kBlockBytes = 4096;

// The descriptors of the source and the image in the tool.
constexpr int kSourceFd = 3;
constexpr int kImageFd = 4;

// How it ends, as lib/rootfs/exit_code.h has it.
constexpr int kDone = 0;
constexpr int kUsage = 2;
constexpr int kBadSource = 3;
constexpr int kNoSpace = 4;
constexpr int kDamagedSource = 6;
// What it prints last when all went well.
constexpr std::string_view kDoneText = "done\n";

absl::StatusOr<std::string> FindTool() {
  // Not of a program with more rights than who started it.
  std::vector<std::string> folders;
  if (const char* set = ::secure_getenv("CATNAP_LIBEXEC_DIR");
      set != nullptr && *set != '\0') {
    folders = {set};
  } else {
    folders = {CATNAP_INSTALLED_LIBEXEC_DIR, CATNAP_BUILT_LIBEXEC_DIR};
  }
  for (const std::string& folder : folders) {
    std::string path = folder + "/" + kToolName;
    if (::access(path.c_str(), X_OK) == 0) return path;
  }
  return Error(
      absl::StatusCode::kFailedPrecondition,
      "there is no program {} in {}; build and install the library with "
      "CATNAP_ROOTFS_TOOL=ON, or set CATNAP_LIBEXEC_DIR to its folder",
      kToolName, folders.front());
}

absl::StatusOr<base::UniqueFd> OpenSource(const RootSource& source) {
  const int flags =
      source.kind == RootSource::Kind::kDirectory ? O_DIRECTORY : 0;
  // A FIFO would keep this thread until somebody writes.
  base::UniqueFd fd(
      ::open(source.path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC | flags));
  if (fd.valid()) return fd;
  const int error = errno;
  const std::string what =
      fmt::format("the source of a root disk, {}", source.path.string());
  // The caller's path is to blame for other errors.
  if (error == EMFILE || error == ENFILE || error == ENOMEM) {
    return ErrnoStatus(error, what);
  }
  return Error(error == ENOENT ? absl::StatusCode::kNotFound
                               : absl::StatusCode::kInvalidArgument,
               "{}: {}", what, ErrnoText(error));
}

std::vector<std::string> ToolArguments(const RootSource& source,
                                       uint64_t disk_bytes,
                                       const RootLimits& limits) {
  const bool is_directory = source.kind == RootSource::Kind::kDirectory;
  std::vector<std::string> arguments = {kToolName,
                                        "--die-with-parent",
                                        "--output",
                                        fmt::format("fd:{}", kImageFd),
                                        "--bytes",
                                        std::to_string(disk_bytes),
                                        is_directory ? "--directory" : "--tar",
                                        fmt::format("fd:{}", kSourceFd)};
  const auto add = [&arguments](const char* name, std::string value) {
    arguments.insert(arguments.end(), {name, std::move(value)});
  };
  if (limits.max_bytes.has_value()) {
    add("--max-bytes", std::to_string(*limits.max_bytes));
  }
  if (limits.max_files.has_value()) {
    add("--max-files", std::to_string(*limits.max_files));
  }
  if (source.owner == RootSource::Owner::kKeep) add("--owner", "keep");
  if (source.owner == RootSource::Owner::kRoot) add("--owner", "root");
  return arguments;
}

// What the tool's end says. Its text is of the source, so hostile.
absl::Status EndStatus(const ToolEnd& end) {
  std::string text(base::kMaxLogTextBytes, '\0');
  text.resize(base::CleanLogText(end.errors, text));
  constexpr std::string_view kPrefix = "catnap-rootfs: ";
  if (text.starts_with(kPrefix)) text.erase(0, kPrefix.size());
  if (!end.exit_code.has_value()) {
    // Somebody else took the result, as where the host program ignores SIGCHLD.
    if (end.output == kDoneText) return absl::OkStatus();
    return Error(absl::StatusCode::kUnavailable, "{} ended early{}{}",
                 kToolName, text.empty() ? "" : ": ", text);
  }
  switch (*end.exit_code) {
    case kDone:
      if (end.output == kDoneText) return absl::OkStatus();
      return Error(absl::StatusCode::kFailedPrecondition,
                   "{} is not the program of this library", kToolName);
    case kUsage:
      return Error(absl::StatusCode::kFailedPrecondition,
                   "{} is of another version than this library: {}", kToolName,
                   text);
    case kBadSource:
      return Error(absl::StatusCode::kInvalidArgument, "{}", text);
    case kNoSpace:
      return Error(absl::StatusCode::kResourceExhausted, "{}", text);
    case kDamagedSource:
      return Error(absl::StatusCode::kDataLoss, "{}", text);
    default:
      return Error(absl::StatusCode::kUnavailable,
                   "{} failed with status {}{}{}", kToolName, *end.exit_code,
                   text.empty() ? "" : ": ", text);
  }
}

}  // namespace

absl::Status BuildRootDisk(const RootSource& source,
                           const std::filesystem::path& output,
                           uint64_t disk_bytes, const RootLimits& limits,
                           const RootCall& call) {
  if (disk_bytes < kMinRootDiskBytes || disk_bytes > kMaxRootDiskBytes ||
      !base::IsAligned(disk_bytes, kBlockBytes)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "disk_bytes is {}, must be a multiple of {} from {} to {}",
                 disk_bytes, kBlockBytes, kMinRootDiskBytes, kMaxRootDiskBytes);
  }
  CATNAP_ASSIGN_OR_RETURN(const std::string tool, FindTool());
  CATNAP_ASSIGN_OR_RETURN(const base::UniqueFd from, OpenSource(source));
  CATNAP_ASSIGN_OR_RETURN(const std::unique_ptr<io::AtomicFile> file,
                          io::AtomicFile::Create(output.string()));
  CATNAP_ASSIGN_OR_RETURN(
      const ToolEnd end,
      RunTool({.path = tool,
               .arguments = ToolArguments(source, disk_bytes, limits),
               .descriptors = {{from.get(), kSourceFd}, {file->fd(), kImageFd}},
               .deadline = call.deadline,
               .stop = call.stop}));
  if (const absl::Status status = EndStatus(end); !status.ok()) {
    return AddContext(status,
                      fmt::format("root disk from {}", source.path.string()));
  }
  return file->Commit();
}

}  // namespace catnap::runtime
