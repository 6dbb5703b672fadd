#include "guest/agent/sleep.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "guest/agent/connections.h"
#include "guest/agent/identity.h"
#include "guest/agent/network.h"
#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

using agent::Kind;
using agent::SleepResult;
using std::chrono::steady_clock;

// Programs stop in some ten microseconds, unless they are in the kernel.
constexpr std::chrono::microseconds kFirstPause{20};
constexpr std::chrono::microseconds kLongestPause{1000};
constexpr size_t kFlushStack = 64 << 10;

SleepResult Failed(int error, const std::string& what) {
  SleepResult result;
  result.error = error;
  result.text = ErrorText(what, error);
  return result;
}

uint64_t Nanoseconds(std::chrono::nanoseconds time) {
  return static_cast<uint64_t>(std::max<int64_t>(time.count(), 0));
}

}  // namespace

// Ends the freeze when the host does not want it any longer.
class Sleep::FreezeTask final : public Task {
 public:
  FreezeTask(Sleep* sleep, uint32_t stream) : sleep_(sleep), stream_(stream) {}
  void OnReset() override { sleep_->Withdraw(stream_); }

 private:
  Sleep* const sleep_;  // Not owned.
  const uint32_t stream_;
};

// A request that came while programs stood still, and all that followed it.
class Sleep::HeldTask final : public Task {
 public:
  HeldTask(Sleep* sleep, Server* server, uint32_t stream, Kind kind,
           Bytes request, Resume resume)
      : sleep_(sleep),
        server_(server),
        stream_(stream),
        kind_(kind),
        request_(request.begin(), request.end()),
        resume_(std::move(resume)) {
    sleep_->held_.push_back(this);
  }
  ~HeldTask() override { sleep_->held_.remove(this); }

  void Start() {
    task_ = resume_(server_, stream_, kind_, request_);
    if (task_ == nullptr) {
      // It was answered; else this is the answer.
      server_->Refuse(stream_, agent::ResetCode::kUnknown, "unknown kind");
      return;
    }
    for (const Piece& piece : std::exchange(pieces_, {})) {
      if (piece.message) {
        task_->OnMessage(piece.bytes);
      } else {
        task_->OnData(piece.channel, piece.bytes, piece.end);
      }
    }
  }

  void OnData(uint8_t channel, Bytes data, bool end) override {
    if (task_ != nullptr) {
      task_->OnData(channel, data, end);
    } else {
      // At most the credit's worth.
      pieces_.push_back({false, channel, end, {data.begin(), data.end()}});
    }
  }
  void OnMessage(agent::Fields fields) override {
    if (task_ != nullptr) {
      task_->OnMessage(fields);
    } else if (pieces_.size() < kMaxPieces) {
      pieces_.push_back({true, 0, false, {fields.begin(), fields.end()}});
    }
  }
  void OnWritable() override {
    if (task_ != nullptr) task_->OnWritable();
  }
  void OnReset() override {
    if (task_ != nullptr) task_->OnReset();
  }

 private:
  static constexpr size_t kMaxPieces = 65'536;
  struct Piece {
    bool message;
    uint8_t channel;
    bool end;
    std::vector<uint8_t> bytes;
  };

  Sleep* const sleep_;    // Not owned.
  Server* const server_;  // Not owned.
  const uint32_t stream_;
  const Kind kind_;
  const std::vector<uint8_t> request_;
  const Resume resume_;
  std::vector<Piece> pieces_;
  std::unique_ptr<Task> task_;
};

Sleep::Sleep(ProcessTable* processes, const std::string& cgroup_root,
             const std::string& run_directory)
    : processes_(processes),
      loop_(processes->loop()),
      run_directory_(run_directory),
      freezer_(processes->cgroups()->base(),
               processes->is_init() ? cgroup_root : std::string()),
      files_(run_directory),
      flushed_fd_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  loop_->Add(flushed_fd_, EPOLLIN, this);
}

Sleep::~Sleep() {
  waiters_.clear();
  Release();
  // A thread that still writes has its own end to meet: the process's.
  loop_->Remove(flushed_fd_);
  if (!flushing_) close(flushed_fd_);
}

void* Sleep::Flush(void* sleep) {
  const int fd = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd >= 0) {
    syncfs(fd);  // What cannot be written is lost to its programs, not to us.
    close(fd);
  }
  const uint64_t one = 1;
  if (write(static_cast<Sleep*>(sleep)->flushed_fd_, &one, sizeof(one)) < 0) {
    // It counts up from 0: there is room.
  }
  return nullptr;
}

bool Sleep::StartFlush() {
  pthread_attr_t attributes;
  pthread_t thread{};
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, kFlushStack);
  flushing_ = pthread_create(&thread, &attributes, &Sleep::Flush, this) == 0;
  pthread_attr_destroy(&attributes);
  return flushing_;
}

std::unique_ptr<Task> Sleep::Freeze(Server* server, uint32_t stream,
                                    Bytes request) {
  agent::FreezeRequest freeze;
  if (!Decode(request, &freeze)) {
    server->Refuse(stream, agent::ResetCode::kProtocol, "malformed request");
    return nullptr;
  }
  if (state_ == State::kFrozen) {
    server->Finish(stream, Encode(SleepResult{}));
    return nullptr;
  }
  auto task = std::make_unique<FreezeTask>(this, stream);
  waiters_.push_back({server, stream});
  if (state_ != State::kRunning) return task;  // Answered with the first.
  bound_ = std::chrono::milliseconds(
      freeze.bound_ms == 0 ? agent::kDefaultFreezeBoundMs : freeze.bound_ms);
  flush_took_ = {};
  if (!freeze.flush) {
    StartFreeze();
    return task;
  }
  state_ = State::kFlushing;
  flush_started_ = steady_clock::now();
  if (flushing_) {
    flush_again_ = true;  // What that one began with is not all.
  } else if (!StartFlush()) {
    sync();
    StartFreeze();
  }
  return task;
}

void Sleep::OnEvents(int fd, uint32_t /*events*/) {
  uint64_t count = 0;
  if (read(fd, &count, sizeof(count)) < 0) return;
  flushing_ = false;
  if (state_ != State::kFlushing) {
    flush_again_ = false;
    return;
  }
  if (std::exchange(flush_again_, false) && StartFlush()) return;
  flush_took_ = steady_clock::now() - flush_started_;
  StartFreeze();
}

void Sleep::StartFreeze() {
  state_ = State::kFreezing;
  freeze_started_ = steady_clock::now();
  processes_->OnFreeze();
  const int error = freezer_.Start();
  if (error != 0) {
    Answer(Failed(error, "freeze"));
    Release();
    StartHeld();
    return;
  }
  pause_ = kFirstPause;
  LookAgain();
}

void Sleep::LookAgain() {
  timer_.reset();
  const bool complete = freezer_.IsComplete();
  const auto now = steady_clock::now();
  if (complete) {
    state_ = State::kFrozen;
    SleepResult result;
    result.flush_ns = Nanoseconds(flush_took_);
    result.freeze_ns = Nanoseconds(now - freeze_started_);
    Answer(result);
  } else if (now - freeze_started_ >= bound_) {
    Answer(Failed(ETIMEDOUT, "programs did not stop within " +
                                 std::to_string(bound_.count()) + " ms"));
    Release();
    StartHeld();
  } else {
    timer_ = loop_->AddTimer(now + pause_, [this] { LookAgain(); });
    pause_ = std::min(pause_ * 2, kLongestPause);
  }
}

void Sleep::Answer(const SleepResult& result) {
  for (const Waiter& waiter : std::exchange(waiters_, {})) {
    waiter.server->Finish(waiter.stream, Encode(result));
  }
}

void Sleep::Withdraw(uint32_t stream) {
  const size_t before = waiters_.size();
  waiters_.erase(std::remove_if(waiters_.begin(), waiters_.end(),
                                [stream](const Waiter& waiter) {
                                  return waiter.stream == stream;
                                }),
                 waiters_.end());
  if (before == 0 || !waiters_.empty()) return;
  Release();
  StartHeld();
}

void Sleep::Release() {
  Answer(Failed(ECANCELED, "freeze"));
  if (timer_.has_value()) loop_->RemoveTimer(*timer_);
  timer_.reset();
  const State before = std::exchange(state_, State::kRunning);
  if (before != State::kFreezing && before != State::kFrozen) return;
  freezer_.Thaw();
  processes_->OnThaw(steady_clock::now() - freeze_started_);
}

void Sleep::StartHeld() {
  if (state_ != State::kRunning) return;
  for (HeldTask* const task : std::exchange(held_, {})) task->Start();
}

bool Sleep::Holds(Kind kind) const {
  if (state_ != State::kFreezing && state_ != State::kFrozen) return false;
  const auto number = static_cast<uint32_t>(kind);
  return kind == Kind::kExec ||
         (number >= static_cast<uint32_t>(Kind::kReadFile) &&
          number <= static_cast<uint32_t>(Kind::kTreeOut));
}

std::unique_ptr<Task> Sleep::Hold(Server* server, uint32_t stream, Kind kind,
                                  Bytes request, Resume resume) {
  return std::make_unique<HeldTask>(this, server, stream, kind, request,
                                    std::move(resume));
}

std::unique_ptr<Task> Sleep::Clock(Server* server, uint32_t stream) {
  SleepResult result;
  result.monotonic_ns = MonotonicNow();
  server->Finish(stream, Encode(result));
  return nullptr;
}

std::unique_ptr<Task> Sleep::Thaw(Server* server, uint32_t stream) {
  Release();
  server->Finish(stream, Encode(SleepResult{}));
  StartHeld();
  return nullptr;
}

std::unique_ptr<Task> Sleep::Wake(Server* server, uint32_t stream,
                                  Bytes request) {
  agent::WakeRequest wake;
  if (!Decode(request, &wake)) {
    server->Refuse(stream, agent::ResetCode::kProtocol, "malformed request");
    return nullptr;
  }
  SleepResult result;
  std::string failed;
  const int error = Apply(wake, &failed, &result.text);
  if (error != 0) {
    server->Finish(stream, Encode(Failed(error, failed)));
    return nullptr;
  }
  Release();
  result.text.resize(std::min(result.text.size(), agent::kMaxErrorText));
  server->Finish(stream, Encode(result));
  StartHeld();
  return nullptr;
}

int Sleep::Apply(const agent::WakeRequest& request, std::string* failed,
                 std::string* left_out) {
  const auto needed = [failed](int error, const char* what) {
    if (error != 0) *failed = what;
    return error;
  };
  const auto wanted = [left_out](int error, const char* what) {
    if (error == 0) return;
    if (!left_out->empty()) *left_out += "; ";
    *left_out += ErrorText(what, error);
  };
  if (processes_->is_init()) {
    if (request.wall_ns != 0) {
      const int error = SetWallClock(request.wall_ns, request.monotonic_ns);
      if (needed(error, "clock") != 0) return error;
    }
    if (!request.entropy.empty()) {
      const int error = MixEntropy(request.entropy);
      if (needed(error, "entropy") != 0) return error;
    }
    if (!request.hostname.empty()) {
      wanted(SetHostname(request.hostname), "hostname");
    }
    if (request.machine_id.has_value()) {
      wanted(SetMachineId(*request.machine_id, run_directory_), "machine-id");
    }
    if (request.mac.has_value()) {
      wanted(SetMacAddress(*request.mac), "hardware address");
    }
    if (request.is_copy ||
        request.connections == agent::Connections::kDestroy) {
      wanted(DestroyOutsideConnections(), "connections");
    }
  }
  if (request.set_env) wanted(files_.SetEnv(request.env), "env");
  // Last: who sees it may count on the others.
  return needed(files_.SetGeneration(request.generation), "generation");
}

}  // namespace catnap::guest
