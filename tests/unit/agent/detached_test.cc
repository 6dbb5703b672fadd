#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "agent/process.h"
#include "support/running_agent.h"
#include "support/temporary_directory.h"

namespace catnap::agent {
namespace {

using testing::RunningAgent;
using namespace std::chrono_literals;

// What a process that was started before still tells.
struct Told {
  absl::StatusOr<ExitReport> report = absl::UnknownError("");
  std::string output{};
};
Told AttachAndWait(Client* client, uint64_t process_id) {
  auto told = std::make_shared<Told>();
  std::promise<void> done;
  ProcessEvents events;
  events.on_output = [told](uint8_t, std::span<const uint8_t> data) {
    told->output.append(data.begin(), data.end());
    return data.size();
  };
  events.on_exit = [told, &done](absl::StatusOr<ExitReport> report) {
    told->report = std::move(report);
    done.set_value();
  };
  const auto process =
      GuestProcess::Attach(client, process_id, std::move(events));
  REQUIRE(process.ok());
  done.get_future().get();
  return *told;
}

size_t CountProcesses(Client* client) {
  std::promise<absl::StatusOr<std::vector<ProcessEntry>>> list;
  const absl::Status asked =
      ListProcesses(client, std::nullopt,
                    [&list](absl::StatusOr<std::vector<ProcessEntry>> found) {
                      list.set_value(std::move(found));
                    });
  REQUIRE(asked.ok());
  const auto found = list.get_future().get();
  REQUIRE(found.ok());
  return found->size();
}

// Processes that nobody listens to when they do what they do.
class Detached {
 public:
  explicit Detached(Client* client) : client_(client) {}

  uint64_t Start(const std::string& script) {
    std::promise<Started> started;
    ProcessEvents events;
    events.on_started = [&](const Started& s) { started.set_value(s); };
    ExecRequest request;
    request.argv = {
        "sh", "-c",
        "until [ -e " + gate_ + " ]; do sleep 0.02; done; " + script};
    request.report_start = true;
    const auto process =
        GuestProcess::Start(client_, request, std::move(events));
    REQUIRE(process.ok());
    const uint64_t id = started.get_future().get().process_id;
    (*process)->Detach();
    return id;
  }
  // Lets them go on, and waits until they have ended.
  void Finish() {
    CountProcesses(client_);  // The agent has read what came before.
    std::ofstream(gate_).put('x');
    while (CountProcesses(client_) > 0) std::this_thread::sleep_for(5ms);
    std::filesystem::remove(gate_);
  }

 private:
  Client* const client_;
  const test::TemporaryDirectory directory_;
  const std::string gate_ = directory_.File("gate");
};

TEST_CASE("A process that ended while nobody listened still tells its result") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  Detached detached(agent.client());
  const uint64_t id = detached.Start("echo out; echo err >&2; exit 9");
  const uint64_t loud = detached.Start("head -c 300000 /dev/zero; echo end");
  detached.Finish();
  for (int i = 0; i < 2; ++i) {  // As often as it is asked.
    const Told told = AttachAndWait(agent.client(), id);
    REQUIRE(told.report.ok());
    CHECK(told.report->exit_code == 9);
    CHECK_FALSE(told.report->truncated);
    CHECK(told.output == "out\nerr\n");
  }
  const Told told = AttachAndWait(agent.client(), loud);
  REQUIRE(told.report.ok());
  CHECK(told.report->truncated);
  CHECK(told.output.size() == 65'536);
  CHECK(told.output.ends_with("end\n"));
  CHECK(AttachAndWait(agent.client(), 12345).report.status().code() ==
        absl::StatusCode::kNotFound);
}

TEST_CASE("Of many ended processes the last are known, with bounded output") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  Detached detached(agent.client());
  std::vector<uint64_t> ids;
  // 100 with 64 KiB each are above the bound of 4 MiB.
  for (int i = 0; i < 300; ++i) {
    ids.push_back(
        detached.Start(i < 200 ? "exit 3" : "head -c 65536 /dev/zero; exit 4"));
    if (i % 20 == 19) detached.Finish();
  }
  CHECK(AttachAndWait(agent.client(), ids[0]).report.status().code() ==
        absl::StatusCode::kNotFound);
  const Told old = AttachAndWait(agent.client(), ids[100]);
  REQUIRE(old.report.ok());
  CHECK(old.report->exit_code == 3);
  uint64_t bytes = 0;
  for (size_t i = 200; i < ids.size(); ++i) {
    const Told told = AttachAndWait(agent.client(), ids[i]);
    REQUIRE(told.report.ok());
    CHECK(told.report->exit_code == 4);
    CHECK(told.report->truncated == told.output.empty());
    bytes += told.output.size();
  }
  CHECK(bytes == 4 << 20);
}

}  // namespace
}  // namespace catnap::agent
