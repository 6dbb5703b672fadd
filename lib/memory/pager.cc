#include "memory/pager.h"

#include <poll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/status.h"

namespace catnap::memory {

using base::PageRange;

namespace {

constexpr int kLowestPriority = 19;  // As nice(1).

}  // namespace

absl::StatusOr<std::unique_ptr<Pager>> Pager::Start(Options options) {
  CATNAP_ASSIGN_OR_RETURN(Userfault userfault, Userfault::Open());
  CATNAP_RETURN_IF_ERROR(
      userfault.Register(options.alias.data(), options.alias.size()));
  CATNAP_ASSIGN_OR_RETURN(base::UniqueFd wake_fd, base::CreateEventFd());
  // new: the constructor is private.
  std::unique_ptr<Pager> pager(
      new Pager(std::move(options), std::move(userfault), std::move(wake_fd)));
  for (const PageRange& range : pager->options_.supply->There()) {
    pager->there_.Add(range);
  }
  Pager* const self = pager.get();
  CATNAP_ASSIGN_OR_RETURN(
      pager->thread_,
      base::Thread::Start("catnap-pager", [self] { self->Serve(); }));
  return pager;
}

Pager::~Pager() {
  stop_.request_stop();
  base::Thread filler;
  {
    const base::MutexLock lock(&mutex_);
    stopping_ = true;
    filler = std::move(filler_);
  }
  base::SignalEventFd(wake_fd_.get());
  filler.Join();
  thread_.Join();
}

void Pager::Fill() {
  // What is in the background must not take a CPU from guests that were just
  // woken. Where that is refused it does.
  ::setpriority(PRIO_PROCESS, static_cast<id_t>(::syscall(SYS_gettid)),
                kLowestPriority);
  const auto put = [this](PageRange range, const uint8_t* from) {
    return Put(range, from);
  };
  absl::StatusOr<bool> more = true;
  while (more.ok() && *more) {
    more = options_.supply->BringMore(put, stop_.get_token());
  }
  const base::MutexLock lock(&mutex_);
  TellFilled(more.status());
}

void Pager::TellFilled(absl::Status status) {
  switch (status.code()) {
    case absl::StatusCode::kCancelled:
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
      // Who touches a page gets it all the same.
      return;
    default:
      break;
  }
  if (!filled_.has_value()) filled_ = std::move(status);
  base::SignalEventFd(wake_fd_.get());
}

absl::Status Pager::Put(PageRange range, const uint8_t* from) {
  {
    const base::MutexLock lock(&mutex_);
    if (state_ == State::kFull) return absl::OkStatus();
    if (state_ == State::kLost) return lost_;
    ++puts_;
  }
  // Stays while puts_ is not 0.
  absl::Status status =
      userfault_->Put(options_.alias.data() + range.offset, from, range.length);
  if (status.ok()) there_.Add(range);
  const base::MutexLock lock(&mutex_);
  if (--puts_ == 0) changed_.NotifyAll();
  return status;
}

void Pager::Serve() {
  while (true) {
    std::array<pollfd, 2> wait{
        pollfd{.fd = userfault_->fd(), .events = POLLIN, .revents = 0},
        pollfd{.fd = wake_fd_.get(), .events = POLLIN, .revents = 0}};
    const int timeout = HasWish() ? 0 : -1;
    if (::poll(wait.data(), wait.size(), timeout) < 0 && errno != EINTR) {
      return BecomeLost(ErrnoError(errno, "wait for faults"));
    }
    if (wait[1].revents != 0) {
      base::DrainEventFd(wake_fd_.get());
      std::optional<absl::Status> filled;
      {
        const base::MutexLock lock(&mutex_);
        if (stopping_) return;
        filled.swap(filled_);
      }
      if (filled.has_value()) {
        return filled->ok() ? BecomeFull() : BecomeLost(*filled);
      }
    }
    absl::Status served = ServeFaults();
    if (served.ok()) served = ServeWish();
    if (!served.ok()) return BecomeLost(served);
  }
}

absl::Status Pager::ServeFaults() {
  // Looks for news of the filler in between.
  constexpr int kAtOnce = 64;
  for (int i = 0; i < kAtOnce; ++i) {
    CATNAP_ASSIGN_OR_RETURN(const auto fault, userfault_->NextFault());
    if (!fault.has_value()) break;
    CATNAP_RETURN_IF_ERROR(ServeFault(*fault));
  }
  return absl::OkStatus();
}

absl::Status Pager::ServeFault(uintptr_t address) {
  uint64_t offset = 0;
  {
    const base::MutexLock lock(&mutex_);
    auto at = mapped_.upper_bound(address);
    if (at == mapped_.begin()) return absl::OkStatus();  // Let go meanwhile.
    --at;
    const uint64_t distance = address - at->first;
    if (distance >= at->second.range.length) return absl::OkStatus();
    offset = at->second.range.offset + distance;
  }
  CATNAP_RETURN_IF_ERROR(BringPage(offset));
  userfault_->Wake(address, base::kPageBytes);
  return absl::OkStatus();
}

absl::Status Pager::BringPage(uint64_t offset) {
  const PageRange page{offset, base::kPageBytes};
  const auto put = [this](PageRange range, const uint8_t* from) {
    return Put(range, from);
  };
  CATNAP_ASSIGN_OR_RETURN(const bool brought,
                          options_.supply->Bring(offset, put));
  if (brought) {
    there_.Add(page);  // Also when somebody else put it.
    return absl::OkStatus();
  }
  // A page that nobody stored. It must be there for the fault to end.
  static constexpr std::array<uint8_t, base::kPageBytes> kZeros{};
  return Put(page, kZeros.data());
}

bool Pager::HasWish() {
  const base::MutexLock lock(&mutex_);
  return !wishes_.empty();
}

void Pager::ShortenWish(std::vector<PageRange>* ranges) const {
  while (!ranges->empty()) {
    PageRange& last = ranges->back();
    if (const auto missing = there_.FirstMissing(last); missing.has_value()) {
      last = {*missing, last.length - (*missing - last.offset)};
      return;
    }
    ranges->pop_back();
  }
}

absl::Status Pager::ServeWish() {
  std::shared_ptr<PageWaiter> waiter;
  uint64_t missing = 0;
  {
    const base::MutexLock lock(&mutex_);
    if (wishes_.empty()) return absl::OkStatus();
    Wish wish = std::move(wishes_.front());
    wishes_.pop_front();
    waiter = wish.waiter.lock();
    if (waiter == nullptr) return absl::OkStatus();  // Gone meanwhile.
    ShortenWish(&wish.ranges);
    if (!wish.ranges.empty()) {
      missing = wish.ranges.back().offset;
      wishes_.push_back(std::move(wish));
      waiter.reset();
    }
  }
  if (waiter == nullptr) return BringPage(missing);
  waiter->Tell();
  return absl::OkStatus();
}

bool Pager::BringSoon(std::vector<PageRange> ranges,
                      const std::shared_ptr<PageWaiter>& waiter) {
  {
    const base::MutexLock lock(&mutex_);
    if (state_ == State::kFull) return true;
    ShortenWish(&ranges);
    if (ranges.empty()) return true;
    if (state_ == State::kLost) return false;
    const auto same = std::find_if(
        wishes_.begin(), wishes_.end(),
        [&waiter](const Wish& wish) { return wish.waiter.lock() == waiter; });
    if (same != wishes_.end()) {
      same->ranges = std::move(ranges);
    } else {
      wishes_.push_back({.ranges = std::move(ranges), .waiter = waiter});
    }
  }
  base::SignalEventFd(wake_fd_.get());
  return false;
}

void Pager::BecomeFull() {
  std::deque<Wish> wishes;
  {
    const base::MutexLock lock(&mutex_);
    state_ = State::kFull;  // No Put() begins any more.
    while (puts_ > 0) changed_.Wait(&mutex_);
    userfault_.reset();  // Whoever waits goes on, and finds the page.
    // release: with Has().
    nothing_missing_.store(true, std::memory_order_release);
    wishes.swap(wishes_);
  }
  for (const Wish& wish : wishes) {
    if (const auto waiter = wish.waiter.lock()) waiter->Tell();
  }
  if (options_.on_full) options_.on_full();
  const base::MutexLock lock(&mutex_);
  changed_.NotifyAll();
}

void Pager::BecomeLost(const absl::Status& why) {
  std::vector<OnLost> tell;
  {
    const base::MutexLock lock(&mutex_);
    if (stopping_) return;
    state_ = State::kLost;
    lost_ = why;
    telling_ = true;
    for (const auto& [start, mapped] : mapped_) {
      if (mapped.on_lost) tell.push_back(mapped.on_lost);
    }
    wishes_.clear();  // Nobody sees zeros who asks before.
    changed_.NotifyAll();
  }
  stop_.request_stop();
  // Nobody detaches meanwhile, and nobody comes.
  for (const OnLost& on_lost : tell) on_lost(why);
  const base::MutexLock lock(&mutex_);
  telling_ = false;
  while (puts_ > 0) changed_.Wait(&mutex_);
  userfault_.reset();
  changed_.NotifyAll();
}

absl::StatusOr<Pager::Attachment> Pager::Attach(const uint8_t* start,
                                                PageRange range,
                                                OnLost on_lost) {
  const base::MutexLock lock(&mutex_);
  if (state_ == State::kFull) return Attachment();
  if (state_ == State::kLost) return lost_;
  CATNAP_RETURN_IF_ERROR(userfault_->Register(start, range.length));
  const auto address = reinterpret_cast<uintptr_t>(start);
  mapped_[address] = {.range = range, .on_lost = std::move(on_lost)};
  return Attachment(this, address, range);
}

void Pager::Detach(uintptr_t start) {
  const base::MutexLock lock(&mutex_);
  while (telling_) changed_.Wait(&mutex_);
  const auto at = mapped_.find(start);
  if (at == mapped_.end()) return;
  if (userfault_.has_value()) {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): it was one.
    userfault_->Unregister(reinterpret_cast<const uint8_t*>(start),
                           at->second.range.length);
  }
  mapped_.erase(at);
}

Pager::Attachment& Pager::Attachment::operator=(Attachment&& other) noexcept {
  std::swap(pager_, other.pager_);
  std::swap(start_, other.start_);
  std::swap(range_, other.range_);
  return *this;
}

Pager::Attachment::~Attachment() {
  if (pager_ != nullptr) pager_->Detach(start_);
}

absl::Status Pager::BringIn(PageRange range) {
  const auto put = [this](PageRange place, const uint8_t* from) {
    return Put(place, from);
  };
  for (uint64_t at = 0; at < range.length; at += base::kPageBytes) {
    {
      const base::MutexLock lock(&mutex_);
      if (state_ == State::kFull) return absl::OkStatus();
      if (state_ == State::kLost) return lost_;
    }
    CATNAP_RETURN_IF_ERROR(
        options_.supply->Bring(range.offset + at, put).status());
  }
  return absl::OkStatus();
}

absl::Status Pager::StartFilling() {
  const base::MutexLock lock(&mutex_);
  if (filler_.joinable() || state_ != State::kFilling) return absl::OkStatus();
  CATNAP_ASSIGN_OR_RETURN(
      filler_, base::Thread::Start("catnap-fill", [this] { Fill(); }));
  return absl::OkStatus();
}

absl::Status Pager::WaitUntilFull(
    const std::stop_token& stop,
    std::optional<std::chrono::steady_clock::time_point> deadline) {
  const std::stop_callback wake(stop, [this] {
    const base::MutexLock lock(&mutex_);
    changed_.NotifyAll();
  });
  bool brings = false;
  {
    const base::MutexLock lock(&mutex_);
    while (state_ == State::kFilling && bringing_all_) {
      CATNAP_RETURN_IF_ERROR(WaitLocked(stop, deadline));
    }
    brings = state_ == State::kFilling && !filled_.has_value();
    if (brings) bringing_all_ = true;
  }
  absl::Status brought;
  if (brings) {
    brought = options_.supply->BringAll(
        [this](PageRange range, const uint8_t* from) {
          return Put(range, from);
        },
        stop, deadline);
  }
  const base::MutexLock lock(&mutex_);
  if (brings) {
    bringing_all_ = false;
    changed_.NotifyAll();
    TellFilled(brought);
    if (!filled_.has_value() && state_ == State::kFilling) return brought;
  }
  while (state_ == State::kFilling) {
    CATNAP_RETURN_IF_ERROR(WaitLocked(stop, deadline));
  }
  return lost_;
}

absl::Status Pager::WaitLocked(
    const std::stop_token& stop,
    std::optional<std::chrono::steady_clock::time_point> deadline) {
  if (stop.stop_requested()) {
    return absl::CancelledError(
        "cancelled while the guest's memory was being read");
  }
  if (!deadline.has_value()) {
    changed_.Wait(&mutex_);
  } else if (!changed_.WaitUntil(&mutex_, *deadline)) {
    return absl::DeadlineExceededError(
        "the guest's memory was not read in time");
  }
  return absl::OkStatus();
}

absl::Status Pager::status() const {
  const base::MutexLock lock(&mutex_);
  return lost_;
}

bool Pager::full() const {
  const base::MutexLock lock(&mutex_);
  return state_ == State::kFull;
}

}  // namespace catnap::memory
