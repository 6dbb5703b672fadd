#ifndef CATNAP_LIB_BASE_SERIAL_QUEUE_H_
#define CATNAP_LIB_BASE_SERIAL_QUEUE_H_

#include <memory>

#include "catnap/executor.h"

namespace catnap::base {

// The callbacks of one object on anybody's executor: they run in the order of
// Post(), never two at once whatever threads the executor has, and not at all
// once the object is gone. An object owns one of these and declares it last.
//
// Thread-safe. Tasks may post, cancel and destroy the queue. Takes one place
// in the executor at a time, so that busy objects share it fairly.
class SerialQueue final : public Executor {
 public:
  explicit SerialQueue(std::shared_ptr<Executor> executor);
  SerialQueue(const SerialQueue&) = delete;
  SerialQueue& operator=(const SerialQueue&) = delete;
  ~SerialQueue() override;  // Cancel().

  // After Cancel(), `task` is destroyed at once without running.
  void Post(absl::AnyInvocable<void() &&> task) override;

  // Destroys the tasks that did not start, and waits for the one that runs to
  // return and be destroyed, unless that task is the caller. Afterwards no
  // task of this queue runs. Idempotent.
  // REQUIRES: the caller holds no lock that a task takes.
  void Cancel();

 private:
  // Shared with the task that waits in the executor, which may outlive this
  // object.
  struct State;

  static void Schedule(const std::shared_ptr<State>& state);
  static void RunOne(const std::shared_ptr<State>& state);

  const std::shared_ptr<State> state_;
};

}  // namespace catnap::base

#endif  // CATNAP_LIB_BASE_SERIAL_QUEUE_H_
