#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "snapshot/reader.h"

// A snapshot's directory: memory.catnap and one chunk file. Checksums of
// memory.catnap are made right when the input says so, since no fuzzer guesses
// them. Whatever opens must be read or refused without harm, must be read the
// same way each time, and says the same of itself frame by frame.

namespace {

namespace snapshot = catnap::snapshot;

constexpr const char* kChunks = "0.chunks";
constexpr uint64_t kMaxRam = uint64_t{8} << 20;

// In memory where there is such a place; gone when the process ends well.
class Folder {
 public:
  Folder() {
    for (std::string path :
         {"/dev/shm/catnap-fuzz-XXXXXX", "/tmp/catnap-fuzz-XXXXXX"}) {
      if (::mkdtemp(path.data()) == nullptr) continue;
      path_ = path;
      return;
    }
    std::abort();
  }
  ~Folder() {
    ::unlink(File(std::string(snapshot::kMemoryFileName)).c_str());
    ::unlink(File(kChunks).c_str());
    ::rmdir(path_.c_str());
  }
  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  void Write(const std::string& name, const std::vector<uint8_t>& bytes) const {
    const int fd = ::open(File(name).c_str(),
                          O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd >= 0);
    FUZZ_CHECK(::write(fd, bytes.data(), bytes.size()) ==
               static_cast<ssize_t>(bytes.size()));
    ::close(fd);
  }

 private:
  std::string path_;
};

// Makes checksums and sizes of memory.catnap right, as far as they lie in it.
void Seal(std::vector<uint8_t>* file) {
  using catnap::base::LoadLe;
  using catnap::base::StoreLe;
  if (file->size() < snapshot::kHeaderBytes) return;
  uint8_t* const at = file->data();
  StoreLe<uint64_t>(at + 64, file->size());
  const uint64_t table =
      uint64_t{LoadLe<uint32_t>(at + 52)} * catnap::state::kSectionHeaderBytes;
  const uint64_t index = LoadLe<uint64_t>(at + 72);
  const std::span<const uint8_t> bytes(*file);
  if (table <= file->size() - snapshot::kHeaderBytes) {
    StoreLe(at + 88,
            catnap::base::Crc32c(bytes.subspan(snapshot::kHeaderBytes, table)));
  }
  if (index <= file->size()) {
    StoreLe(at + 80, file->size() - index);
    StoreLe(at + 92, catnap::base::Crc32c(bytes.subspan(index)));
  }
  StoreLe(at + 124, catnap::base::Crc32c(bytes.first(124)));
}

void ReadFrames(const snapshot::SnapshotReader& reader,
                const absl::Status& bulk, const std::vector<uint8_t>& memory) {
  auto decompressor = catnap::codec::ZstdDecompressor::Create();
  FUZZ_CHECK(decompressor.ok());
  std::vector<uint8_t> pages(snapshot::kMaxFramePages *
                             catnap::base::kPageBytes);
  catnap::base::ScratchBuffer compressed;
  bool all_good = true;
  for (const size_t frame : reader.FramesInOrder()) {
    if (!reader.ReadFrame(frame, &*decompressor, &compressed, pages).ok()) {
      all_good = false;
      continue;
    }
    for (const snapshot::FramePlace& place : reader.PlacesOf(frame)) {
      FUZZ_CHECK(reader.FrameAt(place.range.offset) == frame);
      const auto from =
          pages.begin() +
          static_cast<ptrdiff_t>(place.first * catnap::base::kPageBytes);
      FUZZ_CHECK(!bulk.ok() ||
                 std::equal(from,
                            from + static_cast<ptrdiff_t>(place.range.length),
                            memory.begin() +
                                static_cast<ptrdiff_t>(place.range.offset)));
    }
  }
  FUZZ_CHECK(all_good == bulk.ok());
}

}  // namespace

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Folder folder;
  static const auto pool = snapshot::WorkerPool::Create(1);
  FUZZ_CHECK(pool.ok());
  catnap::fuzz::FuzzInput input(data, size);
  const bool seal = (input.Integer<uint8_t>() & 1) != 0;
  const auto chunk_bytes = input.Integer<uint16_t>();
  const auto chunks = input.Bytes(chunk_bytes);
  const auto rest = input.Rest();
  std::vector<uint8_t> file(rest.begin(), rest.end());
  if (seal) Seal(&file);
  folder.Write(std::string(snapshot::kMemoryFileName), file);
  folder.Write(kChunks, {chunks.begin(), chunks.end()});
  const auto reader = snapshot::SnapshotReader::Open(folder.path());
  if (!reader.ok()) {
    FUZZ_CHECK(reader.status().code() == absl::StatusCode::kDataLoss ||
               reader.status().code() == absl::StatusCode::kUnimplemented);
    return 0;
  }
  if ((*reader)->ram_bytes() > kMaxRam) return 0;
  std::vector<uint8_t> memory((*reader)->ram_bytes());
  const absl::Status status =
      (*reader)->ReadAll(memory, {.pool = pool->get(), .plain_io = true});
  FUZZ_CHECK(status.ok() || status.code() == absl::StatusCode::kDataLoss);
  FUZZ_CHECK(
      (*reader)->Verify({.pool = pool->get(), .plain_io = true}).code() ==
      status.code());
  ReadFrames(**reader, status, memory);
  return 0;
}
