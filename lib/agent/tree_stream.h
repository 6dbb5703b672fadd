#ifndef CATNAP_LIB_AGENT_TREE_STREAM_H_
#define CATNAP_LIB_AGENT_TREE_STREAM_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "agent/client.h"
#include "agent/files.h"
#include "agent/messages.h"
#include "base/mutex.h"

namespace catnap::agent {

// One stream for a thread that blocks: what arrives waits here, bounded by the
// stream's credit, until that thread takes it. Thread-safe.
class TreeStream final : public StreamHandler {
 public:
  explicit TreeStream(Client* client) : client_(client) {}

  static absl::StatusOr<std::shared_ptr<TreeStream>> Open(
      Client* client, Kind kind, const FileRequest& request,
      const CallLimits& limits);
  // For the caller that gives up; ends the stream.
  void Cancel() { client_->Cancel(id()); }

  // Blocks until all is on its way. False: the stream has ended; see Wait().
  bool Write(std::span<const uint8_t> data, bool end);
  // Blocks for the next bytes; empty at the stream's end.
  Encoded Read();
  // Blocks for the end.
  absl::Status Wait();

  size_t OnData(uint8_t channel, std::span<const uint8_t> data,
                bool end) override;
  void OnWritable() override;
  void OnEnd(absl::StatusOr<Encoded> result) override;

 private:
  uint32_t id() {
    base::MutexLock lock(&mutex_);
    return stream_;
  }

  Client* const client_;  // Not owned.
  base::Mutex mutex_;
  base::CondVar changed_;
  uint32_t stream_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Encoded> received_ ABSL_GUARDED_BY(mutex_);
  bool writable_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_TREE_STREAM_H_
