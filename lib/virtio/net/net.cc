#include "virtio/net/net.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::virtio {
namespace {

// Feature bits (virtio 1.2, 5.1.3).
constexpr uint64_t kFeatureMtu = uint64_t{1} << 3;
constexpr uint64_t kFeatureMac = uint64_t{1} << 5;
constexpr uint64_t kFeatureStatus = uint64_t{1} << 16;

constexpr uint16_t kQueueSize = 256;

// struct virtio_net_config (5.1.4) up to mtu.
constexpr size_t kStatusAt = 6;
constexpr size_t kMtuAt = 10;
constexpr size_t kConfigBytes = 12;
constexpr uint16_t kStatusLinkUp = 1;

// struct virtio_net_hdr (5.1.6): without offloads all of it is 0, but for
// num_buffers, which is there in any case and is 1 towards the driver.
constexpr size_t kHeaderBytes = 12;
constexpr size_t kBufferCountAt = 10;

// Field ids of a saved device; FORMAT: state/FORMAT.md.
constexpr uint32_t kMacField = 1;
constexpr uint32_t kUpField = 2;  // What the driver was told.
static_assert(kMacField == 1 && kUpField == 2,
              "field ids are on disk: read lib/state/FORMAT.md first");

}  // namespace

Net::Net(std::shared_ptr<net::Link> link, memory::GuestMemory* memory)
    : VirtioDevice({.id = DeviceId::kNet,
                    .features = kFeatureMtu | kFeatureMac | kFeatureStatus,
                    .queue_sizes = {kQueueSize, kQueueSize}},
                   memory),
      link_(std::move(link)),
      up_(link_->is_up()) {
  link_->SetListener([this] { OnLink(); });
}

Net::~Net() { link_->SetListener(nullptr); }

std::vector<uint8_t> Net::ConfigLocked() const {
  std::vector<uint8_t> config(kConfigBytes, 0);
  const net::MacAddress& mac = link_->guest_mac();
  std::copy(mac.begin(), mac.end(), config.begin());
  base::StoreLe<uint16_t>(&config[kStatusAt], up_ ? kStatusLinkUp : 0);
  base::StoreLe<uint16_t>(&config[kMtuAt], link_->mtu());
  return config;
}

void Net::OnLink() {
  {
    const base::MutexLock lock(&mutex_);
    LookAtLinkLocked();
    ServeQueueLocked(kReceiveQueue);
  }
  AfterServing();
}

void Net::LookAtLinkLocked() {
  if (link_->is_up() == up_) return;
  up_ = !up_;
  ChangeConfigLocked();
}

void Net::ResumeLocked() { LookAtLinkLocked(); }

bool Net::WantsLocked(size_t index) {
  return index == kTransmitQueue || link_->HasFrame();
}

void Net::HandleLocked(size_t index, const Chain& chain) {
  if (index == kTransmitQueue) {
    // What is longer than the link allows is refused there: it gets to see one
    // byte more than that.
    const size_t most =
        kHeaderBytes + net::kEthernetHeaderBytes + size_t{link_->mtu()} + 1;
    frame_.resize(std::min<size_t>(chain.readable_bytes(), most));
    const size_t size = chain.CopyOut(0, frame_);
    PushLocked(index, chain.head(), 0);
    // Nothing was offered that a header could ask for: what it says is not
    // looked at (5.1.6.2.1).
    if (size > kHeaderBytes) {
      link_->FromGuest(std::span(frame_).first(size).subspan(kHeaderBytes));
    }
    return;
  }
  uint32_t written = 0;
  if (link_->TakeFrame(&frame_)) {
    std::array<uint8_t, kHeaderBytes> header{};
    base::StoreLe<uint16_t>(&header[kBufferCountAt], 1);
    // A frame that the driver has no room for is lost.
    if (chain.writable_bytes() >= kHeaderBytes + frame_.size()) {
      written = static_cast<uint32_t>(chain.CopyIn(0, header) +
                                      chain.CopyIn(kHeaderBytes, frame_));
    }
  }
  PushLocked(index, chain.head(), written);
}

void Net::AfterServing() {
  // What the guest sent may have been answered by the link itself.
  const base::MutexLock lock(&mutex_);
  if (link_->HasFrame()) ServeQueueLocked(kReceiveQueue);
}

void Net::SaveOwnLocked(state::StateEncoder& out) const {
  out.Bytes(kMacField, link_->guest_mac());
  out.Bool(kUpField, up_);
}

absl::Status Net::LoadOwnLocked(state::StateDecoder in) {
  const net::MacAddress& mac = link_->guest_mac();
  while (in.Next()) {
    switch (in.id()) {
      case kMacField: {
        const auto saved = in.Bytes();
        if (in.status().ok() &&
            !std::equal(mac.begin(), mac.end(), saved.begin(), saved.end())) {
          return Error(absl::StatusCode::kInvalidArgument,
                       "the saved network device has another MAC address than "
                       "the link");
        }
        break;
      }
      case kUpField:
        up_ = in.Bool();
        break;
      default:
        break;
    }
  }
  return in.status();
}

}  // namespace catnap::virtio
