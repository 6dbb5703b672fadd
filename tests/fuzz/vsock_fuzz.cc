#include <memory>
#include <string>
#include <vector>

#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"
#include "support/vsock_guest.h"

// A guest that sends any packets, and a host that does any of its calls in
// between, also from within its handlers. A handler hears nothing after the
// end, gets no more than the buffer holds, and no stream is left when the
// device is reset.

namespace catnap::virtio {
namespace {

constexpr VsockOptions kOptions{.max_streams = 8, .buffer_bytes = 4096};

class Run;

class Handler final : public VsockHandler {
 public:
  explicit Handler(Run* run) : run_(run) {}
  void OnConnected() override { FUZZ_CHECK(!ended_); }
  void OnData(std::span<const uint8_t> bytes) override;
  void OnWritable() override { FUZZ_CHECK(!ended_); }
  void OnPeerClosed() override { FUZZ_CHECK(!ended_); }
  void OnClosed(const absl::Status&) override {
    FUZZ_CHECK(!ended_);
    ended_ = true;
  }
  void SetId(VsockStreamId id) { id_ = id; }

 private:
  Run* const run_;
  VsockStreamId id_;
  bool ended_ = false;
};

class Run {
 public:
  Run() : guest_(kOptions) {
    device().Listen(1, [this](VsockStreamId id) {
      auto handler = std::make_shared<Handler>(this);
      handler->SetId(id);
      Keep(id);
      return handler;
    });
    FUZZ_CHECK(guest_.Start());
  }

  Vsock& device() { return guest_.device(); }
  // Whether handlers send back what they get.
  bool echo() const { return echo_; }

  void Step(fuzz::FuzzInput* input) {
    const auto operation = input->Between<uint8_t>(0, 10);
    if (operation <= 2) {
      SendPacket(input);
    } else {
      Call(operation, input->Integer<uint8_t>(), input);
    }
    FUZZ_CHECK(device().stream_count() <= kOptions.max_streams);
  }

  void End() {
    guest_.driver().Reset();
    FUZZ_CHECK(device().stream_count() == 0);
  }

 private:
  void SendPacket(fuzz::FuzzInput* input) {
    VsockHeader header;
    header.operation =
        static_cast<VsockOperation>(input->Between<uint8_t>(0, 8));
    header.source_port = input->Between<uint8_t>(0, 15);
    header.destination_port = input->Between<uint8_t>(0, 3);
    if (header.destination_port == 3 && !streams_.empty()) {
      header.destination_port = streams_.back().host_port;
    }
    const auto length = input->Integer<uint16_t>();
    header.length = length;
    header.flags = input->Integer<uint8_t>();
    header.buffer_bytes = input->Integer<uint32_t>();
    header.forwarded_bytes = input->Integer<uint32_t>();
    guest_.Send(header, std::string(length % 5000, 'x'));
  }

  void Call(uint8_t operation, uint8_t which, fuzz::FuzzInput* input) {
    const VsockStreamId id =
        streams_.empty() ? VsockStreamId{} : streams_[which % streams_.size()];
    switch (operation) {
      case 3: {
        auto handler = std::make_shared<Handler>(this);
        const auto made = device().Connect(which % 16, handler);
        if (made.ok()) {
          handler->SetId(*made);
          Keep(*made);
        }
        break;
      }
      case 4: {
        const std::vector<uint8_t> bytes(input->Integer<uint16_t>() % 20000);
        const auto sent = device().Send(id, bytes);
        FUZZ_CHECK(!sent.ok() || *sent <= bytes.size());
        break;
      }
      case 5:
        device().Consumed(id, input->Integer<uint16_t>());
        break;
      case 6:
        device().CloseSend(id);
        break;
      case 7:
        device().Close(id);
        break;
      case 8:
        device().Abort(id);
        break;
      case 9:
        if (which % 4 == 0) {
          device().ResetTransport();
        } else {
          echo_ = which % 2 == 0;
        }
        break;
      default:
        guest_.Receive(which % 2 == 0);
        break;
    }
  }

  void Keep(VsockStreamId id) {
    if (streams_.size() == 16) streams_.erase(streams_.begin());
    streams_.push_back(id);
  }

  test::VsockGuest guest_;
  std::vector<VsockStreamId> streams_;
  bool echo_ = false;
};

void Handler::OnData(std::span<const uint8_t> bytes) {
  FUZZ_CHECK(!ended_);
  FUZZ_CHECK(!bytes.empty() && bytes.size() <= kOptions.buffer_bytes);
  if (!run_->echo()) return;
  (void)run_->device().Send(id_, bytes);
  run_->device().Consumed(id_, bytes.size());
}

}  // namespace
}  // namespace catnap::virtio

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::fuzz::FuzzInput input(data, size);
  catnap::virtio::Run run;
  while (!input.empty()) run.Step(&input);
  run.End();
  return 0;
}
