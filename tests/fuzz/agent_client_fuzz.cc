#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "agent/client.h"
#include "agent/files.h"
#include "agent/process.h"
#include "agent/sleep.h"
#include "fuzz/fuzz_target.h"

// The bytes are what a hostile agent sends to a client that has a process, file
// operations, freeze, wake, thaw and a ping under way. Every call ends exactly
// once, what is kept stays within the bounds that were asked for, and nothing
// crashes.
namespace catnap::agent {
namespace {

class Sink final : public ByteChannel {
 public:
  size_t Send(std::span<const uint8_t> bytes) override {
    total += bytes.size();
    return bytes.size();
  }
  size_t total = 0;
};

class StoppedClock final : public base::Clock {
 public:
  std::chrono::steady_clock::time_point Now() override { return now; }
  std::chrono::system_clock::time_point WallNow() override { return {}; }
  std::chrono::steady_clock::time_point now{};
};

class Acceptor final : public ServiceListener {
 public:
  class Handler final : public StreamHandler {
   public:
    size_t OnData(uint8_t, std::span<const uint8_t> data, bool) override {
      return data.size() / 2;
    }
    void OnEnd(absl::StatusOr<Encoded>) override { FUZZ_CHECK(!ended_++); }

   private:
    int ended_ = 0;
  };
  std::shared_ptr<StreamHandler> OnConnect(Client*, uint32_t,
                                           uint16_t port) override {
    return port % 2 == 0 ? std::make_shared<Handler>() : nullptr;
  }
};

void Run(std::span<const uint8_t> bytes, size_t cut) {
  constexpr size_t kMost = 1000;
  int ended = 0;
  Sink sink;
  StoppedClock clock;
  {
    Client client(&sink, &clock, {.services = std::make_shared<Acceptor>()});
    const auto later = clock.now + std::chrono::seconds(1);
    // Streams 2 to 18, in this order: the corpus counts on it.
    FUZZ_CHECK(Exec(&client, {.argv = {"a"}}, kMost, later,
                    [&](const absl::StatusOr<ExecOutcome>& outcome) {
                      ++ended;
                      if (!outcome.ok()) return;
                      FUZZ_CHECK(outcome->stdout_data.size() +
                                     outcome->stderr_data.size() <=
                                 kMost);
                      FUZZ_CHECK(outcome->report.exit_code <= 255);
                    })
                   .ok());
    ReadFile(&client, "/a", kMost, later,
             [&](const absl::StatusOr<std::string>& read) {
               ++ended;
               FUZZ_CHECK(!read.ok() || read->size() <= kMost);
             });
    ListDirectory(&client, "/a", 3, later,
                  [&](const absl::StatusOr<std::vector<FileEntry>>& list) {
                    ++ended;
                    FUZZ_CHECK(!list.ok() || list->size() <= 3);
                  });
    Stat(&client, "/a", later,
         [&](const absl::StatusOr<FileEntry>&) { ++ended; });
    FUZZ_CHECK(
        ListProcesses(
            &client, later,
            [&](const absl::StatusOr<std::vector<ProcessEntry>>&) { ++ended; })
            .ok());
    WriteFile(&client, "/a", std::string(300'000, 'x'), 0600, later,
              [&](const absl::Status&) { ++ended; });
    Freeze(&client, {}, later, [&](const absl::StatusOr<FreezeReport>& report) {
      ++ended;
      if (!report.ok()) return;
      FUZZ_CHECK(report->flush.count() >= 0 && report->freeze.count() >= 0);
    });
    Wake(&client, {.is_copy = true}, later,
         [&](const absl::StatusOr<std::string>& left_out) {
           ++ended;
           FUZZ_CHECK(!left_out.ok() || left_out->size() <= kMaxErrorText);
         });
    Thaw(&client, later, [&](const absl::Status&) { ++ended; });
    client.Ping(later, [&](const absl::Status&) { ++ended; });
    while (!bytes.empty()) {
      const auto piece = bytes.first(std::min(cut, bytes.size()));
      bytes = bytes.subspan(piece.size());
      client.OnReceive(piece);
    }
    clock.now = later;
    client.OnTime();
    FUZZ_CHECK(ended == 10);
  }
  FUZZ_CHECK(ended == 10);
}

}  // namespace
}  // namespace catnap::agent

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  catnap::agent::Run({data + 1, size - 1}, data[0] + size_t{1});
  return 0;
}
