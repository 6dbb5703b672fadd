#ifndef CATNAP_LIB_IO_FILE_WORKERS_H_
#define CATNAP_LIB_IO_FILE_WORKERS_H_

#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/thread.h"
#include "io/operation.h"
#include "io/operation_list.h"

namespace catnap::io {

// A few threads that run file operations with blocking calls, for one event
// loop. All methods belong on the loop's thread.
class FileWorkers {
 public:
  // Starts one thread, and up to `max_threads` later when there is work for
  // them. `wake_fd` is an eventfd that outlives this; it is signalled when
  // TakeFinished() has something.
  // Errors: RESOURCE_EXHAUSTED, no more threads.
  static absl::StatusOr<std::unique_ptr<FileWorkers>> Create(
      const std::string& name, unsigned max_threads, int wake_fd);

  FileWorkers(const FileWorkers&) = delete;
  FileWorkers& operator=(const FileWorkers&) = delete;
  // Waits for the operations that run. REQUIRES: none is queued.
  ~FileWorkers();

  void Submit(Operation* operation);
  // Takes an operation back that no thread has begun. Returns false when one
  // has; that one then ends at its next call to the kernel.
  bool Cancel(Operation* operation);
  // Moves out what has ended, with Operation::result set. `into` is empty.
  void TakeFinished(std::vector<Operation*>* into);

 private:
  FileWorkers(std::string name, unsigned max_threads, int wake_fd)
      : name_(std::move(name)), max_threads_(max_threads), wake_fd_(wake_fd) {}
  absl::Status StartThread();
  void Work();

  const std::string name_;
  const unsigned max_threads_;
  const int wake_fd_;  // Not owned.
  base::Mutex mutex_;
  base::CondVar work_;
  OperationList queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<Operation*> finished_ ABSL_GUARDED_BY(mutex_);
  size_t idle_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t queued_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<base::Thread> threads_;  // Last: joined first.
};

}  // namespace catnap::io

#endif  // CATNAP_LIB_IO_FILE_WORKERS_H_
