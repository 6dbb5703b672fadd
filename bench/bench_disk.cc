#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "disk/await.h"
#include "disk/cow_layer.h"
#include "disk/loop_file.h"
#include "disk/raw_disk.h"
#include "harness.h"
#include "io/event_loop.h"

// What a disk's layers cost over the file itself, natively, without a guest:
// requests against BlockIo on one event loop, in files in $TMPDIR. README.md
// says what the clocks cover.

namespace catnap::bench {
namespace {

constexpr uint64_t kDiskBytes = uint64_t{512} << 20;

[[noreturn]] void Die(const absl::Status& status) {
  fmt::print(stderr, "bench_disk: {}\n", status.ToString());
  std::_Exit(1);  // Threads run.
}

template <typename T>
T OrDie(absl::StatusOr<T> value) {
  if (!value.ok()) Die(value.status());
  return *std::move(value);
}

std::string FileName(const std::string& name) {
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  const char* const directory = std::getenv("TMPDIR");
  return fmt::format("{}/catnap-bench-{}-{}",
                     directory == nullptr ? "/tmp" : directory, ::getpid(),
                     name);
}

std::shared_ptr<disk::LoopFile> NewFile(const std::string& name,
                                        io::EventLoop* loop) {
  const std::string path = FileName(name);
  auto file = OrDie(disk::LoopFile::Open(path, O_RDWR | O_CREAT, loop));
  ::unlink(path.c_str());
  return file;
}

// Keeps `depth` requests in flight until all are done; returns how long.
class Load : public std::enable_shared_from_this<Load> {
 public:
  Load(disk::BlockIo* disk, bool write, uint64_t bytes)
      : disk_(disk), write_(write), buffer_(bytes, uint8_t{0x5a}) {}

  std::chrono::steady_clock::duration Run(std::vector<uint64_t> offsets,
                                          size_t depth) {
    offsets_ = std::move(offsets);
    const auto start = std::chrono::steady_clock::now();
    for (size_t i = 0; i < depth; ++i) Next();
    {
      const base::MutexLock lock(&mutex_);
      while (ended_ < offsets_.size()) done_.Wait(&mutex_);
    }
    return std::chrono::steady_clock::now() - start;
  }

 private:
  void Next() {
    uint64_t offset = 0;
    {
      const base::MutexLock lock(&mutex_);
      if (next_ == offsets_.size()) return;
      offset = offsets_[next_++];
    }
    const iovec buffer{buffer_.data(), buffer_.size()};
    auto end = [self = shared_from_this()](const absl::Status& status) {
      if (!status.ok()) Die(status);
      self->Next();
      const base::MutexLock lock(&self->mutex_);
      if (++self->ended_ == self->offsets_.size()) self->done_.NotifyAll();
    };
    if (write_) {
      disk_->Write({&buffer, 1}, offset, std::move(end));
    } else {
      disk_->Read({&buffer, 1}, offset, std::move(end));
    }
  }

  disk::BlockIo* const disk_;
  const bool write_;
  std::vector<uint8_t> buffer_;  // All requests share it.
  std::vector<uint64_t> offsets_;
  base::Mutex mutex_;
  base::CondVar done_;
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t ended_ ABSL_GUARDED_BY(mutex_) = 0;
};

std::vector<uint64_t> Offsets(uint64_t request, bool random) {
  std::vector<uint64_t> offsets;
  for (uint64_t at = 0; at < kDiskBytes; at += request) offsets.push_back(at);
  if (random) {
    std::mt19937_64 engine(1);
    std::shuffle(offsets.begin(), offsets.end(), engine);
    offsets.resize(std::min<size_t>(offsets.size(), 32768));
  }
  return offsets;
}

void Measure(Report* report, const std::string& name, disk::BlockIo* disk) {
  const auto run = [&](const char* what, bool write, uint64_t bytes,
                       bool random, size_t depth) {
    const auto offsets = Offsets(bytes, random);
    const auto took =
        std::make_shared<Load>(disk, write, bytes)->Run(offsets, depth);
    const double seconds = std::chrono::duration<double>(took).count();
    report->Add(fmt::format("disk/{}/{}", what, name), "requests/s",
                static_cast<double>(offsets.size()) / seconds);
  };
  const auto flush = [&] {
    const absl::Status flushed = disk::Await(
        [&](disk::BlockCompletion done) { disk->Flush(std::move(done)); });
    if (!flushed.ok()) Die(flushed);
  };
  run("seq_write_new", true, 1 << 20, false, 16);
  flush();
  run("seq_write_again", true, 1 << 20, false, 16);
  flush();
  run("seq_read", false, 1 << 20, false, 16);
  run("rand_write_again", true, 4096, true, 32);
  flush();
  run("rand_read", false, 4096, true, 32);
}

int Main(int argc, char** argv) {
  Report report(ParseOptions(argc, argv, 3));
  const auto loop = OrDie(io::EventLoop::Create({}));
  for (int i = 0; i < report.options().samples; ++i) {
    {
      // The file itself: a new one, as the layer's is.
      const auto file = NewFile("raw", loop.get());
      if (const auto sized = file->SetSize(kDiskBytes); !sized.ok()) Die(sized);
      const auto disk =
          OrDie(disk::RawDisk::Create(file, {.read_only = false, .id = {}}));
      Measure(&report, "raw", disk.get());
    }
    const auto base_file = NewFile("base", loop.get());
    if (const auto sized = base_file->SetSize(kDiskBytes); !sized.ok()) {
      Die(sized);
    }
    const auto base = OrDie(disk::RawDisk::Create(base_file, {.id = {1}}));
    const auto layer = OrDie(
        disk::CowLayer::CreateOnTop(NewFile("layer", loop.get()), base, {}));
    Measure(&report, "cow", layer.get());
  }
  return report.Finish();
}

}  // namespace
}  // namespace catnap::bench

int main(int argc, char** argv) { return catnap::bench::Main(argc, argv); }
