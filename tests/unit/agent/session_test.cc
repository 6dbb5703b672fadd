#include "agent/session.h"

#include <catch2/catch.hpp>
#include <string>
#include <vector>

namespace catnap::agent {
namespace {

using namespace std::chrono_literals;
using Bytes = std::vector<uint8_t>;

class Recorder final : public Session::Handler {
 public:
  void OnHello(const Hello& hello) override { peer = hello.name; }
  void OnPong(Session::Bytes) override { ++pongs; }
  void OnOpen(uint32_t stream, uint32_t kind, Session::Bytes) override {
    opened.push_back(stream);
    last_kind = kind;
  }
  void OnData(uint32_t, uint8_t, Session::Bytes data, bool end) override {
    received += data.size();
    ended |= end;
  }
  void OnMessage(uint32_t, Session::Bytes) override { ++messages; }
  void OnCredit(uint32_t, uint8_t) override { ++credits; }
  void OnClose(uint32_t, Session::Bytes) override { ++closes; }
  void OnReset(uint32_t, ResetCode code, std::string_view) override {
    resets.push_back(code);
  }

  std::string peer;
  std::vector<uint32_t> opened;
  uint32_t last_kind = 0;
  size_t received = 0;
  bool ended = false;
  int pongs = 0, messages = 0, credits = 0, closes = 0;
  std::vector<ResetCode> resets;
};

struct Pair {
  // Moves bytes until neither end has any.
  void Pump() {
    while (!host.unsent().empty() || !guest.unsent().empty()) {
      Move(&host, &guest);
      Move(&guest, &host);
    }
  }
  static void Move(Session* from, Session* to) {
    const Bytes bytes(from->unsent().begin(), from->unsent().end());
    from->Sent(bytes.size());
    to->Receive(bytes);
  }

  Recorder on_host, on_guest;
  Session host{Session::Role::kHost, &on_host, {.name = "host"}};
  Session guest{Session::Role::kGuest, &on_guest, {.name = "guest"}};
};

Bytes Framed(FrameType type, uint32_t stream, const Bytes& body = {}) {
  Bytes bytes;
  AppendFrame({.type = type, .stream = stream, .body = body}, &bytes);
  return bytes;
}

TEST_CASE("Hellos cross, and a stream opens, talks and closes") {
  Pair pair;
  const auto stream = pair.host.Open(7, {});
  REQUIRE(stream.has_value());
  pair.Pump();
  CHECK(pair.on_host.peer == "guest");
  CHECK(pair.on_guest.opened == std::vector<uint32_t>{*stream});
  CHECK(pair.on_guest.last_kind == 7);
  CHECK(pair.guest.Write(*stream, 1, Bytes(10), true) == 10);
  pair.guest.SendMessage(*stream, {});
  pair.guest.Close(*stream, {});
  pair.host.Ping({});
  pair.Pump();
  CHECK(pair.on_host.received == 10);
  CHECK(pair.on_host.ended);
  CHECK(pair.on_host.messages == 1);
  CHECK(pair.on_host.closes == 1);
  CHECK(pair.on_host.pongs == 1);
  CHECK(pair.host.stream_count() == 0);
  CHECK(pair.guest.stream_count() == 0);
}

TEST_CASE("Data stops at the credit and goes on when it is returned") {
  Pair pair;
  const auto stream = pair.host.Open(7, {});
  REQUIRE(stream.has_value());
  pair.Pump();
  const Bytes big(kInitialCredit + 1000);
  CHECK(pair.host.Write(*stream, 0, big, true) == kInitialCredit);
  pair.Pump();
  CHECK(pair.on_guest.received == kInitialCredit);
  CHECK_FALSE(pair.on_guest.ended);
  CHECK(pair.host.WritableBytes(*stream, 0) == 0);
  pair.guest.Consume(*stream, 0, kInitialCredit);
  pair.Pump();
  CHECK(pair.on_host.credits == 1);
  CHECK(pair.host.Write(*stream, 0, Bytes(1000), true) == 1000);
  pair.Pump();
  CHECK(pair.on_guest.ended);
}

TEST_CASE("Data beyond the credit ends the session") {
  Pair pair;
  const auto stream = pair.host.Open(7, {});
  REQUIRE(stream.has_value());
  pair.Pump();
  for (uint32_t sent = 0; sent < kInitialCredit; sent += kMaxDataBytes) {
    CHECK(pair.host.Receive(
        Framed(FrameType::kData, *stream, Bytes(kMaxDataBytes))));
  }
  CHECK_FALSE(pair.host.Receive(Framed(FrameType::kData, *stream, Bytes(1))));
  CHECK(pair.on_host.resets == std::vector<ResetCode>{ResetCode::kProtocol});
}

TEST_CASE("What a hostile peer may not send ends the session") {
  Pair pair;
  REQUIRE(pair.host.Open(7, {}) == 2);
  pair.Pump();
  const Bytes bytes = GENERATE(
      Framed(FrameType::kHello, 0),         // twice
      Framed(FrameType::kOpen, 4),          // our kind of id
      Framed(FrameType::kOpen, 3, {0xff}),  // malformed
      Framed(FrameType::kData, 4),          // never opened
      Framed(FrameType::kData, 1),          // never opened by the peer
      Framed(FrameType::kReset, 2),         // no code
      Framed(FrameType::kCredit, 2, {8, 0xff, 0xff, 0xff, 0xff, 0x0f}));
  CHECK_FALSE(pair.host.Receive(bytes));
  CHECK(pair.host.fail_code() == ResetCode::kProtocol);
  CHECK(pair.on_host.resets.size() == 1);
  CHECK(pair.host.stream_count() == 0);
}

TEST_CASE("Frames of a stream that just ended are no error") {
  Pair pair;
  const auto stream = pair.host.Open(7, {});
  REQUIRE(stream.has_value());
  pair.Pump();
  pair.host.Reset(*stream, ResetCode::kCancelled, "enough");
  CHECK(pair.guest.Write(*stream, 1, Bytes(10), false) == 10);
  pair.guest.Close(*stream, {});
  pair.Pump();
  CHECK(pair.host.ok());
  CHECK(pair.guest.ok());
  CHECK(pair.on_host.received == 0);
}

TEST_CASE("Streams of the guest are bounded in number") {
  Pair pair;
  pair.Pump();
  for (uint32_t i = 0; i < kMaxGuestStreams; ++i) {
    REQUIRE(pair.host.Receive(Framed(FrameType::kOpen, 2 * i + 1)));
  }
  CHECK(pair.host.Receive(Framed(FrameType::kOpen, 2 * kMaxGuestStreams + 1)));
  CHECK(pair.host.stream_count() == kMaxGuestStreams);
}

TEST_CASE("A peer that pings without reading is cut off") {
  Pair pair;
  pair.Pump();
  const Bytes ping = Framed(FrameType::kPing, 0, Bytes(kMaxPingBytes));
  size_t count = 0;
  while (pair.host.Receive(ping)) ++count;
  CHECK(count * ping.size() <= kMaxUnsentBytes + 2 * ping.size());
}

TEST_CASE("Versions without overlap end the session") {
  Recorder recorder;
  Session old(Session::Role::kHost, &recorder, {});
  Session later(Session::Role::kGuest, &recorder,
                {.version = 9, .min_version = 2});
  Pair::Move(&later, &old);
  CHECK(old.fail_code() == ResetCode::kVersion);
}

TEST_CASE("A deadline resets its stream on both ends") {
  Pair pair;
  const auto stream = pair.host.Open(7, {});
  REQUIRE(stream.has_value());
  const Session::Time start{1s};
  pair.host.SetDeadline(*stream, start + 2s);
  pair.host.SetDeadline(*stream, start + 1s);
  CHECK(pair.host.NextDeadline() == start + 1s);
  pair.host.OnTime(start);
  CHECK(pair.on_host.resets.empty());
  pair.host.OnTime(start + 1s);
  CHECK(pair.on_host.resets == std::vector<ResetCode>{ResetCode::kDeadline});
  CHECK_FALSE(pair.host.NextDeadline().has_value());
  pair.Pump();
  CHECK(pair.on_guest.resets == std::vector<ResetCode>{ResetCode::kDeadline});
}

}  // namespace
}  // namespace catnap::agent
