#include "net/link.h"

#include <poll.h>

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace catnap::net {
namespace {

constexpr uint16_t kMinMtu = 1280;  // Of IPv6.

// For the guest.
constexpr size_t kMaxGuestFrames = 256;
constexpr size_t kMaxGuestBytes = 1 << 20;
// For a helper that is being started.
constexpr size_t kMaxPendingFrames = 64;

// Between two starts of the helper: twice as long each time, until one lives
// for kSettled.
constexpr std::chrono::milliseconds kFirstPause{100};
constexpr std::chrono::milliseconds kLongestPause{10'000};
constexpr std::chrono::seconds kSettled{10};

std::string MacText(const MacAddress& mac) {
  return fmt::format("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", mac[0],
                     mac[1], mac[2], mac[3], mac[4], mac[5]);
}

// passt, as the gateway of the link: it forwards nothing to the guest that the
// guest did not ask for, gives the gateway's address no meaning, and answers
// nothing that the gate answers.
std::vector<std::string> PasstArguments(uint16_t mtu) {
  return {"--foreground", "--quiet",
          "--fd",         std::to_string(HelperProcess::kSocketFd),
          "--address",    kGuestV4.ToString(),
          "--netmask",    std::to_string(kLinkBitsV4),
          "--gateway",    kGatewayV4.ToString(),
          "--address",    kGuestV6.ToString(),
          "--gateway",    kGatewayV6.ToString(),
          "--mac-addr",   MacText(kGatewayMac),
          "--mtu",        std::to_string(mtu),
          "--tcp-ports",  "none",
          "--udp-ports",  "none",
          "--no-map-gw",  "--no-dhcp",
          "--no-dhcpv6",  "--no-ndp",
          "--no-ra"};
}

absl::Status WithAdvice(const absl::Status& status,
                        const std::string& program) {
  if (!absl::IsNotFound(status)) return status;
  return Error(absl::StatusCode::kFailedPrecondition,
               "{} is not there, and what the network policy allows needs it: "
               "install the package passt, or give the VM a tap",
               program);
}

}  // namespace

absl::StatusOr<std::shared_ptr<Link>> Link::Create(LinkOptions options,
                                                   io::EventLoop* loop) {
  if (options.mtu < kMinMtu || options.mtu > kMaxMtu) {
    return Error(absl::StatusCode::kInvalidArgument,
                 "mtu is {}, must be {} to {}", options.mtu, kMinMtu, kMaxMtu);
  }
  if (options.helper_arguments.empty()) {
    options.helper_arguments = PasstArguments(options.mtu);
  }
  std::unique_ptr<PacketPort> tap;
  if (options.tap.valid()) {
    CATNAP_ASSIGN_OR_RETURN(tap, PacketPort::Create(std::move(options.tap)));
  }
  std::shared_ptr<Link> link(
      new Link(std::move(options), tap != nullptr, loop));
  if (tap != nullptr) {
    const base::MutexLock lock(&link->mutex_);
    link->UsePortLocked(std::move(tap));
  }
  return link;
}

Link::Link(LinkOptions options, bool has_tap, io::EventLoop* loop)
    : options_(std::move(options)),
      has_tap_(has_tap),
      gate_({.guest_mac = options_.guest_mac,
             .mtu = options_.mtu,
             .outside = has_tap ? Outside::kBridged : Outside::kRouted,
             .log = options_.log},
            this),
      pause_(kFirstPause),
      resolver_(options_.resolver, loop),
      scope_(loop) {}

Link::~Link() { scope_.Close(); }

void Link::SetPolicy(std::shared_ptr<const Policy> policy) {
  const base::MutexLock lock(&mutex_);
  const bool closed = policy->mode() == PolicyMode::kDenyAll;
  gate_.SetPolicy(std::move(policy));
  // Who changes the policy may have put right what was wrong.
  not_before_ = {};
  pause_ = kFirstPause;
  if (!closed || has_tap_) return;
  DropHelperLocked(/*died=*/false, absl::OkStatus());
  outside_ = absl::OkStatus();
  if (!up_) {
    up_ = true;
    scope_.Post([this] { Notify(); });
  }
}

LinkStats Link::stats() const {
  const base::MutexLock lock(&mutex_);
  return {.gate = gate_.stats(),
          .helper_starts = helper_starts_,
          .helper_deaths = helper_deaths_,
          .helper_pid = helper_ != nullptr ? helper_->pid() : -1,
          .outside = outside_};
}

void Link::SetListener(std::function<void()> listener) {
  const base::MutexLock lock(&listener_mutex_);
  listener_ = std::move(listener);
}

void Link::Notify() {
  const base::MutexLock lock(&listener_mutex_);
  if (listener_) listener_();
}

bool Link::is_up() const {
  const base::MutexLock lock(&mutex_);
  return up_;
}

void Link::FromGuest(std::span<const uint8_t> frame) {
  const base::MutexLock lock(&mutex_);
  gate_.FromGuest(frame, std::chrono::steady_clock::now());
}

bool Link::HasFrame() const {
  const base::MutexLock lock(&mutex_);
  return !to_guest_.empty();
}

bool Link::TakeFrame(std::vector<uint8_t>* frame) {
  const base::MutexLock lock(&mutex_);
  if (to_guest_.empty()) return false;
  *frame = std::move(to_guest_.front());
  to_guest_.pop_front();
  to_guest_bytes_ -= frame->size();
  if (paused_ && to_guest_.size() <= kMaxGuestFrames / 2 &&
      to_guest_bytes_ <= kMaxGuestBytes / 2) {
    paused_ = false;
    scope_.Post([this] { OnReady(); });
  }
  return true;
}

bool Link::GuestHasRoomLocked() const {
  return to_guest_.size() < kMaxGuestFrames && to_guest_bytes_ < kMaxGuestBytes;
}

void Link::ToGuest(std::span<const uint8_t> frame) {
  if (!GuestHasRoomLocked()) {
    gate_.CountLost(Refusal::kQueueFull, /*out=*/false);
    return;
  }
  to_guest_.emplace_back(frame.begin(), frame.end());
  to_guest_bytes_ += frame.size();
}

Refusal Link::ToOutside(std::span<const uint8_t> frame) {
  if (port_ != nullptr) {
    const absl::StatusOr<Refusal> sent = port_->Send(frame);
    if (sent.ok()) return *sent;
    BreakLocked(sent.status());
    return Refusal::kNoBackend;
  }
  if (has_tap_) return Refusal::kNoBackend;
  if (!starting_) {
    if (std::chrono::steady_clock::now() < not_before_) {
      return Refusal::kNoBackend;
    }
    starting_ = true;
    scope_.Post([this] { StartHelper(); });
  }
  if (to_helper_.size() >= kMaxPendingFrames) return Refusal::kQueueFull;
  to_helper_.emplace_back(frame.begin(), frame.end());
  return Refusal::kNone;
}

void Link::Ask(uint64_t token, const DnsQuery& query) {
  resolver_.Ask(query, [this, token](std::span<const uint8_t> message,
                                     const DnsAnswer& answer) {
    {
      const base::MutexLock lock(&mutex_);
      gate_.OnAnswer(token, message, answer, std::chrono::steady_clock::now());
    }
    Notify();
  });
}

void Link::OnReady() {
  {
    const base::MutexLock lock(&mutex_);
    if (port_ == nullptr) return;
    absl::Status status = port_->Flush();
    if (status.ok()) {
      // What comes while the guest takes nothing waits in the kernel, which
      // slows its sender down.
      paused_ = !GuestHasRoomLocked();
      absl::StatusOr<bool> more = false;
      if (!paused_) {
        const auto now = std::chrono::steady_clock::now();
        more = port_->Receive([&](std::span<const uint8_t> frame)
                                  ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                                    worked_ = true;
                                    gate_.FromOutside(frame, now);
                                    return GuestHasRoomLocked();
                                  });
      }
      if (!more.ok()) {
        status = more.status();
      } else if (*more && !GuestHasRoomLocked()) {
        paused_ = true;
      } else if (*more) {
        scope_.Post([this] { OnReady(); });
      }
    }
    if (!status.ok()) BreakLocked(status);
  }
  Notify();
}

void Link::UsePortLocked(std::unique_ptr<WirePort> port) {
  port_ = std::move(port);
  watch_ = scope_.Watch(port_->fd(), POLLIN | POLLOUT, [this] { OnReady(); });
}

void Link::LosePendingLocked(Refusal why) {
  gate_.OnOutsideChanged();
  for (size_t i = 0; i < to_helper_.size(); ++i) {
    gate_.CountLost(why, /*out=*/true);
  }
  to_helper_.clear();
}

void Link::PauseLocked() {
  not_before_ = std::chrono::steady_clock::now() + pause_;
  pause_ = std::min(2 * pause_, kLongestPause);
}

void Link::StartHelper() {
  {
    const base::MutexLock lock(&mutex_);
    if (!starting_) return;
    if (gate_.policy().mode() == PolicyMode::kDenyAll) {
      starting_ = false;
      LosePendingLocked(Refusal::kPolicy);
      return;
    }
  }
  // Takes a millisecond, in which frames go on.
  auto started =
      HelperProcess::Start(options_.helper, options_.helper_arguments);
  {
    const base::MutexLock lock(&mutex_);
    starting_ = false;
    // Up in any case: without a helper the guest is told what cannot leave.
    up_ = true;
    if (!started.ok()) {
      outside_ = WithAdvice(started.status(), options_.helper);
      options_.log.LogIfError(outside_, "network");
      LosePendingLocked(Refusal::kNoBackend);
      PauseLocked();
    } else {
      helper_ = *std::move(started);
      worked_ = false;
      started_at_ = std::chrono::steady_clock::now();
      ++helper_starts_;
      outside_ = absl::OkStatus();
      UsePortLocked(std::make_unique<StreamPort>(helper_->socket()));
      while (!to_helper_.empty() && port_ != nullptr) {
        const auto frame = std::move(to_helper_.front());
        to_helper_.pop_front();
        const Refusal lost = ToOutside(frame);
        if (lost != Refusal::kNone) gate_.CountLost(lost, /*out=*/true);
      }
    }
  }
  Notify();
}

void Link::DropHelperLocked(bool died, const absl::Status& why) {
  scope_.Cancel(std::exchange(watch_, 0));
  port_.reset();
  starting_ = false;
  paused_ = false;
  LosePendingLocked(Refusal::kNoBackend);
  if (helper_ == nullptr) return;
  dropped_.push_back({.helper = std::move(helper_), .died = died, .why = why});
  scope_.Post([this] { EndDropped(); });
}

void Link::BreakLocked(const absl::Status& why) {
  if (has_tap_) {
    scope_.Cancel(std::exchange(watch_, 0));
    port_.reset();
    outside_ = AddContext(why, "the tap failed");
    options_.log.LogIfError(outside_, "network");
    up_ = false;
    scope_.Post([this] { Notify(); });
    return;
  }
  ++helper_deaths_;
  const auto now = std::chrono::steady_clock::now();
  if (now - started_at_ >= kSettled) pause_ = kFirstPause;
  const bool worked = worked_;
  PauseLocked();
  DropHelperLocked(/*died=*/true, why);
  if (!worked) return;
  // The guest's connections are gone: it sees the link go, and come back with
  // another helper.
  up_ = false;
  starting_ = true;
  scope_.StartTimer(not_before_, [this] { StartHelper(); });
  scope_.Post([this] { Notify(); });
}

void Link::EndDropped() {
  std::vector<Dropped> dropped;
  {
    const base::MutexLock lock(&mutex_);
    dropped.swap(dropped_);
  }
  for (const Dropped& entry : dropped) {
    const std::string how = entry.helper->End();
    if (!entry.died) continue;
    const absl::Status status = Error(
        absl::StatusCode::kUnavailable, "the network helper {} failed ({}): {}",
        options_.helper, std::string(entry.why.message()), how);
    options_.log.LogIfError(status, "network");
    const base::MutexLock lock(&mutex_);
    if (port_ == nullptr) outside_ = status;
  }
}

}  // namespace catnap::net
