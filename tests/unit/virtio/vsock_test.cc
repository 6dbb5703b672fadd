#include "virtio/vsock/vsock.h"

#include <catch2/catch.hpp>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "state/decoder.h"
#include "state/encoder.h"
#include "support/vsock_guest.h"

namespace catnap::virtio {
namespace {

using test::VsockGuest;
using Operation = VsockOperation;

constexpr uint32_t kHostPort = 1024;
constexpr uint32_t kGuestPort = 5000;

// Keeps what it hears.
class Recorder final : public VsockHandler {
 public:
  void OnConnected() override { connected = true; }
  void OnData(std::span<const uint8_t> bytes) override {
    data.append(bytes.begin(), bytes.end());
  }
  void OnWritable() override { heard += "writable "; }
  void OnPeerClosed() override { heard += "end "; }
  void OnClosed(const absl::Status& status) override {
    heard += "closed ";
    why = status;
  }
  bool connected = false;
  std::string heard;
  std::string data;
  absl::Status why;
};

std::span<const uint8_t> BytesOf(const std::string& text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

// A listener that accepts one stream after the other.
struct Listener {
  explicit Listener(Vsock& device, uint32_t port = kHostPort) {
    device.Listen(port, [this](VsockStreamId stream) {
      id = stream;
      recorder = std::make_shared<Recorder>();
      return recorder;
    });
  }
  VsockStreamId id;
  std::shared_ptr<Recorder> recorder;
};

// The guest connects to the listener; its answer is taken.
void ConnectFromGuest(VsockGuest* guest) {
  guest->Send(kGuestPort, kHostPort, Operation::kRequest);
  const auto packets = guest->Receive();
  REQUIRE(packets.size() == 1);
  REQUIRE(packets[0].header.operation == Operation::kResponse);
}

TEST_CASE("A guest connects, both talk, the guest closes") {
  VsockGuest guest;
  Listener listener(guest.device());
  REQUIRE(guest.Start());
  guest.Send(kGuestPort, kHostPort, Operation::kRequest);
  auto packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header == VsockHeader{.source_cid = 2,
                                         .destination_cid = 3,
                                         .source_port = kHostPort,
                                         .destination_port = kGuestPort,
                                         .operation = Operation::kResponse,
                                         .buffer_bytes = 256 << 10});
  CHECK(listener.recorder->connected);
  guest.Send(kGuestPort, kHostPort, Operation::kData, "hello");
  CHECK(listener.recorder->data == "hello");
  auto sent = guest.device().Send(listener.id, BytesOf("there"));
  REQUIRE(sent.ok());
  CHECK(*sent == 5);
  packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header.operation == Operation::kData);
  CHECK(packets[0].data == "there");
  guest.Send(kGuestPort, kHostPort, Operation::kShutdown, "", kVsockNoSend);
  CHECK(listener.recorder->heard == "end ");
  CHECK(guest.device().Send(listener.id, BytesOf("more")).ok());
  guest.Send(kGuestPort, kHostPort, Operation::kShutdown, "",
             kVsockNoSend | kVsockNoReceive);
  CHECK(listener.recorder->heard == "end closed ");
  CHECK(listener.recorder->why.ok());
  packets = guest.Receive();
  REQUIRE(packets.size() == 2);
  CHECK(packets[0].data == "more");
  CHECK(packets[1].header.operation == Operation::kReset);
  CHECK(guest.device().stream_count() == 0);
  CHECK_FALSE(guest.device().Send(listener.id, BytesOf("x")).ok());
}

TEST_CASE("We connect: accepted, refused, not yet possible") {
  VsockGuest guest;
  auto recorder = std::make_shared<Recorder>();
  CHECK(guest.device().Connect(80, recorder).status().code() ==
        absl::StatusCode::kFailedPrecondition);
  REQUIRE(guest.Start());
  auto id = guest.device().Connect(80, recorder);
  REQUIRE(id.ok());
  auto packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header.operation == Operation::kRequest);
  CHECK(packets[0].header.destination_port == 80);
  const uint32_t host_port = packets[0].header.source_port;
  CHECK(*guest.device().Send(*id, BytesOf("early")) == 0);
  guest.Send(80, host_port, Operation::kResponse);
  CHECK(recorder->connected);
  CHECK(recorder->heard == "writable ");
  CHECK(*guest.device().Send(*id, BytesOf("now")) == 3);

  auto refused = std::make_shared<Recorder>();
  id = guest.device().Connect(81, refused);
  REQUIRE(id.ok());
  guest.Send(81, id->host_port, Operation::kReset);
  CHECK(refused->heard == "closed ");
  CHECK(refused->why.code() == absl::StatusCode::kUnavailable);
}

TEST_CASE("A request to a port that nobody listens on is reset") {
  VsockGuest guest;
  REQUIRE(guest.Start());
  guest.Send(kGuestPort, 77, Operation::kRequest);
  const auto packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header.operation == Operation::kReset);
  CHECK(packets[0].header.source_port == 77);
  // An acceptor that declines does the same, and one that is gone too.
  guest.device().Listen(78, [](VsockStreamId) { return nullptr; });
  guest.Send(kGuestPort, 78, Operation::kRequest);
  CHECK(guest.Receive()[0].header.operation == Operation::kReset);
  guest.device().Listen(78, nullptr);
  guest.Send(kGuestPort, 78, Operation::kRequest);
  CHECK(guest.Receive()[0].header.operation == Operation::kReset);
  CHECK(guest.device().stream_count() == 0);
}

TEST_CASE("We send no more than the guest's socket has room for") {
  VsockGuest guest;
  guest.buffer_bytes = 10;
  Listener listener(guest.device());
  REQUIRE(guest.Start());
  ConnectFromGuest(&guest);
  const std::string text = "0123456789abcdef";
  CHECK(*guest.device().Send(listener.id, BytesOf(text)) == 10);
  CHECK(*guest.device().Send(listener.id, BytesOf("x")) == 0);
  CHECK(listener.recorder->heard.empty());
  guest.forwarded_bytes = 4;
  guest.Send(kGuestPort, kHostPort, Operation::kCreditUpdate);
  CHECK(listener.recorder->heard == "writable ");
  CHECK(*guest.device().Send(listener.id, BytesOf(text.substr(10))) == 4);
  const auto packets = guest.Receive();
  REQUIRE(packets.size() == 2);
  CHECK(packets[0].data + packets[1].data == "0123456789abcd");
  // A guest that takes its word back gets nothing, not more.
  guest.forwarded_bytes = 1000;
  guest.Send(kGuestPort, kHostPort, Operation::kCreditUpdate);
  CHECK(*guest.device().Send(listener.id, BytesOf("x")) == 0);
}

TEST_CASE("We send no more than the driver has buffers for") {
  VsockGuest guest;
  Listener listener(guest.device());
  REQUIRE(guest.Start(3));
  ConnectFromGuest(&guest);
  const std::string text(size_t{3} * VsockGuest::kReceiveBufferBytes, 'x');
  const size_t each = VsockGuest::kReceiveBufferBytes - kVsockHeaderBytes;
  CHECK(*guest.device().Send(listener.id, BytesOf(text)) == 3 * each);
  CHECK(*guest.device().Send(listener.id, BytesOf(text)) == 0);
  CHECK(listener.recorder->heard.empty());
  CHECK(guest.Receive().size() == 3);  // And offers them again.
  CHECK(listener.recorder->heard == "writable ");
  CHECK(*guest.device().Send(listener.id, BytesOf("x")) == 1);
}

TEST_CASE("Buffers of which half are used soon are renewed when we are asked") {
  // Of 16; half is 8, and soon are the 4 above.
  const auto buffers = static_cast<uint16_t>(GENERATE(0, 1, 7, 8, 11, 12, 16));
  CAPTURE(buffers);
  VsockGuest guest;
  guest.device().RenewReceiveBuffers();  // No driver is there.
  REQUIRE(guest.Start(buffers));
  guest.device().RenewReceiveBuffers();
  const auto packets = guest.Receive(/*offer_again=*/false);
  const bool is_soon = buffers >= 8 && buffers < 12;
  // Less than half are left.
  CHECK(packets.size() == (is_soon ? buffers - 7U : 0U));
  for (const auto& packet : packets) {
    CHECK(packet.header.operation == Operation::kReset);
    CHECK(packet.header.type == kVsockTypeStream);
    CHECK(packet.header.source_cid == kVsockHostCid);
    CHECK(packet.header.destination_cid == VsockGuest::kCid);
    CHECK(packet.header.destination_port == UINT32_MAX);
  }
  CHECK(guest.driver().failures() == 0);
}

TEST_CASE("What a guest may send is bounded, and told in large steps") {
  VsockGuest guest({.buffer_bytes = 1000});
  Listener listener(guest.device());
  REQUIRE(guest.Start());
  ConnectFromGuest(&guest);
  guest.Send(kGuestPort, kHostPort, Operation::kData, std::string(600, 'a'));
  guest.device().Consumed(listener.id, 499);
  CHECK(guest.Receive().empty());
  guest.device().Consumed(listener.id, 1);
  auto packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header.operation == Operation::kCreditUpdate);
  CHECK(packets[0].header.forwarded_bytes == 500);
  guest.device().Consumed(listener.id, 5000);  // There are 100.
  guest.Send(kGuestPort, kHostPort, Operation::kCreditRequest);
  packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header.forwarded_bytes == 600);
  guest.Send(kGuestPort, kHostPort, Operation::kData, std::string(1000, 'b'));
  CHECK(listener.recorder->heard.empty());
  guest.Send(kGuestPort, kHostPort, Operation::kData, "c");  // Too much.
  CHECK(listener.recorder->heard == "closed ");
  CHECK(listener.recorder->data.size() == 1600);
  packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header.operation == Operation::kReset);
}

TEST_CASE("We close: for sending, for good, at once") {
  VsockGuest guest;
  Listener listener(guest.device());
  REQUIRE(guest.Start());
  ConnectFromGuest(&guest);
  REQUIRE(guest.device().Send(listener.id, BytesOf("last")).ok());
  guest.device().CloseSend(listener.id);
  CHECK_FALSE(guest.device().Send(listener.id, BytesOf("x")).ok());
  auto packets = guest.Receive();
  REQUIRE(packets.size() == 2);
  CHECK(packets[0].data == "last");
  CHECK(packets[1].header.operation == Operation::kShutdown);
  CHECK(packets[1].header.flags == kVsockNoSend);
  guest.Send(kGuestPort, kHostPort, Operation::kData, "answer");
  CHECK(listener.recorder->data == "answer");
  guest.device().Close(listener.id);
  CHECK(listener.recorder.use_count() == 1);  // Let go.
  packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header.flags == (kVsockNoSend | kVsockNoReceive));
  guest.Send(kGuestPort, kHostPort, Operation::kData, "on its way");
  CHECK(listener.recorder->data == "answer");
  CHECK(guest.device().stream_count() == 1);
  guest.Send(kGuestPort, kHostPort, Operation::kReset);
  CHECK(guest.device().stream_count() == 0);
  CHECK(listener.recorder->heard.empty());

  ConnectFromGuest(&guest);
  guest.device().Abort(listener.id);
  packets = guest.Receive();
  REQUIRE(packets.size() == 1);
  CHECK(packets[0].header.operation == Operation::kReset);
  CHECK(listener.recorder->heard.empty());
}

TEST_CASE("A guest that breaks the protocol loses the stream") {
  const auto bad = GENERATE(0, 1, 2, 3, 4);
  VsockGuest guest;
  Listener listener(guest.device());
  REQUIRE(guest.Start());
  ConnectFromGuest(&guest);
  switch (bad) {
    case 0:  // An answer to nothing.
      guest.Send(kGuestPort, kHostPort, Operation::kResponse);
      break;
    case 1:  // An operation that does not exist.
      guest.Send(kGuestPort, kHostPort, static_cast<Operation>(99));
      break;
    case 2:  // Data behind the end.
      guest.Send(kGuestPort, kHostPort, Operation::kShutdown, "", kVsockNoSend);
      guest.Send(kGuestPort, kHostPort, Operation::kData, "x");
      break;
    case 3:  // A second request for the same ports.
      guest.Send(kGuestPort, kHostPort, Operation::kRequest);
      break;
    default:  // It resets.
      guest.Send(kGuestPort, kHostPort, Operation::kReset);
      break;
  }
  CHECK_THAT(listener.recorder->heard, Catch::EndsWith("closed "));
  CHECK(listener.recorder->why.code() == absl::StatusCode::kUnavailable);
  const auto packets = guest.Receive();
  CHECK(packets.size() == (bad == 4 ? 0 : 1));
  CHECK(guest.device().stream_count() == 0);
  CHECK(guest.driver().failures() == 0);
}

TEST_CASE("Packets that lie are answered or passed over") {
  VsockGuest guest;
  Listener listener(guest.device());
  REQUIRE(guest.Start());
  // The length goes over the buffer; the type is not ours; nobody's cid.
  guest.Send({.source_port = 1,
              .destination_port = kHostPort,
              .length = 100,
              .operation = Operation::kData});
  CHECK(guest.Receive().at(0).header.operation == Operation::kReset);
  guest.Send({.source_port = 1,
              .destination_port = kHostPort,
              .type = 2,
              .operation = Operation::kRequest});
  CHECK(guest.Receive().at(0).header.operation == Operation::kReset);
  guest.Send({.source_cid = 4,
              .source_port = 1,
              .destination_port = kHostPort,
              .operation = Operation::kRequest});
  guest.Send({.destination_cid = 1,
              .source_port = 1,
              .destination_port = kHostPort,
              .operation = Operation::kRequest});
  guest.driver().Add(1, 0, {{test::VirtioDriver::kBuffers, 10, false}});
  guest.driver().Kick();
  CHECK(guest.Receive().empty());
  CHECK(guest.device().stream_count() == 0);
}

TEST_CASE("A guest that never takes its resets has to wait") {
  VsockGuest guest;
  REQUIRE(guest.Start(0));
  int accepted = 0;
  for (int i = 0; i < 5000; ++i) {
    guest.driver().Add(1, 0, {{test::VirtioDriver::kBuffers, 44, false}});
    const VsockHeader header{.source_cid = 3,
                             .destination_cid = 2,
                             .source_port = static_cast<uint32_t>(i),
                             .destination_port = 9,
                             .operation = Operation::kRequest};
    const auto bytes = EncodeVsockHeader(header);
    guest.driver().Fill(test::VirtioDriver::kBuffers,
                        std::string(bytes.begin(), bytes.end()));
    guest.driver().Kick();
    if (guest.driver().TakeUsed(1).empty()) break;
    ++accepted;
  }
  CHECK(accepted == 1024);
  guest.Offer(1);  // Then it goes on.
  CHECK(guest.driver().TakeUsed(1).size() == 1);
}

TEST_CASE("Streams are as many as the option says, old closing ones go") {
  VsockGuest guest({.max_streams = 600});
  std::vector<VsockStreamId> ids;
  guest.device().Listen(kHostPort, [&ids](VsockStreamId id) {
    ids.push_back(id);
    return std::make_shared<Recorder>();
  });
  REQUIRE(guest.Start());
  for (uint32_t port = 0; port < 700; ++port) {
    guest.Send(port, kHostPort, Operation::kRequest);
    const auto packets = guest.Receive();
    REQUIRE(packets.size() == 1);
    CHECK((packets[0].header.operation == Operation::kResponse) ==
          (port < 600));
  }
  CHECK(guest.device().stream_count() == 600);
  // The guest never acknowledges that we closed.
  for (const VsockStreamId id : ids) {
    guest.device().Close(id);
    guest.Receive();
  }
  CHECK(guest.device().stream_count() == 256);
}

TEST_CASE("A reset of the device and of the transport end all streams") {
  VsockGuest guest;
  Listener listener(guest.device());
  REQUIRE(guest.Start());
  ConnectFromGuest(&guest);
  guest.driver().Reset();
  CHECK(listener.recorder->heard == "closed ");
  CHECK(listener.recorder->why.code() == absl::StatusCode::kUnavailable);
  CHECK(guest.device().stream_count() == 0);

  VsockGuest second;
  Listener other(second.device());
  REQUIRE(second.Start());
  ConnectFromGuest(&second);
  second.driver().Fill(test::VirtioDriver::kBuffers, "xxxxxxxx");
  second.driver().Add(2, 0, {{test::VirtioDriver::kBuffers, 8, true}});
  second.driver().Kick();
  CHECK(second.driver().TakeUsed(2).empty());
  second.device().ResetTransport();
  CHECK(other.recorder->heard == "closed ");
  CHECK(second.driver().TakeUsed(2) == std::vector<test::UsedBuffer>{{0, 4}});
  CHECK(second.driver().Bytes(test::VirtioDriver::kBuffers, 8) ==
        std::string("\0\0\0\0xxxx", 8));
}

TEST_CASE("Handlers may do anything in their calls") {
  // Sends back what it gets, closes at the end; its destructor calls, too.
  class Echo final : public VsockHandler {
   public:
    Echo(Vsock* device, VsockStreamId id) : device_(device), id_(id) {}
    ~Echo() override { device_->Abort(id_); }
    void OnData(std::span<const uint8_t> bytes) override {
      device_->Consumed(id_, bytes.size());
      (void)device_->Send(id_, bytes);
    }
    void OnPeerClosed() override { device_->Close(id_); }
    void OnClosed(const absl::Status&) override { device_->Abort(id_); }

   private:
    Vsock* const device_;
    const VsockStreamId id_;
  };
  VsockGuest guest;
  guest.device().Listen(kHostPort, [&guest](VsockStreamId id) {
    return std::make_shared<Echo>(&guest.device(), id);
  });
  REQUIRE(guest.Start());
  ConnectFromGuest(&guest);
  for (int i = 0; i < 100; ++i) {
    guest.Send(kGuestPort, kHostPort, Operation::kData, std::to_string(i));
    const auto packets = guest.Receive();
    REQUIRE(packets.size() == 1);
    CHECK(packets[0].data == std::to_string(i));
  }
  guest.Send(kGuestPort, kHostPort, Operation::kShutdown, "", kVsockNoSend);
  // Close(), and Abort() by the destructor.
  const auto packets = guest.Receive();
  REQUIRE(packets.size() == 2);
  CHECK(packets[0].header.operation == Operation::kShutdown);
  CHECK(packets[1].header.operation == Operation::kReset);
  CHECK(guest.device().stream_count() == 0);
}

TEST_CASE("Calls may come from any thread while the guest talks") {
  VsockGuest guest;
  guest.device().Listen(
      kHostPort, [](VsockStreamId) { return std::make_shared<Recorder>(); });
  REQUIRE(guest.Start());
  std::vector<std::thread> threads;
  threads.reserve(2);
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      const std::string text(3000, 'x');
      for (int i = 0; i < 300; ++i) {
        const auto id =
            guest.device().Connect(80, std::make_shared<Recorder>());
        if (!id.ok()) continue;
        (void)guest.device().Send(*id, BytesOf(text));
        guest.device().Consumed(*id, 10);
        guest.device().Close(*id);
      }
    });
  }
  for (uint32_t i = 0; i < 300; ++i) {
    guest.Send(i, kHostPort, Operation::kRequest);
    guest.Send(i, kHostPort, Operation::kData, "data");
    guest.Receive();
    guest.Send(i, kHostPort, Operation::kReset);
  }
  for (std::thread& thread : threads) thread.join();
  guest.driver().Reset();
  CHECK(guest.device().stream_count() == 0);
  CHECK(guest.driver().failures() == 0);
}

TEST_CASE("Streams live on in a loaded device when somebody adopts them") {
  VsockGuest guest;
  Listener listener(guest.device());
  REQUIRE(guest.Start());
  ConnectFromGuest(&guest);
  guest.Send(kGuestPort, kHostPort, Operation::kData, "abc");
  guest.Send(kGuestPort + 1, kHostPort, Operation::kRequest);
  guest.Receive();
  const bool adopt = GENERATE(true, false);

  guest.device().Quiesce();
  std::vector<uint8_t> bytes;
  state::StateEncoder out(&bytes);
  REQUIRE(guest.driver().transport().SaveState(out).ok());
  const auto factory = [](memory::GuestMemory* memory) {
    return std::make_unique<Vsock>(VsockOptions{}, memory);
  };
  test::VirtioDriver second(factory, guest.driver());
  auto& device = static_cast<Vsock&>(second.device());
  REQUIRE(second.transport().LoadState(state::StateDecoder(bytes)).ok());
  const auto ids = device.LoadedStreams();
  CHECK(ids.size() == 2);
  auto recorder = std::make_shared<Recorder>();
  for (const VsockStreamId id : ids) {
    if (adopt) REQUIRE(device.Adopt(id, recorder).ok());
  }
  device.Resume();
  const auto used = second.TakeUsed(0);
  if (adopt) {
    CHECK(device.stream_count() == 2);
    CHECK(used.empty());
    CHECK(*device.Send(ids[0], BytesOf("on")) == 2);
    device.Consumed(ids[0], 3);
  } else {
    CHECK(device.stream_count() == 0);
    CHECK(used.size() == 2);  // Resets.
  }
}

}  // namespace
}  // namespace catnap::virtio
