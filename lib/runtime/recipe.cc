#include "runtime/recipe.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <span>
#include <string_view>
#include <system_error>
#include <variant>

#include "base/byte_order.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "io/file.h"
#include "runtime/image_record.h"

namespace catnap::runtime {
namespace {

constexpr size_t kReadBytes = size_t{256} << 10;
// Other numbers make other recipes: to be raised when the same source makes
// another disk.
constexpr std::string_view kBuilder = "catnap recipe 1";

// A digest of values, each with its length, so that no two lists are alike.
class Recipe {
 public:
  void Number(uint64_t value) {
    std::array<uint8_t, 8> bytes{};
    base::StoreLe(bytes.data(), value);
    digest_.Update(bytes);
  }
  void Text(std::string_view text) {
    Number(text.size());
    digest_.Update(
        {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  void Bytes(std::span<const uint8_t> bytes) { digest_.Update(bytes); }
  std::vector<uint8_t> Finish() {
    const base::Sha256::Digest digest = digest_.Finish();
    return {digest.begin(), digest.end()};
  }

 private:
  base::Sha256 digest_;
};

absl::Status CheckLimits(const agent::CallLimits& limits) {
  if (limits.stop.stop_requested()) return absl::CancelledError("cancelled");
  if (limits.deadline.has_value() &&
      std::chrono::steady_clock::now() >= *limits.deadline) {
    return absl::DeadlineExceededError("CallOptions::timeout has passed");
  }
  return absl::OkStatus();
}

absl::Status AddFile(const std::filesystem::path& path, Recipe* recipe,
                     const agent::CallLimits& limits) {
  auto fd = io::OpenFile(path.string(), O_RDONLY | O_NONBLOCK);
  if (!fd.ok()) return AddContext(fd.status(), path.string());
  std::vector<uint8_t> buffer(kReadBytes);
  uint64_t total = 0;
  for (;;) {
    CATNAP_RETURN_IF_ERROR(CheckLimits(limits));
    const ssize_t got = ::read(fd->get(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, "read {}", path.string());
    if (got == 0) break;
    recipe->Bytes({buffer.data(), static_cast<size_t>(got)});
    total += static_cast<uint64_t>(got);
  }
  recipe->Number(total);
  return absl::OkStatus();
}

absl::Status AddTree(const std::filesystem::path& directory,
                     const std::string& below, Recipe* recipe,
                     const agent::CallLimits& limits) {
  std::error_code error;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator at(directory, error), end;
       !error && at != end; at.increment(error)) {
    names.push_back(at->path().filename().string());
  }
  if (error) return ErrnoError(error.value(), "read {}", directory.string());
  std::sort(names.begin(), names.end());
  for (const std::string& name : names) {
    CATNAP_RETURN_IF_ERROR(CheckLimits(limits));
    const std::filesystem::path path = directory / name;
    struct stat info {};
    if (::lstat(path.c_str(), &info) != 0) {
      return ErrnoError(errno, "stat {}", path.string());
    }
    recipe->Text(below + name);
    recipe->Number(info.st_mode);
    recipe->Number(uint64_t{info.st_uid} << 32 | info.st_gid);
    if (S_ISREG(info.st_mode)) {
      CATNAP_RETURN_IF_ERROR(AddFile(path, recipe, limits));
    } else if (S_ISLNK(info.st_mode)) {
      recipe->Text(std::filesystem::read_symlink(path, error).string());
      if (error) return ErrnoError(error.value(), "read {}", path.string());
    } else if (S_ISDIR(info.st_mode)) {
      CATNAP_RETURN_IF_ERROR(AddTree(path, below + name + "/", recipe, limits));
    } else {
      recipe->Number(info.st_rdev);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<uint8_t>> RecipeOf(const ImageSpec& spec,
                                              const std::string& guests,
                                              const agent::CallLimits& limits) {
  Recipe recipe;
  recipe.Text(kBuilder);
  recipe.Text(guests);
  // Without a version and a disk it is what the spec says.
  CATNAP_ASSIGN_OR_RETURN(const std::vector<uint8_t> options,
                          EncodeImageRecord(RecordOf(spec)));
  recipe.Number(options.size());
  recipe.Bytes(options);
  recipe.Number(static_cast<uint64_t>(spec.build_egress.mode()));
  for (const NetworkRule& rule : spec.build_egress.rules()) {
    recipe.Text(rule.to);
    recipe.Number(static_cast<uint64_t>(rule.protocol));
    recipe.Number(rule.ports.size());
    for (const PortRange& ports : rule.ports) {
      recipe.Number(uint64_t{ports.first} << 16 | ports.last);
    }
  }
  recipe.Number(spec.source.index());
  if (const auto* tar = std::get_if<TarSource>(&spec.source)) {
    CATNAP_RETURN_IF_ERROR(AddFile(tar->tar, &recipe, limits));
  } else if (const auto* root = std::get_if<DirectorySource>(&spec.source)) {
    CATNAP_RETURN_IF_ERROR(AddTree(root->root, "", &recipe, limits));
  }
  return recipe.Finish();
}

}  // namespace catnap::runtime
