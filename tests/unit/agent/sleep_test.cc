#include "agent/sleep.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <chrono>
#include <fstream>
#include <future>
#include <memory>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/files.h"
#include "agent/process.h"
#include "support/running_agent.h"
#include "support/temporary_directory.h"

namespace catnap::agent {
namespace {

using testing::RunningAgent;
using namespace std::chrono_literals;

constexpr const char* kFirstGeneration = "0000000000000000\n";

absl::StatusOr<FreezeReport> FreezeNow(Client* client,
                                       const FreezeOptions& options = {}) {
  std::promise<absl::StatusOr<FreezeReport>> done;
  // A busy machine's programs take long to stop.
  FreezeOptions patient = options;
  if (patient.bound == FreezeOptions().bound) patient.bound = 30s;
  Freeze(client, patient, std::nullopt,
         [&done](absl::StatusOr<FreezeReport> report) {
           done.set_value(std::move(report));
         });
  return done.get_future().get();
}
absl::Status ThawNow(Client* client) {
  std::promise<absl::Status> done;
  Thaw(client, std::nullopt,
       [&done](absl::Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}
absl::StatusOr<std::string> WakeNow(Client* client,
                                    const WakeOptions& options = {}) {
  std::promise<absl::StatusOr<std::string>> done;
  Wake(client, options, std::nullopt,
       [&done](absl::StatusOr<std::string> left_out) {
         done.set_value(std::move(left_out));
       });
  return done.get_future().get();
}

std::string Content(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// Whether the agent can freeze here; without control groups it cannot.
bool CanFreeze() {
  if (!testing::WritableCgroup().empty()) return true;
  WARN("no control groups here: freezing is tested in guests only");
  return false;
}

// A program that counts into a file for ever, in a child of a child. The file
// is in memory: who waits for a busy disk does not freeze.
class Counter {
 public:
  explicit Counter(Client* client, uint64_t timeout_ms = 0) {
    ExecRequest request;
    request.argv = {"sh", "-c",
                    "(setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i >" +
                        path_ + "; done' &) ; cat"};
    request.stdin_open = true;
    request.timeout_ms = timeout_ms;
    request.report_start = true;
    ProcessEvents events;
    // They outlive a counter whose test has failed.
    events.on_started = [told = told_](const Started& s) {
      told->started.set_value(s);
    };
    events.on_exit = [told = told_](absl::StatusOr<ExitReport> report) {
      told->ended.set_value(std::move(report));
    };
    auto process = GuestProcess::Start(client, request, std::move(events));
    REQUIRE(process.ok());
    process_ = *std::move(process);
    id_ = told_->started.get_future().get().process_id;
    while (Content(path_).empty()) std::this_thread::sleep_for(1ms);
  }
  // Soon; a busy machine gives it little time.
  bool Counts() const { return Changes(20s); }
  bool StandsStill() const { return !Changes(100ms); }
  uint64_t id() const { return id_; }
  GuestProcess* process() { return process_.get(); }
  absl::StatusOr<ExitReport> Join() { return told_->ended.get_future().get(); }

 private:
  bool Changes(std::chrono::milliseconds time) const {
    const std::string before = Content(path_);
    const auto end = std::chrono::steady_clock::now() + time;
    while (std::chrono::steady_clock::now() < end) {
      std::this_thread::sleep_for(5ms);
      if (Content(path_) != before) return true;
    }
    return false;
  }

  struct Told {
    std::promise<Started> started;
    std::promise<absl::StatusOr<ExitReport>> ended;
  };
  const test::TemporaryDirectory directory_{"/dev/shm"};
  const std::string path_ = directory_.File("count");
  const std::shared_ptr<Told> told_ = std::make_shared<Told>();
  std::shared_ptr<GuestProcess> process_;
  uint64_t id_ = 0;
};

TEST_CASE("A freeze stops all programs and a thaw lets them run on") {
  if (!CanFreeze()) return;
  RunningAgent agent(CATNAP_GUEST_AGENT);
  Counter counter(agent.client());
  CHECK(counter.Counts());
  for (int i = 0; i < 2; ++i) {
    const auto report = FreezeNow(agent.client(), {.flush = i == 1});
    INFO(report.status().ToString());
    REQUIRE(report.ok());
    CHECK(report->freeze > 0ns);
    CHECK((report->flush > 0ns) == (i == 1));
    CHECK(counter.StandsStill());
    CHECK(FreezeNow(agent.client()).ok());  // It stays so.
    CHECK(counter.StandsStill());
    CHECK(ThawNow(agent.client()).ok());
    CHECK(counter.Counts());
    CHECK(ThawNow(agent.client()).ok());
  }
  counter.process()->Kill();
  CHECK(counter.Join().status().code() == absl::StatusCode::kCancelled);
}

TEST_CASE("A frozen tree can be killed") {
  if (!CanFreeze()) return;
  RunningAgent agent(CATNAP_GUEST_AGENT);
  Counter counter(agent.client());
  REQUIRE(FreezeNow(agent.client()).ok());
  counter.process()->Kill();
  CHECK(counter.Join().status().code() == absl::StatusCode::kCancelled);
  CHECK(counter.StandsStill());
  CHECK(ThawNow(agent.client()).ok());
  CHECK(counter.StandsStill());
}

TEST_CASE("What is asked of a frozen guest waits for the thaw") {
  if (!CanFreeze()) return;
  RunningAgent agent(CATNAP_GUEST_AGENT);
  Client* const client = agent.client();
  REQUIRE(FreezeNow(client).ok());

  std::promise<absl::StatusOr<ExecOutcome>> done;
  auto outcome = done.get_future();
  ExecRequest request;
  request.argv = {"wc", "-c"};
  // More than one frame holds, so that data follows on the stream.
  request.stdin_data = std::string(100'000, 'x');
  REQUIRE(Exec(client, request, 4096, std::nullopt,
               [&done](absl::StatusOr<ExecOutcome> result) {
                 done.set_value(std::move(result));
               })
              .ok());
  std::promise<absl::StatusOr<FileEntry>> entry;
  auto found = entry.get_future();
  Stat(client, "/", std::nullopt, [&entry](absl::StatusOr<FileEntry> result) {
    entry.set_value(std::move(result));
  });
  // One that is not wanted any longer is not started.
  const test::TemporaryDirectory directory;
  const std::string mark = directory.File("mark");
  std::promise<absl::StatusOr<ExecOutcome>> gone;
  const auto cancelled =
      Exec(client, {.argv = {"touch", mark}}, 4096, std::nullopt,
           [&gone](absl::StatusOr<ExecOutcome> result) {
             gone.set_value(std::move(result));
           });
  REQUIRE(cancelled.ok());
  client->Cancel(*cancelled);
  CHECK(gone.get_future().get().status().code() ==
        absl::StatusCode::kCancelled);

  CHECK(outcome.wait_for(100ms) == std::future_status::timeout);
  CHECK(found.wait_for(0ms) == std::future_status::timeout);
  // What needs no program is answered.
  std::promise<absl::Status> ping;
  client->Ping(
      std::chrono::steady_clock::now() + 10s,
      [&ping](absl::Status status) { ping.set_value(std::move(status)); });
  CHECK(ping.get_future().get().ok());

  CHECK(ThawNow(client).ok());
  const auto result = outcome.get();
  REQUIRE(result.ok());
  CHECK(result->report.exit_code == 0);
  CHECK(result->stdout_data.find("100000") != std::string::npos);
  CHECK(found.get().ok());
  CHECK(::access(mark.c_str(), F_OK) != 0);
}

TEST_CASE("The timeout of a process does not count frozen time") {
  if (!CanFreeze()) return;
  RunningAgent agent(CATNAP_GUEST_AGENT);
  Counter counter(agent.client(), /*timeout_ms=*/2000);
  REQUIRE(FreezeNow(agent.client()).ok());
  std::this_thread::sleep_for(2500ms);
  const auto thawed = std::chrono::steady_clock::now();
  CHECK(ThawNow(agent.client()).ok());
  const auto report = counter.Join();
  REQUIRE(report.ok());
  CHECK(report->kind == ExitKind::kTimeout);
  CHECK(report->wall_ns >= 2'000'000'000);
  // What it ran before counts, what it stood still does not.
  const auto ran_on = std::chrono::steady_clock::now() - thawed;
  CHECK(ran_on > 1ms);
  CHECK(report->wall_ns < 4'400'000'000);
}

TEST_CASE("A guest whose connection ended is woken by the next one") {
  if (!CanFreeze()) return;
  const test::TemporaryDirectory directory;
  RunningAgent agent(
      CATNAP_GUEST_AGENT,
      {.run_directory = directory.File("run"), .reconnects = true});
  Counter counter(agent.client());
  REQUIRE(FreezeNow(agent.client()).ok());
  agent.Reconnect();
  CHECK(counter.Join().status().code() == absl::StatusCode::kCancelled);
  CHECK(counter.StandsStill());
  const auto woken = WakeNow(agent.client(), {.is_copy = true});
  REQUIRE(woken.ok());
  CHECK(woken->empty());
  CHECK(counter.Counts());

  // It is still known, and its stdin is at its end.
  std::promise<absl::StatusOr<ExitReport>> ended;
  ProcessEvents events;
  events.on_exit = [&ended](absl::StatusOr<ExitReport> report) {
    ended.set_value(std::move(report));
  };
  const auto attached =
      GuestProcess::Attach(agent.client(), counter.id(), std::move(events));
  REQUIRE(attached.ok());
  const auto report = ended.get_future().get();
  REQUIRE(report.ok());
  CHECK(report->kind == ExitKind::kExited);
  CHECK(report->exit_code == 0);
}

TEST_CASE("A wake changes the generation where programs see it") {
  const test::TemporaryDirectory directory;
  const std::string run = directory.File("run");
  const std::string path = run + "/generation";
  RunningAgent agent(CATNAP_GUEST_AGENT, {.run_directory = run});
  REQUIRE(WakeNow(agent.client(), {.generation = 5}).ok());
  CHECK(Content(path) == "0000000000000005\n");
  struct stat status {};
  REQUIRE(::stat(path.c_str(), &status) == 0);
  CHECK((status.st_mode & 07777) == 0644);

  const base::UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  void* const map = ::mmap(nullptr, 17, PROT_READ, MAP_SHARED, file.get(), 0);
  REQUIRE(map != MAP_FAILED);
  const base::UniqueFd watch(::inotify_init1(IN_CLOEXEC));
  REQUIRE(::inotify_add_watch(watch.get(), path.c_str(),
                              IN_MODIFY | IN_CLOSE_WRITE) >= 0);
  // The one that it has does not do, nor does none.
  REQUIRE(WakeNow(agent.client(), {.generation = 5}).ok());
  CHECK(std::string(static_cast<const char*>(map), 17) == "0000000000000006\n");
  uint32_t seen = 0;
  for (pollfd poll = {watch.get(), POLLIN, 0};
       ::poll(&poll, 1, seen == 0 ? 10'000 : 0) > 0;) {
    alignas(inotify_event) std::array<char, 4096> buffer{};
    const ssize_t got = ::read(watch.get(), buffer.data(), buffer.size());
    REQUIRE(got > 0);
    for (size_t at = 0; at < static_cast<size_t>(got);) {
      inotify_event event{};
      std::memcpy(&event, buffer.data() + at, sizeof(event));
      seen |= event.mask;
      at += sizeof(event) + event.len;
    }
  }
  CHECK((seen & IN_MODIFY) != 0);
  CHECK((seen & IN_CLOSE_WRITE) != 0);
  REQUIRE(WakeNow(agent.client()).ok());
  CHECK(Content(path) == "0000000000000007\n");
  REQUIRE(WakeNow(agent.client(), {.generation = UINT64_MAX}).ok());
  CHECK(Content(path) == "ffffffffffffffff\n");
  REQUIRE(WakeNow(agent.client()).ok());
  CHECK(Content(path) == kFirstGeneration);
  ::munmap(map, 17);
}

TEST_CASE("A wake replaces the environment's file, for a shell to read") {
  const test::TemporaryDirectory directory;
  const std::string run = directory.File("run");
  RunningAgent agent(CATNAP_GUEST_AGENT, {.run_directory = run});
  WakeOptions options;
  options.env = {"A=b c",
                 "EMPTY=",
                 "QUOTED=it's \"$A\"\nand `more`",
                 "=x",
                 "none",
                 "1A=x",
                 "A;echo run;B=x",
                 "C\necho run\nD=x"};
  REQUIRE(WakeNow(agent.client(), options).ok());
  const auto shown =
      agent.Exec({.argv = {"sh", "-c",
                           ". " + run +
                               "/env; printf '%s|' \"$A\" \"$EMPTY\" "
                               "\"$QUOTED\""}});
  REQUIRE(shown.ok());
  CHECK(shown->stdout_data == "b c||it's \"$A\"\nand `more`|");
  // What is the same stays: the file, too.
  struct stat before {};
  struct stat after {};
  REQUIRE(::stat((run + "/env").c_str(), &before) == 0);
  REQUIRE(WakeNow(agent.client()).ok());
  REQUIRE(WakeNow(agent.client(), options).ok());
  REQUIRE(::stat((run + "/env").c_str(), &after) == 0);
  CHECK(before.st_ino == after.st_ino);
  CHECK(Content(run + "/env").starts_with("A='b c'\n"));
  options.env->clear();
  REQUIRE(WakeNow(agent.client(), options).ok());
  CHECK(Content(run + "/env").empty());
}

TEST_CASE("A wake that cannot say so leaves the programs frozen") {
  if (!CanFreeze()) return;
  const test::TemporaryDirectory directory;
  RunningAgent agent(CATNAP_GUEST_AGENT,
                     {.run_directory = directory.File("no/such/run")});
  Counter counter(agent.client());
  REQUIRE(FreezeNow(agent.client()).ok());
  const auto woken = WakeNow(agent.client());
  CHECK(woken.status().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(woken.status().ToString().find("generation") != std::string::npos);
  CHECK(counter.StandsStill());
  CHECK(ThawNow(agent.client()).ok());
  CHECK(counter.Counts());
  counter.process()->Kill();
  counter.Join().IgnoreError();
}

TEST_CASE("Without control groups a guest cannot be frozen") {
  RunningAgent agent(CATNAP_GUEST_AGENT, {.cgroups = false});
  const auto report = FreezeNow(agent.client());
  CHECK(report.status().code() == absl::StatusCode::kFailedPrecondition);
  CHECK(report.status().ToString().find("not supported") != std::string::npos);
  const auto outcome = agent.Exec({.argv = {"true"}});
  REQUIRE(outcome.ok());
  CHECK(outcome->report.exit_code == 0);
}

TEST_CASE("Malformed requests to sleep are refused, and change nothing") {
  class Refused final : public StreamHandler {
   public:
    explicit Refused(std::promise<absl::Status>* done) : done_(done) {}
    size_t OnData(uint8_t, std::span<const uint8_t> data, bool) override {
      return data.size();
    }
    void OnEnd(absl::StatusOr<Encoded> result) override {
      done_->set_value(result.status());
    }

   private:
    std::promise<absl::Status>* const done_;
  };
  const test::TemporaryDirectory directory;
  const std::string run = directory.File("run");
  RunningAgent agent(CATNAP_GUEST_AGENT, {.run_directory = run});
  WakeRequest long_name;
  long_name.hostname = std::string(kMaxHostnameBytes + 1, 'x');
  for (const Kind kind : {Kind::kFreeze, Kind::kWake}) {
    for (const Encoded& request : {Encoded{0xff, 0xff}, Encode(long_name)}) {
      if (kind == Kind::kFreeze && request.size() > 2) continue;
      std::promise<absl::Status> done;
      REQUIRE(agent.client()
                  ->Open(kind, request, std::make_shared<Refused>(&done))
                  .ok());
      CHECK(done.get_future().get().code() == absl::StatusCode::kUnavailable);
    }
  }
  CHECK(Content(run + "/generation") == kFirstGeneration);
}

}  // namespace
}  // namespace catnap::agent
