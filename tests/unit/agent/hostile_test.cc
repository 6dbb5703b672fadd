#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <future>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "agent/files.h"
#include "agent/process.h"
#include "catnap/errors.h"
#include "support/running_agent.h"
#include "support/temporary_directory.h"

namespace catnap::agent {
namespace {

using testing::RunningAgent;
using testing::SocketChannel;
using namespace std::chrono_literals;
using Bytes = std::vector<uint8_t>;

Bytes HelloBytes() {
  // Version 1, as PROTOCOL.md has it.
  return {2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x08, 1};
}

Bytes Framed(FrameType type, uint32_t stream, const Bytes& body,
             uint8_t channel = 0) {
  Bytes bytes;
  AppendFrame(
      {.type = type, .channel = channel, .stream = stream, .body = body},
      &bytes);
  return bytes;
}

// A client whose agent is this test.
struct FakeAgent {
  FakeAgent() {
    std::array<int, 2> pair{};
    REQUIRE(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) ==
            0);
    channel = std::make_unique<SocketChannel>(base::UniqueFd(pair[0]));
    socket = base::UniqueFd(pair[1]);
  }
  void Say(const Bytes& bytes) const {
    // The client may have closed its end.
    static_cast<void>(
        ::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL));
  }
  absl::Status Exec() {
    std::promise<absl::StatusOr<ExecOutcome>> done;
    const auto stream =
        agent::Exec(channel->client(), {.argv = {"true"}}, 100, deadline,
                    [&](absl::StatusOr<ExecOutcome> outcome) {
                      done.set_value(std::move(outcome));
                    });
    if (!stream.ok()) return stream.status();
    return done.get_future().get().status();
  }

  std::optional<Client::Time> deadline;
  std::unique_ptr<SocketChannel> channel;
  base::UniqueFd socket;
};

TEST_CASE("Garbage from an agent ends every call in a status") {
  FakeAgent agent;
  const auto seed = GENERATE(range(0u, 50u));
  std::minstd_rand random(seed + 1);
  Bytes bytes = HelloBytes();
  for (int i = 0; i < 20; ++i) {
    // Frames that are well formed, with any content, for stream 2 or any.
    Bytes body(random() % 40);
    for (uint8_t& byte : body) byte = static_cast<uint8_t>(random());
    const auto type = static_cast<FrameType>(2 + random() % 8);
    const Bytes frame = Framed(
        type, static_cast<uint32_t>(random() % 2 == 0 ? 2 : random() % 9),
        body);
    bytes.insert(bytes.end(), frame.begin(), frame.end());
  }
  agent.deadline = std::chrono::steady_clock::now() + 100ms;
  agent.Say(bytes);
  const absl::Status status = agent.Exec();
  // OK only if the garbage happened to be a report.
  CHECK((status.ok() || status.code() == absl::StatusCode::kUnavailable ||
         status.code() == absl::StatusCode::kDeadlineExceeded ||
         status.code() == absl::StatusCode::kCancelled ||
         status.code() == absl::StatusCode::kResourceExhausted ||
         status.code() == absl::StatusCode::kUnimplemented));
}

TEST_CASE("An agent that says nothing is waited for until the deadline") {
  FakeAgent agent;
  agent.deadline = std::chrono::steady_clock::now() + 50ms;
  CHECK(agent.Exec().code() == absl::StatusCode::kDeadlineExceeded);
  std::promise<absl::Status> ping;
  agent.channel->client()->Ping(
      std::chrono::steady_clock::now() + 50ms,
      [&](absl::Status status) { ping.set_value(std::move(status)); });
  const absl::Status status = ping.get_future().get();
  CHECK(status.code() == absl::StatusCode::kUnavailable);
  CHECK(ReasonOf(status) == ErrorReason::kAgentUnresponsive);
}

TEST_CASE("An agent that goes away ends what is under way") {
  FakeAgent agent;
  agent.Say(HelloBytes());
  auto call = std::async(std::launch::async, [&] { return agent.Exec(); });
  std::this_thread::sleep_for(20ms);
  ::shutdown(agent.socket.get(), SHUT_RDWR);
  CHECK(call.get().code() == absl::StatusCode::kUnavailable);
  CHECK(agent.channel->client()->status().code() ==
        absl::StatusCode::kUnavailable);
  CHECK(agent.Exec().code() == absl::StatusCode::kUnavailable);
}

TEST_CASE("An agent that never ends a message flood is cut off") {
  FakeAgent agent;
  base::Mutex mutex;
  base::CondVar changed;
  bool entered = false;
  bool go = false;
  std::promise<absl::Status> done;
  ProcessEvents events;
  events.on_started = [&](const Started&) {
    base::MutexLock lock(&mutex);  // A handler that is slow.
    entered = true;
    changed.NotifyAll();
    while (!go) changed.Wait(&mutex);
  };
  events.on_exit = [&](const absl::StatusOr<ExitReport>& report) {
    done.set_value(report.status());
  };
  auto process = GuestProcess::Start(agent.channel->client(),
                                     {.argv = {"true"}}, std::move(events));
  REQUIRE(process.ok());
  // The handler blocks the receiving thread itself; so feed the client here.
  const Bytes message = Framed(FrameType::kMessage, 2, Bytes(100'000, 0));
  std::thread first([&] { agent.channel->client()->OnReceive(HelloBytes()); });
  first.join();
  std::thread slow([&] {
    agent.channel->client()->OnReceive(
        Framed(FrameType::kMessage, 2, Encode(Started{1, 2})));
  });
  {
    // Before that our own calls would handle what they bring.
    base::MutexLock lock(&mutex);
    while (!entered) changed.Wait(&mutex);
  }
  int sent = 0;
  while (agent.channel->client()->status().ok() && sent < 1000) {
    agent.channel->client()->OnReceive(message);
    ++sent;
  }
  CHECK(sent > 100);  // Up to 16 MiB wait.
  CHECK(sent < 250);
  {
    base::MutexLock lock(&mutex);
    go = true;
    changed.NotifyAll();
  }
  slow.join();
  CHECK(done.get_future().get().code() == absl::StatusCode::kUnavailable);
}

// What a hostile guest sends as a tree.
absl::Status CopyOutOf(const std::vector<FileEntry>& entries,
                       const std::string& to) {
  FakeAgent agent;
  Encoded records;
  for (const FileEntry& entry : entries) {
    AppendRecord(Encode(entry), &records);
  }
  auto copy = std::async(std::launch::async, [&] {
    return CopyOut(agent.channel->client(), "/", to, {}, {});
  });
  Bytes bytes = HelloBytes();
  for (const Bytes& frame : {Framed(FrameType::kData, 2, records),
                             Framed(FrameType::kClose, 2, {})}) {
    bytes.insert(bytes.end(), frame.begin(), frame.end());
  }
  // Frames of a stream come after its OPEN.
  std::array<uint8_t, 64> open{};
  while (::recv(agent.socket.get(), open.data(), open.size(), MSG_PEEK) < 30) {
  }
  agent.Say(bytes);
  return copy.get();
}

TEST_CASE("A tree cannot leave the folder that it is copied to") {
  const test::TemporaryDirectory dir;
  const std::string outside = dir.File("outside");
  const std::string to = dir.File("to");
  std::filesystem::create_directories(outside);
  const FileEntry root{.type = EntryType::kDirectory, .mode = 0755};
  const auto file = [](const std::string& path) {
    return FileEntry{.type = EntryType::kFile,
                     .path = path,
                     .size = 4,
                     .mode = 06777,
                     .data = "data"};
  };
  const auto link = [](const std::string& path, const std::string& target) {
    return FileEntry{.type = EntryType::kSymlink, .path = path, .link = target};
  };
  CHECK_FALSE(CopyOutOf({root, file("../outside/file")}, to).ok());
  CHECK_FALSE(CopyOutOf({root, file("/" + outside + "/file")}, to).ok());
  CHECK_FALSE(CopyOutOf({root, file("a/../../outside/file")}, to).ok());
  CHECK_FALSE(CopyOutOf({file("x")}, to).ok());
  CHECK_FALSE(CopyOutOf({}, to).ok());
  // Links out are not made, so what would go through them has no folder.
  for (const char* target : {"../outside", "/tmp", "a/../../outside", ".."}) {
    CAPTURE(target);
    CHECK_FALSE(
        CopyOutOf({root, link("out", target), file("out/file")}, to).ok());
    CHECK_FALSE(std::filesystem::is_symlink(to + "/out"));
  }
  // Nor does anything go through a link that was there.
  std::filesystem::create_directory_symlink(outside, to + "/there");
  CHECK_FALSE(CopyOutOf({root, file("there/file")}, to).ok());
  CHECK(std::filesystem::is_empty(outside));
  // Bytes beyond the file's size, and a link to a file of somebody else.
  FileEntry beyond = file("beyond");
  beyond.offset = uint64_t{1} << 40;
  CHECK_FALSE(CopyOutOf({root, beyond}, to).ok());
  CHECK_FALSE(CopyOutOf({root, FileEntry{.type = EntryType::kHardLink,
                                         .path = "hard",
                                         .link = "there"}},
                        to)
                  .ok());
  // Set-id bits are not taken.
  REQUIRE(CopyOutOf({root, file("good")}, to).ok());
  CHECK(std::filesystem::status(to + "/good").permissions() ==
        std::filesystem::perms{0777});
}

TEST_CASE("Garbage from the host ends the agent's connection, not the agent") {
  RunningAgent agent(CATNAP_GUEST_AGENT);
  const auto seed = GENERATE(range(0u, 20u));
  std::minstd_rand random(seed + 1);
  Bytes bytes = HelloBytes();
  for (int i = 0; i < 50; ++i) {
    Bytes body(random() % 60);
    for (uint8_t& byte : body) byte = static_cast<uint8_t>(random());
    // OPEN with a kind that exists, and anything for a request. Not those
    // that change files: their paths are random, but this machine is real.
    if (random() % 2 == 0 && !body.empty()) {
      const std::array<uint8_t, 7> kinds = {1, 2, 3, 10, 12, 13, 20};
      body = {0x08, kinds[random() % kinds.size()], 0x13,
              static_cast<uint8_t>(random() % 50)};
      body.resize(4 + body[3], static_cast<uint8_t>(random()));
    }
    const Bytes frame =
        Framed(static_cast<FrameType>(2 + random() % 8),
               static_cast<uint32_t>(2 * (1 + random() % 20)), body);
    bytes.insert(bytes.end(), frame.begin(), frame.end());
  }
  static_cast<void>(
      ::send(agent.socket()->get(), bytes.data(), bytes.size(), MSG_NOSIGNAL));
  agent.socket()->Reset();
  const int status = agent.Join();
  CHECK(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 0);
}

}  // namespace
}  // namespace catnap::agent
