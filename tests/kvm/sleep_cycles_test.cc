// MicroVMs with real machines that are suspended and resumed again and again,
// while their guests write.
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "catnap/catnap.h"
#include "runtime/host_core.h"
#include "support/process_use.h"
#include "support/temporary_directory.h"
#include "support/writer_factory.h"

namespace catnap {
namespace {

// Sanitizers keep what was freed.
#if defined(__SANITIZE_THREAD__)
constexpr bool kGivesMemoryBack = false;
#elif defined(__has_feature)
constexpr bool kGivesMemoryBack = !__has_feature(address_sanitizer);
#else
constexpr bool kGivesMemoryBack = true;
#endif

using test::WriterFactory;
using test::WriterProgress;

// Of /proc/self/status, in KiB.
int64_t StatusOf(const std::string& name) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(name + ":", 0) == 0) {
      return std::stoll(line.substr(name.size() + 1));
    }
  }
  return -1;
}

int64_t BytesIn(const std::filesystem::path& directory) {
  int64_t bytes = 0;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) {
      bytes += static_cast<int64_t>(entry.file_size());
    }
  }
  return bytes;
}

struct Use {
  size_t descriptors = test::OpenDescriptors();
  std::vector<std::string> threads = test::OwnThreads();
  int64_t memory_kib = StatusOf("RssAnon") + StatusOf("RssShmem");
};

class Cycles {
 public:
  Cycles() {
    const absl::Status made = test::MakeWriterImage(state_ / "images");
    INFO(made.ToString());
    REQUIRE(made.ok());
    auto core = runtime::HostCore::Open(
        {.state_dir = state_}, [this](base::Clock* clock) {
          WriterFactory::Hooks hooks;
          hooks.on_woken = [this](runtime::RunningMachine& machine) {
            return Check(machine, &woken_);
          };
          hooks.on_standing =
              [this](runtime::RunningMachine& machine) -> absl::Status {
            // In full, with the request that is under way.
            CATNAP_RETURN_IF_ERROR(machine.machine().Save().status());
            return Check(machine, &slept_);
          };
          auto factory =
              std::make_unique<WriterFactory>(clock, std::move(hooks));
          factory_ = factory.get();
          return factory;
        });
    REQUIRE(core.ok());
    host_ = runtime::HostCore::MakeHost(*std::move(core));
    auto image = host_->GetImage(test::kWriterImage);
    REQUIRE(image.ok());
    auto vm = MicroVM::Run(*host_, *image, {.id = "writer"});
    INFO(vm.status().ToString());
    REQUIRE(vm.ok());
    vm_ = *std::move(vm);
  }

  void Run(int cycles) {
    for (int i = 0; i < cycles; ++i) {
      CAPTURE(i);
      // All of memory now and then: it is read page by page.
      whole_ = i % 20 == 0;
      REQUIRE(factory_->WaitForSteps("writer", 8));
      const absl::Status slept = vm_.Suspend();
      INFO(slept.ToString());
      REQUIRE(slept.ok());
      const absl::Status woken = vm_.Resume();
      INFO(woken.ToString());
      REQUIRE(woken.ok());
      REQUIRE(woken_ == slept_);
      if (i % 50 == 19) Copy();
    }
  }

  // Its memory is rebased on what a snapshot holds, and a copy runs.
  void Copy() {
    auto snapshot = vm_.TakeSnapshot();
    INFO(snapshot.status().ToString());
    REQUIRE(snapshot.ok());
    auto copy = MicroVM::Restore(*host_, *snapshot, {.id = "copy"});
    INFO(copy.status().ToString());
    REQUIRE(copy.ok());
    REQUIRE(factory_->WaitForSteps("copy", 3));
    REQUIRE(copy->Terminate().ok());
  }

  Use UseNow() {
    factory_->WaitIdle();
    return {};
  }
  int64_t stored_bytes() const { return BytesIn(state_ / "vms"); }
  uint32_t steps() const { return slept_.done; }

 private:
  absl::Status Check(runtime::RunningMachine& machine, WriterProgress* at) {
    CATNAP_ASSIGN_OR_RETURN(
        *at, test::CheckWriter(machine.machine().memory(), machine.root().get(),
                               whole_));
    return absl::OkStatus();
  }

  const test::TemporaryDirectory directory_;
  const std::filesystem::path state_ =
      std::filesystem::path(directory_.path()) / "state";
  WriterFactory* factory_ = nullptr;
  // By whoever suspends or resumes: here that is one thread.
  bool whole_ = true;
  WriterProgress woken_, slept_;
  std::shared_ptr<Host> host_;
  MicroVM vm_;
};

void SleepAndWake(int first, int cycles) {
  Cycles all;
  // Until pools, caches and the disk's merges are in their stride.
  all.Run(first);
  const Use before = all.UseNow();
  const int64_t stored = all.stored_bytes();
  all.Run(cycles);
  const Use after = all.UseNow();
  CAPTURE(before.descriptors, after.descriptors, before.threads, after.threads,
          before.memory_kib, after.memory_kib, stored, all.stored_bytes(),
          all.steps());
  // A merge of the disk's layers may run, or have ended with others left.
  CHECK(after.descriptors <= before.descriptors + 12);
  // One that is about to end, and one that merges.
  CHECK(after.threads.size() <= before.threads.size() + 2);
  if (kGivesMemoryBack) {
    CHECK(after.memory_kib <= before.memory_kib + (16 << 10));
  }
  CHECK(all.stored_bytes() <= 2 * stored + (32 << 20));
}

TEST_CASE("A guest that writes sleeps and wakes, and loses nothing") {
  SleepAndWake(/*first=*/20, /*cycles=*/40);
}

TEST_CASE("A guest that writes sleeps and wakes a thousand times", "[stress]") {
  SleepAndWake(/*first=*/100, /*cycles=*/1000);
}

}  // namespace
}  // namespace catnap
