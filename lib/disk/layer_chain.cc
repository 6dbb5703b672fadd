#include "disk/layer_chain.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "disk/layer_loader.h"
#include "disk/loop_file.h"
#include "io/file.h"

namespace catnap::disk {
namespace {

constexpr std::string_view kPrefix = "disk-";
constexpr std::string_view kSuffix = ".layer";

std::string LayerName(uint64_t number) {
  return fmt::format("{}{:03}{}", kPrefix, number, kSuffix);
}

// Only of names that LayerName() makes.
std::optional<uint64_t> NumberOf(const std::string& name) {
  if (name.size() <= kPrefix.size() + kSuffix.size()) return std::nullopt;
  uint64_t number = 0;
  const char* const first = name.data() + kPrefix.size();
  const char* const last = name.data() + name.size() - kSuffix.size();
  const auto [end, error] = std::from_chars(first, last, number);
  // Small enough that there is always a next one.
  if (error != std::errc() || end != last || number >= UINT32_MAX ||
      name != LayerName(number)) {
    return std::nullopt;
  }
  return number;
}

struct Names {
  std::vector<uint64_t> layers;  // Ascending.
  std::vector<std::string> temporary;
};

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};

absl::StatusOr<Names> ListNames(const std::string& directory) {
  const std::unique_ptr<DIR, CloseDirectory> open(::opendir(directory.c_str()));
  if (open == nullptr) return ErrnoError(errno, "open {}", directory);
  Names names;
  while (true) {
    errno = 0;
    // The stream is ours alone.
    // NOLINTNEXTLINE(concurrency-mt-unsafe)
    const dirent* const entry = ::readdir(open.get());
    if (entry == nullptr) break;
    const std::string name = entry->d_name;
    if (const auto number = NumberOf(name); number.has_value()) {
      names.layers.push_back(*number);
    } else if (io::AtomicFile::IsTemporaryName(name)) {
      names.temporary.push_back(fmt::format("{}/{}", directory, name));
    }
    if (names.layers.size() > kMaxChainLayers) {
      return Error(absl::StatusCode::kDataLoss,
                   "{} has more than {} layers of a disk", directory,
                   kMaxChainLayers);
    }
  }
  if (errno != 0) return ErrnoError(errno, "read {}", directory);
  std::sort(names.layers.begin(), names.layers.end());
  return names;
}

struct LayerFile {
  ChainLayer layer;
  bool empty = false;  // Nothing was ever committed to it.
};

absl::StatusOr<LayerFile> ReadLayer(const std::string& directory,
                                    uint64_t number) {
  LayerFile file;
  file.layer.path = LayerPath(directory, number);
  file.layer.number = number;
  const auto read = [&]() -> absl::Status {
    // Nothing asynchronous is asked of it.
    CATNAP_ASSIGN_OR_RETURN(
        const auto io,
        LoopFile::Open(file.layer.path, O_RDONLY | O_NOFOLLOW, nullptr));
    CATNAP_ASSIGN_OR_RETURN(file.layer.header, LoadLayerHeader(io.get()));
    CATNAP_ASSIGN_OR_RETURN(const CommitRecord commit,
                            LoadLayerCommit(io.get()));
    file.layer.frozen = commit.frozen;
    file.empty = commit.sequence == 1 && commit.root == PagePointer{};
    return absl::OkStatus();
  };
  if (const absl::Status status = read(); !status.ok()) {
    return AddContext(status, file.layer.path);
  }
  return file;
}

bool LiesOn(const LayerHeader& header, const BlockIo* base) {
  if (base == nullptr) return !header.has_parent;
  return header.has_parent && header.parent_id == base->id();
}

absl::Status Damaged(const ChainLayer& layer, const char* what) {
  return Error(absl::StatusCode::kDataLoss, "{}: {}", layer.path, what);
}

}  // namespace

std::string LayerPath(const std::string& directory, uint64_t number) {
  return directory + "/" + LayerName(number);
}

absl::StatusOr<LayerChain> ReadChain(const std::string& directory,
                                     const BlockIo* base) {
  CATNAP_ASSIGN_OR_RETURN(Names names, ListNames(directory));
  LayerChain chain;
  chain.leftovers = std::move(names.temporary);
  std::map<uint64_t, LayerFile> files;
  std::map<DiskId, uint64_t> by_id;
  for (const uint64_t number : names.layers) {
    CATNAP_ASSIGN_OR_RETURN(LayerFile file, ReadLayer(directory, number));
    if (!by_id.emplace(file.layer.header.id, number).second) {
      return Damaged(file.layer, "a second layer of its id");
    }
    files.emplace(number, std::move(file));
  }
  if (files.empty()) return chain;
  for (const auto& [number, file] : files) {
    if (!file.layer.header.has_parent) continue;
    const auto found = by_id.find(file.layer.header.parent_id);
    if (found != by_id.end() && found->second >= number) {
      return Damaged(file.layer, "lies on a layer of a higher number");
    }
  }

  const auto below = [&](const ChainLayer& layer) -> const LayerFile* {
    if (!layer.header.has_parent) return nullptr;
    const auto found = by_id.find(layer.header.parent_id);
    // Its number is lower: no loops.
    return found == by_id.end() ? nullptr : &files.at(found->second);
  };
  const LayerFile* at = &files.rbegin()->second;
  // Made for a freeze that a crash cut short: the layer below still is the top.
  const LayerFile* const under = below(at->layer);
  if (!at->layer.frozen && at->empty && under != nullptr &&
      !under->layer.frozen) {
    at = under;
  }
  for (bool top = true; at != nullptr; at = below(at->layer), top = false) {
    if (!top && !at->layer.frozen) {
      return Damaged(at->layer, "below another layer and not frozen");
    }
    chain.layers.push_back(at->layer);
  }
  std::reverse(chain.layers.begin(), chain.layers.end());
  if (!LiesOn(chain.layers.front().header, base)) {
    return Damaged(chain.layers.front(),
                   "the disk that the layer was made on is missing");
  }
  for (const ChainLayer& layer : chain.layers) files.erase(layer.number);
  for (const auto& [number, file] : files) {
    chain.leftovers.push_back(file.layer.path);
  }
  return chain;
}

absl::Status LinkChain(const std::vector<ChainLayer>& layers,
                       const std::string& directory, CopyMode mode,
                       Durable durable) {
  uint64_t number = 0;
  absl::Status status;
  for (const ChainLayer& layer : layers) {
    if (!layer.frozen) {
      status = Error(absl::StatusCode::kFailedPrecondition, "{} is not frozen",
                     layer.path);
    } else {
      status = LinkOrCloneFile(layer.path, LayerPath(directory, number), mode);
    }
    if (!status.ok()) break;
    ++number;
  }
  if (status.ok() && durable == Durable::kNow) {
    status = io::FsyncDirectory(directory);
  }
  if (status.ok()) return status;
  for (uint64_t made = 0; made < number; ++made) {
    ::unlink(LayerPath(directory, made).c_str());
  }
  return status;
}

absl::Status RemoveChain(const std::string& directory) {
  CATNAP_ASSIGN_OR_RETURN(Names names, ListNames(directory));
  for (const uint64_t number : names.layers) {
    names.temporary.push_back(LayerPath(directory, number));
  }
  for (const std::string& path : names.temporary) {
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
      return ErrnoError(errno, "remove {}", path);
    }
  }
  return absl::OkStatus();
}

}  // namespace catnap::disk
