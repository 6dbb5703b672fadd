#include "base/thread.h"

#include <csignal>
#include <memory>

#include "base/status.h"

namespace catnap::base {
namespace {

struct StartArguments {
  std::string name;
  absl::AnyInvocable<void() &&> body;
};

void* Trampoline(void* raw) {
  const std::unique_ptr<StartArguments> arguments(
      static_cast<StartArguments*>(raw));
  pthread_setname_np(pthread_self(), arguments->name.c_str());
  std::move(arguments->body)();
  return nullptr;
}

}  // namespace

Thread& Thread::operator=(Thread&& other) noexcept {
  if (this != &other) {
    Join();
    handle_ = other.handle_;
    running_ = std::exchange(other.running_, false);
  }
  return *this;
}

absl::StatusOr<Thread> Thread::Start(const std::string& name,
                                     absl::AnyInvocable<void() &&> body,
                                     size_t stack_bytes) {
  auto arguments = std::make_unique<StartArguments>();
  arguments->name = name.substr(0, 15);
  arguments->body = std::move(body);
  pthread_attr_t attributes{};
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, stack_bytes);
  // The new thread inherits the mask, so it never runs with signals open.
  sigset_t all{};
  sigset_t before{};
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  Thread thread;
  const int error =
      pthread_create(&thread.handle_, &attributes, Trampoline, arguments.get());
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (error != 0) return ErrnoError(error, "start thread {}", name);
  static_cast<void>(arguments.release());  // Now Trampoline's.
  thread.running_ = true;
  return thread;
}

void Thread::Join() {
  if (running_) pthread_join(handle_, nullptr);
  running_ = false;
}

void Thread::Detach() {
  if (running_) pthread_detach(handle_);
  running_ = false;
}

}  // namespace catnap::base
