// Forks of a tiny guest with a disk, a network device and vsock, 512 MiB of
// memory and no work of its own, by MicroVM::Fork() as a user calls it, on any
// KVM. README.md says what the clocks cover.
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "catnap/catnap.h"
#include "harness.h"
#include "peers/floor_run.h"
#include "runtime/host_core.h"
#include "support/temporary_directory.h"
#include "support/tiny_guest.h"
#include "support/writer_factory.h"
#include "vmm/shell_pool.h"

namespace {

using catnap::MicroVM;
using catnap::bench::Check;
using catnap::bench::Report;
using catnap::test::WriterFactory;
using Clock = std::chrono::steady_clock;

constexpr int kDefaultSamples = 10;
constexpr uint64_t kMemoryBytes = uint64_t{512} << 20;
constexpr uint64_t kOwnBytes = uint64_t{100} << 20;
// The guest itself has nothing from there on.
constexpr uint64_t kOwnStart = uint64_t{16} << 20;
constexpr uint64_t kPageBytes = 4096;
constexpr int kDevicePages = 3;  // Disk, network, vsock.
constexpr auto kLatest = std::chrono::seconds(30);

struct Case {
  const char* name;
  int forks;
  bool pool;           // As many shells wait as there are forks.
  uint64_t own_bytes;  // That the guest wrote since its image.
};
constexpr Case kCases[] = {
    {"fork/10_wall", 10, true, 0},
    {"fork/100_wall", 100, true, 0},
    {"fork/100_wall_empty_pool", 100, false, 0},
    {"fork/10_wall_100MiB_own", 10, true, kOwnBytes},
};

// Whether the filter names another one, which spares this one's time.
bool IsLeftOut(const Case& one, const std::string& filter) {
  const auto named = [&filter](const Case& other) {
    return filter.rfind(other.name, 0) == 0;
  };
  if (filter.empty() ||
      std::none_of(std::begin(kCases), std::end(kCases), named)) {
    return false;
  }
  // Names begin with others': the longest that fits is meant.
  const std::string name = one.name;
  return filter.rfind(name, 0) != 0 ||
         std::any_of(std::begin(kCases), std::end(kCases),
                     [&](const Case& other) {
                       return name.size() < std::string(other.name).size() &&
                              named(other);
                     });
}

// What was destroyed before goes on in the kernel for a while.
void Settle() { std::this_thread::sleep_for(std::chrono::milliseconds(200)); }

// A Host of its own, so that nothing waits in its pool that was not asked for.
class Bench {
 public:
  Bench(const std::filesystem::path& images, const Case& one) : one_(one) {
    catnap::HostOptions options;
    options.state_dir = state_.path();
    options.image_dir = images;
    auto core = catnap::runtime::HostCore::Open(
        std::move(options), [this](catnap::base::Clock* clock) {
          auto factory = std::make_unique<WriterFactory>(
              clock, WriterFactory::Hooks{}, catnap::vmm::ShellPool::Options{});
          factory_ = factory.get();
          return factory;
        });
    Check("open the Host", core.status());
    host_ = catnap::runtime::HostCore::MakeHost(*std::move(core));
    auto image = host_->GetImage(catnap::test::kWriterImage);
    Check("get the image", image.status());
    auto parent = MicroVM::Run(*host_, *image, {.id = "parent"});
    Check("run the parent", parent.status());
    parent_ = *std::move(parent);
    WaitUntilRests();
    if (one.pool) Check("prewarm", host_->Prewarm(*image, one.forks));
    factory_->WaitIdle();
  }
  ~Bench() {
    Check("close", host_->Close({.running = catnap::AtClose::kTerminate}));
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void Measure(Report& report) {
    const std::string name = one_.name;
    WriteOwn();
    Settle();
    const uint32_t before = StepsOf("parent");
    const auto begin = Clock::now();
    const auto forks = parent_.Fork(one_.forks);
    const auto returned = Clock::now();
    Check("fork", forks.status());
    for (const MicroVM& fork : *forks) WaitForStep(fork.id(), before);
    report.AddMicros(name, Clock::now() - begin);
    report.AddMicros(name + "/handles", returned - begin);
  }

 private:
  uint32_t StepsOf(const std::string& id) {
    const auto progress = factory_->Progress(id);
    Check("look at a guest", progress.status());
    return progress->done;
  }
  void WaitForStep(const std::string& id, uint32_t before) {
    const auto latest = Clock::now() + kLatest;
    while (StepsOf(id) == before) {
      if (Clock::now() > latest)
        Check("fork", absl::DeadlineExceededError(id + " does not run"));
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  // Until it has set itself up, and halts.
  void WaitUntilRests() {
    WaitForStep("parent", 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  void WriteOwn() {
    const auto machine = factory_->machine("parent");
    for (uint64_t at = 0; at < one_.own_bytes; at += kPageBytes) {
      Check("write", machine->machine().memory().Store<uint64_t>(
                         catnap::memory::Gpa{kOwnStart + at}, at + 1));
    }
  }

  const Case& one_;
  const catnap::test::TemporaryDirectory state_;
  WriterFactory* factory_ = nullptr;  // The Host's.
  std::shared_ptr<catnap::Host> host_;
  MicroVM parent_;
};

// In µs; both by the same raw kernel calls.
struct Floor {
  double unpooled;
  double pooled;
};

Floor MeasureFloor(const catnap::test::TinyGuest& guest) {
  Settle();
  const auto run = catnap::bench::RunFloor(guest, kMemoryBytes, kDevicePages);
  return {run.shell() + run.launch(), run.launch()};
}

}  // namespace

int main(int argc, char** argv) {
  Report report(catnap::bench::ParseOptions(argc, argv, kDefaultSamples));
  catnap::bench::RaiseDescriptorLimit();
  const std::string& filter = report.options().filter;
  const auto tiny = catnap::test::MakeTinyGuest(
      catnap::test::Assembler().PowerOff(), kMemoryBytes);
  Check("make the floor's guest", tiny.status());
  const catnap::test::TemporaryDirectory images;
  Check("make the image",
        catnap::test::MakeWriterImage(
            images.path(), {.memory_bytes = kMemoryBytes, .rests = true}));
  constexpr int kFloorSamples = 5;  // A round; one is short.
  Report discarded({});
  for (int i = -1; i < report.options().samples; ++i) {
    Report& into = i < 0 ? discarded : report;
    for (int j = 0; j < kFloorSamples; ++j) {
      const Floor floor = MeasureFloor(*tiny);
      into.Add("fork/floor/unpooled_launch", "us", floor.unpooled);
      into.Add("fork/floor/pooled_launch", "us", floor.pooled);
    }
    for (const Case& one : kCases) {
      if (!IsLeftOut(one, filter)) Bench(images.path(), one).Measure(into);
    }
  }
  const double cores = std::thread::hardware_concurrency();
  const auto limit = [&](const char* name, const char* floor, int forks) {
    if (report.Median(name) == 0) return;
    const double us = forks * report.Median(floor) / cores;
    report.Add(std::string(name) + "/floor", "us", us);
    report.Add(std::string(name) + "_to_floor", "ratio",
               report.Median(name) / us);
  };
  for (const Case& one : kCases) {
    limit(one.name,
          one.pool ? "fork/floor/pooled_launch" : "fork/floor/unpooled_launch",
          one.forks);
  }
  return report.Finish();
}
