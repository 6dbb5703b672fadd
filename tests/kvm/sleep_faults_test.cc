// A host program that is killed, or whose files fail, while it suspends or
// resumes a MicroVM: the next one finds the old or the new state, whole.
//
// A test is a chain of lives: processes that open the state directory, resume
// the MicroVM, compare every byte with what its guest must have written, let it
// run on and suspend it, and to which something happens on the way. Who starts
// them has no threads, so that it can fork, and no Host.
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <catch2/catch.hpp>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/status.h"
#include "catnap/catnap.h"
#include "memory/userfault.h"
#include "runtime/host_core.h"
#include "support/syscall_faults.h"
#include "support/temporary_directory.h"
#include "support/writer_factory.h"

namespace catnap {
namespace {

using test::Fault;
using test::WriterFactory;
using test::WriterProgress;

constexpr char kId[] = "writer";
constexpr char kOther[] = "other";

enum class Phase { kSuspend, kResume, kAwake };

struct LifeOptions {
  Phase phase = Phase::kSuspend;  // Where faults come.
  bool rest = true;    // The guest rests meanwhile, between two steps.
  bool plain = false;  // Without io_uring.
  // The call that had the fault may not fail.
  bool must_succeed = false;
  // After a fault the disk may be of no more use, until the next life.
  bool disk_may_fail = false;
  // Another MicroVM runs beside it, and tells of its steps.
  bool other = false;
  // What it wakes with is read when it is touched.
  bool lazy = false;
  uint32_t steps = 6;  // Of the guest, between its wake and its sleep.
};

// What a life tells who started it: memory that both have, so that to tell is
// no system call.
struct Report {
  static constexpr int kMostStates = 8;
  std::atomic<int> woken{0};           // How often it was.
  std::atomic<int> slept{0};           // Of these kMostStates are told.
  std::atomic<bool> published{false};  // The last one, for certain.
  std::atomic<bool> refused{false};    // The call with the fault failed.
  std::atomic<bool> disk_failed{false};
  std::atomic<uint32_t> other_steps{0};
  WriterProgress woken_at;
  std::array<WriterProgress, kMostStates> slept_at;
};

// --- One life ----------------------------------------------------------------

class Life {
 public:
  Life(std::filesystem::path state, LifeOptions options, Report* report,
       test::FaultGate* gate)
      : state_(std::move(state)),
        options_(options),
        report_(*report),
        gate_(*gate) {}

  // In a child process.
  absl::Status Run() {
    if (options_.plain && !test::RefuseIoUring()) {
      return ErrnoError(errno, "refuse io_uring");
    }
    CATNAP_RETURN_IF_ERROR(OpenHost());
    CATNAP_RETURN_IF_ERROR(WakeUp());
    if (options_.other) CATNAP_RETURN_IF_ERROR(StartOther());
    if (options_.phase == Phase::kAwake) {
      gate_.Begin();
      CATNAP_RETURN_IF_ERROR(test::LetRest(
          factory_->machine(kId)->machine().memory(), /*rest=*/false));
    }
    // Its first writes may come before the gate's end, and fail.
    if (absl::Status ran = RunOn(); !ran.ok()) return OnNoSteps(ran);
    if (options_.phase == Phase::kAwake) gate_.End();
    if (options_.phase == Phase::kSuspend) {
      if (options_.rest) CATNAP_RETURN_IF_ERROR(Rest());
      gate_.Begin();
    }
    const absl::Status slept = vm_.Suspend();
    gate_.End();
    if (!slept.ok()) {
      CATNAP_RETURN_IF_ERROR(OnRefusal(slept, MicroVMState::kRunning));
      if (absl::Status went = GoOn(); !went.ok()) return OnNoSteps(went);
    }
    report_.published = true;
    return absl::OkStatus();
  }

 private:
  absl::Status OpenHost() {
    auto core = runtime::HostCore::Open(
        {.state_dir = state_}, [this](base::Clock* clock) {
          WriterFactory::Hooks hooks;
          hooks.on_woken = [this](runtime::RunningMachine& machine) {
            return OnWoken(machine);
          };
          if (options_.lazy) hooks.prefetch = vmm::Prefetch::kLazy;
          hooks.on_standing = [this](runtime::RunningMachine& machine) {
            return OnStanding(machine);
          };
          auto factory =
              std::make_unique<WriterFactory>(clock, std::move(hooks));
          factory_ = factory.get();
          return factory;
        });
    CATNAP_RETURN_IF_ERROR(core.status());
    host_ = runtime::HostCore::MakeHost(*std::move(core));
    return absl::OkStatus();
  }

  absl::Status WakeUp() {
    if (auto vm = host_->GetMicroVM(kId); vm.ok()) {
      vm_ = *std::move(vm);
    } else {
      CATNAP_ASSIGN_OR_RETURN(const Image image,
                              host_->GetImage(test::kWriterImage));
      RunOptions run;
      run.id = kId;
      run.after_crash = AfterCrash::kLastCheckpoint;
      CATNAP_ASSIGN_OR_RETURN(vm_, MicroVM::Run(*host_, image, run));
      return absl::OkStatus();
    }
    if (options_.phase == Phase::kResume) gate_.Begin();
    const absl::Status woken = vm_.Resume();
    gate_.End();
    if (woken.ok()) return absl::OkStatus();
    CATNAP_RETURN_IF_ERROR(OnRefusal(woken, MicroVMState::kSuspended));
    return AddContext(vm_.Resume(), "another Resume() after the fault");
  }

  // Its steps are told until this process ends.
  absl::Status StartOther() {
    CATNAP_ASSIGN_OR_RETURN(const Image image,
                            host_->GetImage(test::kWriterImage));
    RunOptions run;
    run.id = kOther;
    run.durability = Durability::kEphemeral;
    CATNAP_RETURN_IF_ERROR(MicroVM::Run(*host_, image, run).status());
    std::thread([this, machine = factory_->machine(kOther)] {
      for (;;) {
        const auto at = test::ProgressOf(machine->machine().memory());
        if (at.ok()) report_.other_steps = at->done;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }).detach();
    return absl::OkStatus();
  }

  absl::Status OnWoken(runtime::RunningMachine& machine) {
    // To compare its memory is to touch it. It rests until faults come.
    if (options_.lazy) return absl::OkStatus();
    CATNAP_ASSIGN_OR_RETURN(
        const WriterProgress at,
        test::CheckWriter(machine.machine().memory(), machine.root().get(),
                          /*whole=*/true));
    // Later ones are another MicroVM, or of a suspend that was not recorded.
    if (report_.woken++ == 0) report_.woken_at = at;
    return test::LetRest(machine.machine().memory(), false);
  }

  absl::Status OnStanding(runtime::RunningMachine& machine) {
    CATNAP_RETURN_IF_ERROR(machine.machine().Save().status());
    CATNAP_ASSIGN_OR_RETURN(
        const WriterProgress at,
        test::CheckWriter(machine.machine().memory(), machine.root().get(),
                          /*whole=*/false));
    const int number = report_.slept;
    if (number >= Report::kMostStates) {
      return absl::InternalError("suspended too often");
    }
    report_.slept_at[static_cast<size_t>(number)] = at;
    report_.slept = number + 1;
    return absl::OkStatus();
  }

  absl::Status OnRefusal(const absl::Status& why, MicroVMState wanted) {
    report_.refused = true;
    if (options_.must_succeed) {
      return AddContext(why, "what must succeed failed");
    }
    if (vm_.state() != wanted) {
      return AddContext(why, "it left the MicroVM in another state");
    }
    return absl::OkStatus();
  }

  absl::Status Rest() {
    const auto machine = factory_->machine(kId);
    CATNAP_RETURN_IF_ERROR(
        test::LetRest(machine->machine().memory(), /*rest=*/true));
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::minutes(1);
    while (std::chrono::steady_clock::now() < until) {
      CATNAP_ASSIGN_OR_RETURN(const WriterProgress before,
                              test::ProgressOf(machine->machine().memory()));
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      CATNAP_ASSIGN_OR_RETURN(const WriterProgress after,
                              test::ProgressOf(machine->machine().memory()));
      if (before == after && after.begun == after.done) {
        return absl::OkStatus();
      }
    }
    return absl::DeadlineExceededError("the guest does not rest");
  }

  // It does not go on. What an error of the disk may do: the guest sees it, or
  // the disk says so. What is stored stays.
  absl::Status OnNoSteps(const absl::Status& why) {
    if (!options_.disk_may_fail) return why;
    report_.disk_failed = true;
    return absl::OkStatus();
  }

  absl::Status RunOn() { return RunSteps(options_.steps); }

  absl::Status RunSteps(uint32_t steps) {
    const auto machine = factory_->machine(kId);
    if (machine == nullptr) return absl::InternalError("it has no machine");
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::minutes(1);
    CATNAP_ASSIGN_OR_RETURN(const WriterProgress before,
                            test::ProgressOf(machine->machine().memory()));
    for (WriterProgress after = before; after.done < before.done + steps;) {
      CATNAP_ASSIGN_OR_RETURN(const bool failed,
                              test::HasFailed(machine->machine().memory()));
      if (failed) return absl::DataLossError("its disk failed");
      if (std::chrono::steady_clock::now() > until) {
        return absl::DeadlineExceededError("the guest does not go on");
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      CATNAP_ASSIGN_OR_RETURN(after,
                              test::ProgressOf(machine->machine().memory()));
    }
    return absl::OkStatus();
  }

  // A suspend that failed has left it as it was.
  absl::Status GoOn() {
    const auto machine = factory_->machine(kId);
    if (machine == nullptr) return absl::InternalError("it has no machine");
    CATNAP_RETURN_IF_ERROR(
        test::LetRest(machine->machine().memory(), /*rest=*/false));
    CATNAP_RETURN_IF_ERROR(RunSteps(6));
    return AddContext(vm_.Suspend(), "another Suspend() after the fault");
  }

  const std::filesystem::path state_;
  const LifeOptions options_;
  Report& report_;
  test::FaultGate& gate_;
  WriterFactory* factory_ = nullptr;
  std::shared_ptr<Host> host_;
  MicroVM vm_;
};

// --- Chains of lives ---------------------------------------------------------

class Chain {
 public:
  Chain() {
    const absl::Status made = test::MakeWriterImage(state_ / "images");
    INFO(made.ToString());
    REQUIRE(made.ok());
    Begin({});
  }

  // One more life; says how it ended.
  test::FaultEnd Begin(const LifeOptions& options, test::FaultPlan plan = {}) {
    test::Shared<Report> report;
    // Held until another MicroVM has gone on.
    uint32_t from = 0;
    plan.release = [&report, from]() mutable {
      if (from == 0) from = report->other_steps + 1;
      return report->other_steps > from + 20;
    };
    std::string error;
    const auto end = test::LiveWithFaults(
        std::move(plan),
        [&](test::FaultGate& gate) {
          // Its end is the process's: nothing is closed or put away.
          return std::make_unique<Life>(state_, options, &*report, &gate)
              .release()
              ->Run();
        },
        &error);
    INFO(end.status().ToString() << "; " << error);
    REQUIRE(end.ok());
    Judge(options, *end, *report);
    return *end;
  }

  const std::filesystem::path& state() const { return state_; }
  // How many lives after a kill woke from the state before, and the new one.
  int old_states = 0;
  int new_states = 0;
  int refused = 0;
  int failed_disks = 0;

 private:
  void Judge(const LifeOptions& options, const test::FaultEnd& end,
             Report& report) {
    INFO("fault at " << end.where);
    const bool killed =
        WIFSIGNALED(end.status) && WTERMSIG(end.status) == SIGKILL;
    REQUIRE(
        (killed || (WIFEXITED(end.status) && WEXITSTATUS(end.status) == 0)));
    if (report.woken > 0 && !states_.empty()) {
      INFO("woke at " << report.woken_at.begun << ", " << report.woken_at.done);
      const auto at =
          std::find(states_.begin(), states_.end(), report.woken_at);
      REQUIRE(at != states_.end());
      if (after_kill_) ++(at == states_.begin() ? old_states : new_states);
      after_kill_ = false;
      states_ = {report.woken_at};
    }
    after_kill_ = after_kill_ || killed;
    if (report.refused) ++refused;
    if (report.disk_failed) {
      // What was to be synced may be lost, whatever the error. Else only a
      // write of the guest itself fails, which may come before a resume has
      // ended.
      if (options.phase == Phase::kResume &&
          end.where.find("pwritev") != std::string::npos) {
        CHECK_THAT(end.where, Catch::EndsWith(".layer"));
      } else {
        CHECK_THAT(end.where, Catch::Contains("fdatasync"));
      }
      CHECK_THAT(end.where, Catch::Contains("/live/"));
      ++failed_disks;
    }
    const int slept = std::min<int>(report.slept, Report::kMostStates);
    for (int i = 0; i < slept; ++i) {
      states_.push_back(report.slept_at[static_cast<size_t>(i)]);
    }
    // It said that it sleeps: there is no way back.
    if (report.published) states_.erase(states_.begin(), states_.end() - 1);
  }

  const test::TemporaryDirectory directory_;
  const std::filesystem::path state_ =
      std::filesystem::canonical(directory_.path()) / "state";
  // What the next life may find, the oldest first.
  std::vector<WriterProgress> states_;
  bool after_kill_ = false;  // Nobody saw how far the last life came.
};

// Steps a fault through the calls of a phase, by `stride`, until three lives in
// a row saw the end of it. Says how many had the fault.
int Step(Chain& chain, const LifeOptions& options, test::FaultPlan plan,
         uint64_t first, uint64_t stride) {
  int faults = 0;
  int whole = 0;
  for (plan.at = first; whole < 3; plan.at += stride) {
    CAPTURE(plan.at);
    const test::FaultEnd end = chain.Begin(options, plan);
    if (end.hit) {
      ++faults;
      whole = 0;
    } else {
      ++whole;
    }
  }
  return faults;
}

// Nothing of what was given up stays.
void CheckTidy(Chain& chain) {
  chain.Begin({});
  std::vector<std::string> names;
  for (const auto& entry :
       std::filesystem::directory_iterator(chain.state() / "vms" / kId)) {
    names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  CAPTURE(names);
  REQUIRE(names.size() == 3);
  CHECK(names[0] == "live");
  CHECK(names[1].front() == 's');
  CHECK(names[2] == "vm.catnap");
}

void KillAtSuspend(uint64_t stride, int at_random) {
  Chain chain;
  const int points =
      Step(chain, {}, {.fault = Fault::kKill}, /*first=*/1, stride);
  CHECK(points > 0);
  CHECK(chain.old_states > 0);
  // Only the last few calls come after the state was published.
  CHECK((chain.new_states > 0 || stride > 1));
  // While the guest writes, and at resumes; how many calls these make is known
  // when they are counted.
  std::mt19937_64 random(1);
  for (const Phase phase : {Phase::kSuspend, Phase::kResume}) {
    const LifeOptions options{.phase = phase, .rest = false};
    const uint64_t calls = chain.Begin(options).calls;
    REQUIRE(calls > 0);
    for (int i = 0; i < at_random; ++i) {
      CAPTURE(i, phase);
      chain.Begin(options, {.fault = Fault::kKill, .at = 1 + random() % calls});
    }
  }
  CheckTidy(chain);
  WARN("killed at " << points << " calls one by one, " << 2 * at_random
                    << " at random; " << chain.old_states << " lives found the "
                    << "old state, " << chain.new_states << " the new one");
}

TEST_CASE("A kill at some calls of a suspend leaves the old or the new state") {
  KillAtSuspend(/*stride=*/23, /*at_random=*/6);
}

TEST_CASE("A kill at every call of a suspend leaves the old or the new state",
          "[stress]") {
  KillAtSuspend(/*stride=*/1, /*at_random=*/60);
}

// --- Files that fail ---------------------------------------------------------

struct FileFault {
  const char* what;
  Fault fault;
  int error;
};
constexpr FileFault kFileFaults[] = {
    {"an I/O error", Fault::kFail, EIO},
    {"a full disk", Fault::kFail, ENOSPC},
    {"a short transfer", Fault::kShorten, 0},
};

// One call on a file of the MicroVM after the other.
void FailFiles(Phase phase, uint64_t stride) {
  for (const FileFault& one : kFileFaults) {
    CAPTURE(one.what, phase);
    Chain chain;
    LifeOptions options;
    options.phase = phase;
    options.plain = true;
    options.must_succeed = one.fault == Fault::kShorten;
    options.disk_may_fail = true;
    test::FaultPlan plan;
    plan.fault = one.fault;
    plan.error = one.error;
    plan.directory = (chain.state() / "vms").string();
    const int points = Step(chain, options, plan, /*first=*/1, stride);
    CHECK(points > 0);
    if (one.fault == Fault::kFail && stride == 1) CHECK(chain.refused > 0);
    CheckTidy(chain);
    WARN((phase == Phase::kSuspend ? "suspend" : "resume")
         << ", " << one.what << ": " << points << " calls, " << chain.refused
         << " refused, " << chain.failed_disks << " disks of no more use");
  }
}

TEST_CASE("Some failed calls on files leave a MicroVM as it was") {
  FailFiles(Phase::kSuspend, /*stride=*/29);
  FailFiles(Phase::kResume, /*stride=*/67);
}

TEST_CASE("Any failed call of a suspend on a file leaves a MicroVM as it was",
          "[stress]") {
  FailFiles(Phase::kSuspend, /*stride=*/1);
}

// Which are many, and much like each other.
TEST_CASE("Every third failed call of a resume leaves a MicroVM as it was",
          "[stress]") {
  FailFiles(Phase::kResume, /*stride=*/3);
}

TEST_CASE("A file that stalls in a suspend holds up no other MicroVM") {
  // Each call on a file of the one is held until the other got on: a life that
  // waits for the call would never end.
  Chain chain;
  LifeOptions options;
  options.plain = true;
  options.other = true;
  options.must_succeed = true;
  test::FaultPlan plan;
  plan.fault = Fault::kHold;
  plan.directory = (chain.state() / "vms" / kId).string();
  const int points = Step(chain, options, plan, /*first=*/1, /*stride=*/19);
  CHECK(points > 0);
}

TEST_CASE("A store that stalls after a wake holds up no other MicroVM") {
  if (!memory::Userfault::Open().ok()) {
    WARN("nothing was looked at: userfaultfd is refused");
    return;
  }
  // Each read of memory that the one goes on from is held until the other got
  // on.
  Chain chain;
  LifeOptions options;
  options.phase = Phase::kAwake;
  options.other = true;
  options.lazy = true;
  options.steps = 400;
  test::FaultPlan plan;
  plan.fault = Fault::kHold;
  plan.directory = (chain.state() / "vms" / kId).string();
  plan.call = "\\.chunks";
  // So that all of its data is its own: some frames.
  chain.Begin({.steps = 1200});
  for (plan.at = 1; plan.at <= 2; ++plan.at) {
    CAPTURE(plan.at);
    CHECK(chain.Begin(options, plan).hit);
  }
  // Compares every byte.
  chain.Begin({});
}

}  // namespace
}  // namespace catnap
