// catnap-rootfs: makes the image of an ext4 file system from a directory or a
// tar archive. The library starts it as a process of its own, because it reads
// bytes that nobody vouches for with large libraries; it is as good by hand.

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/checked.h"
#include "base/log_text.h"
#include "base/random.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "catnap/version.h"
#include "rootfs/archive_source.h"
#include "rootfs/confine.h"
#include "rootfs/directory_source.h"
#include "rootfs/exit_code.h"
#include "rootfs/ext4_image.h"
#include "rootfs/owner.h"
#include "rootfs/text.h"
#include "rootfs/tree.h"

namespace catnap::rootfs {
namespace {

constexpr const char* kUsage =
    "usage: catnap-rootfs --output FILE --bytes N "
    "(--directory DIR | --tar FILE) [OPTION...]\n"
    "\n"
    "Makes FILE the image of a new ext4 file system of N bytes, thin, with the "
    "content\nof a directory or of a tar archive (plain, gzip, xz, zstd, "
    "bzip2). Needs no root.\nA file may be given as fd:N, an open descriptor; "
    "one for output must be empty.\n"
    "\n"
    "  --owner keep|root|caller  whose files are: keep the numbers; all "
    "root's; "
    "or,\n"
    "                            for a directory and its default unless root "
    "calls,\n"
    "                            those of the calling user become root's\n"
    "  --max-bytes N             of content; default: --bytes\n"
    "  --max-files N             default: what the file system has inodes for\n"
    "  --uuid UUID               of the file system; default: random\n"
    "  --time SECONDS            when it was made, since 1970; default: now\n"
    "  --die-with-parent         end when the thread ends that started this\n"
    "\n"
    "On success prints \"done\". Else an error, as one line that names the "
    "file, and\nexits with 2 (bad usage), 3 (a source that cannot be taken), 4 "
    "(no space, or\nlarger than a limit), 5 (input or output failed) or 6 (a "
    "damaged archive).\n";

struct Arguments {
  std::string output;
  std::string directory;
  std::string tar;
  uint64_t bytes = 0;
  std::optional<OwnerRule> owner;
  std::optional<uint64_t> max_bytes;
  std::optional<uint64_t> max_files;
  std::optional<std::array<uint8_t, 16>> uuid;
  std::optional<uint32_t> time;
  bool die_with_parent = false;
};

template <typename T>
std::optional<T> ParseNumber(std::string_view text) {
  T value{};
  const auto result =
      std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size()) {
    return std::nullopt;
  }
  return value;
}

// As 550e8400-e29b-41d4-a716-446655440000.
std::optional<std::array<uint8_t, 16>> ParseUuid(std::string_view text) {
  constexpr size_t kTextBytes = 36;
  if (text.size() != kTextBytes) return std::nullopt;
  std::array<uint8_t, 16> uuid{};
  size_t at = 0;
  for (uint8_t& byte : uuid) {
    if (at == 8 || at == 13 || at == 18 || at == 23) {
      if (text[at++] != '-') return std::nullopt;
    }
    const std::string_view digits = text.substr(at, 2);
    const auto end = digits.data() + digits.size();
    const auto result = std::from_chars(digits.data(), end, byte, 16);
    if (result.ec != std::errc() || result.ptr != end) return std::nullopt;
    at += digits.size();
  }
  return uuid;
}

// Sets the option `name` to `value`; false: it has no such value.
bool SetOption(std::string_view name, const std::string& value,
               Arguments* arguments) {
  if (name == "--output") {
    arguments->output = value;
  } else if (name == "--directory") {
    arguments->directory = value;
  } else if (name == "--tar") {
    arguments->tar = value;
  } else if (name == "--bytes") {
    const auto bytes = ParseNumber<uint64_t>(value);
    arguments->bytes = bytes.value_or(0);
    return bytes.has_value();
  } else if (name == "--max-bytes") {
    arguments->max_bytes = ParseNumber<uint64_t>(value);
    return arguments->max_bytes.has_value();
  } else if (name == "--max-files") {
    arguments->max_files = ParseNumber<uint64_t>(value);
    return arguments->max_files.has_value();
  } else if (name == "--uuid") {
    arguments->uuid = ParseUuid(value);
    return arguments->uuid.has_value();
  } else if (name == "--time") {
    arguments->time = ParseNumber<uint32_t>(value);
    return arguments->time.has_value();
  } else if (name == "--owner") {
    arguments->owner = value == "keep"     ? std::optional(OwnerRule::kKeep)
                       : value == "root"   ? std::optional(OwnerRule::kRoot)
                       : value == "caller" ? std::optional(OwnerRule::kCaller)
                                           : std::nullopt;
    return arguments->owner.has_value();
  } else {
    return false;
  }
  return !value.empty();
}

absl::StatusOr<Arguments> Parse(const std::vector<std::string>& words) {
  Arguments arguments;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "--die-with-parent") {
      arguments.die_with_parent = true;
      continue;
    }
    if (i + 1 == words.size() ||
        !SetOption(words[i], words[i + 1], &arguments)) {
      return Error(absl::StatusCode::kInvalidArgument,
                   "option {} is unknown, or what follows is no value of it; "
                   "see --help",
                   Quote(words[i]));
    }
    ++i;
  }
  if (arguments.output.empty() || arguments.bytes == 0 ||
      arguments.directory.empty() == arguments.tar.empty()) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "needs --output, --bytes, and one of --directory and --tar; "
                 "see --help");
  }
  if (arguments.bytes < kMinImageBytes || arguments.bytes > kMaxImageBytes ||
      !base::IsAligned(arguments.bytes, kBlockBytes)) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "--bytes is {}, must be a multiple of {} from {} to {}",
                 arguments.bytes, kBlockBytes, kMinImageBytes, kMaxImageBytes);
  }
  return arguments;
}

// The number of `fd:N`.
std::optional<int> AsDescriptor(std::string_view file) {
  constexpr std::string_view kPrefix = "fd:";
  if (!file.starts_with(kPrefix)) return std::nullopt;
  return ParseNumber<int>(file.substr(kPrefix.size()));
}

absl::StatusOr<base::UniqueFd> OpenSource(const std::string& file, int flags) {
  if (const std::optional<int> number = AsDescriptor(file)) {
    return base::UniqueFd(*number);
  }
  base::UniqueFd fd(::open(file.c_str(), flags | O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) {
    return Error(absl::StatusCode::kInvalidArgument, "open {}: {}", Quote(file),
                 ErrnoText(errno));
  }
  return fd;
}

absl::StatusOr<base::UniqueFd> OpenOutput(const std::string& file) {
  const std::optional<int> number = AsDescriptor(file);
  base::UniqueFd fd(
      number.has_value()
          ? *number
          : ::open(file.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  struct stat info {};
  if (!fd.valid() || ::fstat(fd.get(), &info) != 0) {
    return ErrnoError(errno, "make {}", Quote(file));
  }
  if (!S_ISREG(info.st_mode) || info.st_size != 0) {
    return Error(absl::StatusCode::kUnavailable,
                 "{} is not an empty regular file", Quote(file));
  }
  return fd;
}

Owners OwnersFor(const Arguments& arguments) {
  const uint32_t caller = ::geteuid();
  const bool maps = !arguments.directory.empty() && caller != 0;
  return {.rule = arguments.owner.value_or(maps ? OwnerRule::kCaller
                                                : OwnerRule::kKeep),
          .caller = caller};
}

absl::Status Build(const Arguments& arguments, int source, int output) {
  const bool is_directory = arguments.tar.empty();
  ImageOptions options{.bytes = arguments.bytes};
  if (arguments.uuid.has_value()) {
    options.uuid = *arguments.uuid;
  } else {
    CATNAP_RETURN_IF_ERROR(base::FillRandom(options.uuid));
    options.uuid[6] = (options.uuid[6] & 0x0f) | 0x40;  // RFC 4122: random.
    options.uuid[8] = (options.uuid[8] & 0x3f) | 0x80;
  }
  options.time = arguments.time.has_value()
                     ? *arguments.time
                     : static_cast<uint32_t>(::time(nullptr));
  const Owners owners = OwnersFor(arguments);
  CATNAP_RETURN_IF_ERROR(Confine({.reads_directory = is_directory}));
  CATNAP_ASSIGN_OR_RETURN(const std::unique_ptr<Ext4Image> image,
                          Ext4Image::Create(output, options));
  CATNAP_ASSIGN_OR_RETURN(
      const std::unique_ptr<Tree> tree,
      Tree::Create(image.get(),
                   {.bytes = arguments.max_bytes.value_or(arguments.bytes),
                    .files = arguments.max_files.value_or(image->inodes())}));
  CATNAP_RETURN_IF_ERROR(is_directory
                             ? AddDirectoryTree(source, owners, tree.get())
                             : AddArchive(source, owners, tree.get()));
  CATNAP_RETURN_IF_ERROR(tree->Finish());
  return image->Finish();
}

int Report(const absl::Status& status, ExitCode code) {
  std::string line(base::kMaxLogTextBytes, '\0');
  line.resize(base::CleanLogText(
      {status.message().data(), status.message().size()}, line));
  std::fprintf(stderr, "catnap-rootfs: %s\n", line.c_str());
  return static_cast<int>(code);
}

ExitCode CodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
      return ExitCode::kBadSource;
    case absl::StatusCode::kDataLoss:
      return ExitCode::kDamagedSource;
    case absl::StatusCode::kResourceExhausted:
      return ExitCode::kNoSpace;
    default:
      return ExitCode::kIoFailed;
  }
}

// Builds with the descriptors, and says how it went.
int Work(const Arguments& arguments, int source, int output) {
  absl::Status status;
  try {
    status = Build(arguments, source, output);
  } catch (const std::bad_alloc&) {
    status = absl::ResourceExhaustedError(
        "out of memory; the source has too many files, or names too much");
  }
  if (!status.ok()) return Report(status, CodeOf(status));
  // The process that started this may not be the one that is told how it ended.
  std::fputs("done\n", stdout);
  return std::fflush(stdout) == 0 ? 0 : static_cast<int>(ExitCode::kIoFailed);
}

// Works in a child, which then has no way to remove the file: this process
// does when the child fails.
int WorkOnFile(const Arguments& arguments, int source, int output) {
  const pid_t worker = ::fork();
  if (worker < 0) {
    return Report(ErrnoError(errno, "fork"), ExitCode::kIoFailed);
  }
  if (worker == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    std::exit(Work(arguments, source, output));  // NOLINT: one thread.
  }
  int status = 0;
  while (::waitpid(worker, &status, 0) < 0 && errno == EINTR) {
  }
  if (status != 0) ::unlink(arguments.output.c_str());
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  return Report(Error(absl::StatusCode::kUnavailable, "ended by signal {}",
                      WTERMSIG(status)),
                ExitCode::kIoFailed);
}

int Main(const std::vector<std::string>& words) {
  if (words.size() == 1 && words[0] == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  if (words.size() == 1 && words[0] == "--version") {
    std::printf("catnap-rootfs %d.%d.%d\n", CATNAP_VERSION_MAJOR,
                CATNAP_VERSION_MINOR, CATNAP_VERSION_PATCH);
    return 0;
  }
  const auto arguments = Parse(words);
  if (!arguments.ok()) return Report(arguments.status(), ExitCode::kUsage);
  if (arguments->die_with_parent) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // A limit of file sizes is an error like others. (Before the default action
  // could end the process.)
  ::signal(SIGXFSZ, SIG_IGN);
  // Names in pax headers are UTF-8, and are to stay as they are.
  // NOLINTNEXTLINE(concurrency-mt-unsafe): there is no other thread yet.
  if (std::setlocale(LC_CTYPE, "C.UTF-8") == nullptr) {
    return Report(absl::UnavailableError("the system has no locale C.UTF-8"),
                  ExitCode::kIoFailed);
  }
  const bool is_directory = arguments->tar.empty();
  const auto source = is_directory
                          ? OpenSource(arguments->directory, O_DIRECTORY)
                          : OpenSource(arguments->tar, 0);
  if (!source.ok()) return Report(source.status(), CodeOf(source.status()));
  const auto output = OpenOutput(arguments->output);
  if (!output.ok()) return Report(output.status(), CodeOf(output.status()));
  return AsDescriptor(arguments->output).has_value()
             ? Work(*arguments, source->get(), output->get())
             : WorkOnFile(*arguments, source->get(), output->get());
}

}  // namespace
}  // namespace catnap::rootfs

int main(int argc, char** argv) {
  return catnap::rootfs::Main({argv + 1, argv + argc});
}
