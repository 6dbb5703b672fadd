#include "snapshot_native.h"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "base/page_range.h"
#include "base/random.h"
#include "base/status.h"
#include "catnap/host.h"
#include "guest.h"
#include "memory/memory_file.h"
#include "memory/page_filler.h"
#include "room.h"
#include "snapshot/reader.h"
#include "snapshot/worker_pool.h"
#include "snapshot/writer.h"
#include "vmm/guest_template.h"

namespace catnap::bench {
namespace {

using base::PageRange;
using Clock = std::chrono::steady_clock;
namespace fs = std::filesystem;

constexpr uint64_t kPage = base::kPageBytes;
constexpr uint64_t kFioBytes = 512ull << 20;
constexpr double kMega = 1e6;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

template <typename T>
T OrDie(const char* what, absl::StatusOr<T> value) {
  Check(what, value.status());
  return *std::move(value);
}

// What a command prints, with errors.
std::string OutputOf(const std::string& command) {
  std::FILE* const made = ::popen((command + " 2>&1").c_str(), "re");
  if (made == nullptr) Check("popen", absl::InternalError(command));
  std::string text;
  for (int c = std::fgetc(made); c != EOF; c = std::fgetc(made)) {
    text.push_back(static_cast<char>(c));
  }
  if (::pclose(made) != 0) {
    Check(command.c_str(), absl::InternalError("failed:\n" + text));
  }
  return text;
}

// --- The peers ---------------------------------------------------------------

struct ZstdRates {
  double compress = 0;    // MB/s of uncompressed bytes, one core.
  double decompress = 0;  // Likewise.
};

ZstdRates RunZstd(const std::string& file, int level) {
  // Negative levels are --fast=N there.
  const std::string text = OutputOf(
      level < 0 ? fmt::format("zstd -b --fast={} -i1 {}", -level, file)
                : fmt::format("zstd -b{0} -e{0} -i1 {1}", level, file));
  // It writes the best so far again and again, "... (x2.7),  860.5 MB/s, 3000.1
  // MB/s", and while it still compresses, only the first rate.
  ZstdRates rates;
  for (size_t at = text.rfind("(x"); at != std::string::npos && at > 0;
       at = text.rfind("(x", at - 1)) {
    if (std::sscanf(text.c_str() + at, "(x%*f), %lf MB/s, %lf MB/s",
                    &rates.compress, &rates.decompress) == 2) {
      return rates;
    }
  }
  Check("zstd -b", absl::InternalError("did not say how fast:\n" + text));
  return rates;
}

// The same on every core at once, summed.
ZstdRates RunZstdOnAllCores(const std::string& file, int level, int cores) {
  std::vector<ZstdRates> each(static_cast<size_t>(cores));
  {
    std::vector<std::jthread> threads;
    threads.reserve(each.size());
    for (ZstdRates& one : each) {
      threads.emplace_back([&] { one = RunZstd(file, level); });
    }
  }
  ZstdRates sum;
  for (const ZstdRates& one : each) {
    sum.compress += one.compress;
    sum.decompress += one.decompress;
  }
  return sum;
}

// MB/s of the file's bytes.
double RunFio(const std::string& file, bool write) {
  const std::string text = OutputOf(fmt::format(
      "fio --name=peer --filename={} --size={} --rw={} --bs=1M --direct=1 "
      "--ioengine=libaio --iodepth=16 --output-format=terse "
      "--terse-version=3",
      file, kFioBytes, write ? "write" : "read"));
  // Fields of the terse line, of the format's version and fio's before: the
  // rates in KiB/s.
  const size_t field = write ? 47 : 6;
  size_t at = text.find("3;fio");
  for (size_t i = 0; i < field && at != std::string::npos; ++i) {
    at = text.find(';', at);
    if (at != std::string::npos) ++at;
  }
  double kib = 0;
  if (at == std::string::npos ||
      std::sscanf(text.c_str() + at, "%lf", &kib) != 1 || kib <= 0) {
    Check("fio", absl::InternalError("did not say how fast:\n" + text));
  }
  return kib * 1024 / kMega;
}

// --- The guest's memory ------------------------------------------------------

// A guest's RAM as it is when it is stored: anonymous small pages, of which
// only those that are not zero were touched.
class GuestRam {
 public:
  GuestRam(const snapshot::SnapshotReader& saved, snapshot::WorkerPool* pool)
      : sections_(saved.sections()),
        bytes_(saved.ram_bytes()),
        own_(snapshot::RangesOf(saved.index(), snapshot::PageKind::kStored)) {
    void* const at = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) Check("mmap", ErrnoError(errno, "mmap"));
    // Of no consequence where the kernel has no huge pages.
    ::madvise(at, bytes_, MADV_NOHUGEPAGE);
    memory_ = static_cast<uint8_t*>(at);
    Check("read the saved guest",
          saved.ReadAll({memory_, bytes_}, {.pool = pool}));
    for (const PageRange& range : own_) own_bytes_ += range.length;
  }
  ~GuestRam() { ::munmap(memory_, bytes_); }
  GuestRam(const GuestRam&) = delete;
  GuestRam& operator=(const GuestRam&) = delete;

  const std::vector<PageRange>& own() const { return own_; }
  // Of pages that are not zero.
  uint64_t own_bytes() const { return own_bytes_; }
  uint64_t size() const { return bytes_; }
  snapshot::SnapshotContent Content(std::span<const PageRange> changed) const {
    snapshot::SnapshotContent content;
    content.sections = sections_;
    content.memory = {memory_, bytes_};
    content.changed = changed;
    return content;
  }
  // The own pages, one after the other.
  void WriteTo(const std::string& path) const {
    std::ofstream out(path, std::ios::binary);
    for (const PageRange& range : own_) {
      out.write(reinterpret_cast<const char*>(memory_ + range.offset),
                static_cast<std::streamsize>(range.length));
    }
    out.flush();
    if (!out) Check(path.c_str(), absl::InternalError("cannot write"));
  }
  // Writes eight random bytes into every 100th own page; returns the pages.
  std::vector<PageRange> TouchOnePercent() {
    std::vector<PageRange> touched;
    uint64_t count = 0;
    for (const PageRange& range : own_) {
      for (uint64_t at = range.offset; at < range.offset + range.length;
           at += kPage) {
        if (count++ % 100 != 0) continue;
        const auto random = OrDie("random", base::RandomBytes<8>());
        std::memcpy(memory_ + at + 2048, random.data(), random.size());
        touched.push_back({.offset = at, .length = kPage});
      }
    }
    return touched;
  }

 private:
  const std::vector<state::SavedSection> sections_;
  const uint64_t bytes_;
  const std::vector<PageRange> own_;
  uint64_t own_bytes_ = 0;
  uint8_t* memory_ = nullptr;
};

// --- Ours --------------------------------------------------------------------

class StoredMemory {
 public:
  StoredMemory(const std::string& guest, Report& report)
      : report_(report),
        pool_(OrDie("worker pool", snapshot::WorkerPool::Create(0))),
        cores_(static_cast<int>(pool_->threads())) {
    const auto saved =
        OrDie("saved guest", snapshot::SnapshotReader::Open(guest));
    if (saved->parent().has_value()) {
      Check(guest.c_str(), absl::FailedPreconditionError("has a parent"));
    }
    ram_ = std::make_unique<GuestRam>(*saved, pool_.get());
    ram_->WriteTo(room_ / "own");
    std::ifstream in(guest + "/resident");
    if (!(in >> resident_)) {
      Check((guest + "/resident").c_str(), absl::NotFoundError("no number"));
    }
  }

  void Run() {
    for (int i = 0; i < report_.options().samples; ++i) Round();
    Summary();
  }

 private:
  double own_bytes() const { return static_cast<double>(ram_->own_bytes()); }
  void Round();
  snapshot::WrittenSnapshot Write(const std::string& directory,
                                  const snapshot::SnapshotContent& content);
  void Read(const std::string& directory, const char* metric);
  void Image();
  void FillTemplate();
  void Second(const std::string& first,
              const snapshot::WrittenSnapshot& written);
  void Summary();

  Report& report_;
  const Room room_;
  const int level_ = HostOptions().compression_level;
  const std::unique_ptr<snapshot::WorkerPool> pool_;
  const int cores_;
  std::unique_ptr<GuestRam> ram_;
  double resident_ = 0;
  uint64_t first_bytes_ = 0;
  uint64_t image_bytes_ = 0;
};

snapshot::WrittenSnapshot StoredMemory::Write(
    const std::string& directory, const snapshot::SnapshotContent& content) {
  fs::remove_all(directory);
  fs::create_directory(directory);
  return OrDie("write",
               snapshot::WriteSnapshot(directory, content,
                                       {.pool = pool_.get(), .level = level_}));
}

void StoredMemory::Read(const std::string& directory, const char* metric) {
  DropFromCache(directory);
  const auto start = Clock::now();
  const auto loaded =
      OrDie("read", vmm::GuestTemplate::Load(directory,
                                             vmm::GuestTemplate::Role::kImage,
                                             nullptr, {.pool = pool_.get()}));
  const double seconds = SecondsSince(start);
  if (loaded->own_bytes() == 0) Check("read", absl::InternalError("no pages"));
  report_.Add(metric, "MB/s", own_bytes() / seconds / kMega);
}

// The same memory as the guest of an image is stored.
void StoredMemory::Image() {
  const std::string directory = room_ / "image";
  fs::remove_all(directory);
  fs::create_directory(directory);
  const auto start = Clock::now();
  const auto written = OrDie(
      "write",
      snapshot::WriteSnapshot(directory, ram_->Content(ram_->own()),
                              {.pool = pool_.get(),
                               .level = std::max(level_, snapshot::kImageLevel),
                               .frame_pages = snapshot::kImageFramePages}));
  report_.Add("snapshot/image/write", "MB/s",
              own_bytes() / SecondsSince(start) / kMega);
  image_bytes_ = written.written_bytes;
  Read(directory, "snapshot/image/read");
}

// What the kernel takes to give a template its pages, with nothing to read or
// to decompress: the least that any reader pays for memory that guests share.
void StoredMemory::FillTemplate() {
  // Runs of the size of a frame, dealt out to the cores.
  std::vector<PageRange> runs;
  constexpr uint64_t kRun = snapshot::kFramePages * kPage;
  for (const PageRange& range : ram_->own()) {
    for (uint64_t at = 0; at < range.length; at += kRun) {
      runs.push_back({.offset = range.offset + at,
                      .length = std::min(kRun, range.length - at)});
    }
  }
  const std::vector<uint8_t> bytes(kRun, uint8_t{0x5a});
  const auto start = Clock::now();
  const auto file =
      OrDie("memfd", memory::MemoryFile::Create("catnap-bench", ram_->size()));
  const auto filler = OrDie("filler", memory::PageFiller::Create(file.get()));
  {
    std::vector<std::jthread> threads;
    threads.reserve(static_cast<size_t>(cores_));
    for (int core = 0; core < cores_; ++core) {
      threads.emplace_back([&, core] {
        for (auto i = static_cast<size_t>(core); i < runs.size();
             i += static_cast<size_t>(cores_)) {
          Check("fill", filler.Put(runs[i], bytes.data()));
        }
      });
    }
  }
  report_.Add("snapshot/read/template_pages", "MB/s",
              own_bytes() / SecondsSince(start) / kMega);
}

void StoredMemory::Second(const std::string& first,
                          const snapshot::WrittenSnapshot& written) {
  const std::vector<PageRange> touched = ram_->TouchOnePercent();
  snapshot::SnapshotContent content = ram_->Content(touched);
  content.base =
      snapshot::BaseSnapshot{.index = &written.index, .directory = first};
  const auto start = Clock::now();
  const auto second = Write(room_ / "second", content);
  report_.AddMicros("suspend/second", Clock::now() - start);
  report_.Add("suspend/second_bytes", "bytes",
              static_cast<double>(second.written_bytes));
}

void StoredMemory::Round() {
  const ZstdRates zstd = RunZstd(room_ / "own", level_);
  const ZstdRates all = RunZstdOnAllCores(room_ / "own", level_, cores_);
  report_.Add("snapshot/write/zstd_one_core", "MB/s", zstd.compress);
  report_.Add("snapshot/write/zstd_all_cores", "MB/s", all.compress);
  report_.Add("snapshot/read/zstd_one_core", "MB/s", zstd.decompress);
  report_.Add("snapshot/read/zstd_all_cores", "MB/s", all.decompress);

  const std::string fio = room_ / "fio";
  report_.Add("snapshot/write/fio", "MB/s", RunFio(fio, /*write=*/true));
  const std::string first = room_ / "first";
  const snapshot::SnapshotContent content = ram_->Content(ram_->own());
  const auto start = Clock::now();
  const auto written = Write(first, content);
  report_.Add("snapshot/write", "MB/s",
              own_bytes() / SecondsSince(start) / kMega);
  first_bytes_ = written.written_bytes;

  report_.Add("snapshot/read/fio", "MB/s", RunFio(fio, /*write=*/false));
  fs::remove(fio);
  FillTemplate();
  Read(first, "snapshot/read");
  Image();
  Second(first, written);
}

void StoredMemory::Summary() {
  const double ratio = own_bytes() / static_cast<double>(first_bytes_);
  report_.Add("snapshot/own_bytes", "bytes", own_bytes());
  report_.Add("snapshot/resident_bytes", "bytes", resident_);
  report_.Add("snapshot/stored_bytes", "bytes",
              static_cast<double>(first_bytes_));
  report_.Add("snapshot/image/stored_bytes", "bytes",
              static_cast<double>(image_bytes_));
  report_.Add("snapshot/stored_ratio", "ratio",
              resident_ / static_cast<double>(image_bytes_));
  report_.Add("snapshot/image/own_to_stored", "ratio",
              own_bytes() / static_cast<double>(image_bytes_));
  report_.Add("snapshot/own_to_stored", "ratio", ratio);
  for (const char* way : {"write", "read"}) {
    const std::string name = fmt::format("snapshot/{}", way);
    const double zstd = report_.Median(name + "/zstd_one_core") * cores_;
    const double disk = report_.Median(name + "/fio") * ratio;
    report_.Add(name + "_vs_limit", "ratio",
                report_.Median(name) / std::min(zstd, disk));
  }
  report_.Add("snapshot/write_vs_all_cores", "ratio",
              report_.Median("snapshot/write") /
                  report_.Median("snapshot/write/zstd_all_cores"));
  // Decompressing and allocating one after the other, on all cores.
  const double floor = 1 / (1 / report_.Median("snapshot/read/zstd_all_cores") +
                            1 / report_.Median("snapshot/read/template_pages"));
  report_.Add("snapshot/read_vs_floor", "ratio",
              report_.Median("snapshot/read") / floor);
  report_.Add("suspend/second_bytes_ratio", "ratio",
              report_.Median("suspend/second_bytes") /
                  static_cast<double>(first_bytes_));
}

}  // namespace

void MeasureStoredMemory(const std::string& guest, Report& report) {
  StoredMemory(guest, report).Run();
}

}  // namespace catnap::bench
