// A host program that is killed while it suspends a MicroVM in which Python
// runs: the next one finds the old or the new state, whole. What is killed
// where, call by call, is tested with smaller guests (tests/kvm); here are the
// steps by which a state takes the other's place.
//
// The test is a chain of lives: processes that open the state directory, resume
// the MicroVM, ask the program for all that it has, let it count on and suspend
// it, and are killed meanwhile.
#include <signal.h>
#include <sys/wait.h>

#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <memory>
#include <string>

#include "base/status.h"
#include "catnap/catnap.h"
#include "linux/busybox_root.h"
#include "linux/python_guest.h"
#include "support/syscall_faults.h"

namespace catnap {
namespace {

constexpr char kId[] = "python";

using Text = std::array<char, 256>;

// What a life tells.
struct Report {
  Text woken{};  // What the program answered after the wake,
  Text slept{};  // and before it was suspended.
  std::atomic<bool> published{false};
};

void Tell(const std::string& text, Text* to) {
  text.copy(to->data(), to->size() - 1);
}

// --- One life ----------------------------------------------------------------

class Life {
 public:
  Life(std::filesystem::path state, Report* report, test::FaultGate* gate)
      : state_(std::move(state)), report_(*report), gate_(*gate) {}

  absl::Status Run() {
    // So that every use of a file is a call that names it.
    if (!test::RefuseIoUring()) return ErrnoError(errno, "refuse io_uring");
    CATNAP_ASSIGN_OR_RETURN(host_, Host::Open({.state_dir = state_}));
    CATNAP_RETURN_IF_ERROR(WakeUp());
    CATNAP_ASSIGN_OR_RETURN(const std::string woken,
                            test::AskPython(vm_, "look"));
    Tell(woken, &report_.woken);
    CATNAP_ASSIGN_OR_RETURN(const std::string next,
                            test::AskPython(vm_, "next"));
    Tell(next, &report_.slept);
    gate_.Begin();
    const absl::Status slept = vm_.Suspend();
    gate_.End();
    CATNAP_RETURN_IF_ERROR(slept);
    report_.published = true;
    return absl::OkStatus();
  }

 private:
  absl::Status WakeUp() {
    if (auto vm = host_->GetMicroVM(kId); vm.ok()) {
      vm_ = *std::move(vm);
      return vm_.Resume();
    }
    CATNAP_ASSIGN_OR_RETURN(const Image image,
                            Image::Build(*host_, test::PythonImage("python")));
    RunOptions run;
    run.id = kId;
    run.after_crash = AfterCrash::kLastCheckpoint;
    run.memory = Prefetch::kAll;  // As quick as less, here.
    CATNAP_ASSIGN_OR_RETURN(vm_, MicroVM::Run(*host_, image, run));
    return absl::OkStatus();
  }

  const std::filesystem::path state_;
  Report& report_;
  test::FaultGate& gate_;
  std::shared_ptr<Host> host_;
  MicroVM vm_;
};

// --- The chain ---------------------------------------------------------------

class Chain {
 public:
  // One more life; says how it ended.
  test::FaultEnd Begin(const test::FaultPlan& plan) {
    test::Shared<Report> report;
    std::string error;
    const auto end = test::LiveWithFaults(
        plan,
        [&](test::FaultGate& gate) {
          // Its end is the process's: nothing is closed or put away.
          return std::make_unique<Life>(state_, &*report, &gate)
              .release()
              ->Run();
        },
        &error);
    INFO(end.status().ToString() << "; " << error);
    REQUIRE(end.ok());
    INFO("killed at " << end->where);
    const bool killed =
        WIFSIGNALED(end->status) && WTERMSIG(end->status) == SIGKILL;
    REQUIRE(killed == end->hit);
    if (!killed) {
      REQUIRE(WIFEXITED(end->status));
      REQUIRE(WEXITSTATUS(end->status) == 0);
    }
    Judge(*report);
    return *end;
  }

  const std::filesystem::path& state() const { return state_; }
  // Which the last life woke from.
  bool woke_from_new() const { return woke_from_new_; }

 private:
  void Judge(Report& report) {
    const std::string woken = report.woken.data();
    INFO("old: " << old_ << "; new: " << new_ << "; woken: " << woken);
    REQUIRE(test::IsConsistent(woken));
    if (!old_.empty()) {
      REQUIRE((woken == old_ || woken == new_));
      woke_from_new_ = woken == new_;
      // It said that it sleeps: there is no way back.
      if (published_) REQUIRE(woke_from_new_);
    }
    old_ = woken;
    new_ = report.slept.data();
    published_ = report.published;
  }

  test::RoomForFiles files_;
  const std::filesystem::path state_ =
      std::filesystem::canonical(files_.path()) / "state";
  // What the next life may find.
  std::string old_, new_;
  bool published_ = false;
  bool woke_from_new_ = false;
};

// A call before which it is killed, and what the next life must find: the state
// is the new one from the instant on at which the record gets its name.
struct KillPoint {
  const char* what;
  const char* call;
  bool is_new;
  uint64_t at = 1;
};
constexpr KillPoint kKillPoints[] = {
    {"nothing is there", R"(^mkdir .*/\.new-s\d+$)", false},
    {"the next layer gets its name", R"(^renameat .*/live/disk/)", false},
    {"the guest flushes", R"(^fdatasync .*/live/disk/.*\.layer$)", false},
    {"layers are linked", R"(^link .*/live/disk/.*\.layer$)", false},
    {"pages are written", R"(^pwrite64 .*/\.new-s\d+/.*\.chunks$)", false},
    {"more of them", R"(^pwrite64 .*/\.new-s\d+/.*\.chunks$)", false, 2},
    {"pages are synced", R"(^fsync .*/\.new-s\d+/.*\.chunks$)", false},
    {"older pages are linked", R"(^linkat .*/s\d+/.*\.chunks$)", false},
    {"the index is written", R"(^pwrite64 .*/memory\.catnap$)", false},
    {"the index is synced", R"(^fsync .*/memory\.catnap$)", false},
    {"the snapshot is synced", R"(^fsync .*/\.new-s\d+$)", false, 3},
    {"it gets its name", R"(^rename .*/\.new-s\d+$)", false},
    {"its name is synced", R"(^fsync .*/python$)", false},
    {"the record is written", R"(^pwrite64 .*/python/\.catnap-)", false},
    {"the record is synced", R"(^fsync .*/python/\.catnap-)", false},
    {"the record gets its name", R"(^renameat .*/python/\.catnap-)", false},
    {"its name is synced", R"(^fsync .*/python$)", true, 2},
    {"the mark goes", R"(^unlink .*/awake-\d+$)", true},
    {"the old snapshot goes", R"(^unlinkat .*/s\d+/.*\.chunks$)", true},
    {"its directory goes", R"(^rmdir .*/s\d+$)", true},
};

TEST_CASE("A Python guest lives through kills at each step of its suspend") {
  Chain chain;
  chain.Begin({});
  const KillPoint* last = nullptr;
  for (const KillPoint& point : kKillPoints) {
    CAPTURE(point.what, point.call);
    const test::FaultEnd end =
        chain.Begin({.fault = test::Fault::kKill,
                     .at = point.at,
                     .directory = (chain.state() / "vms" / kId).string(),
                     .call = point.call});
    REQUIRE(end.hit);
    if (last != nullptr) {
      INFO("the life before: " << last->what);
      CHECK(chain.woke_from_new() == last->is_new);
    }
    last = &point;
  }
  // Whom nothing happens to.
  chain.Begin({});
  CHECK(chain.woke_from_new() == last->is_new);
}

}  // namespace
}  // namespace catnap
