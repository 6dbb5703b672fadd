#include "guest/agent/ended_processes.h"

#include <utility>

namespace catnap::guest {
namespace {

// Sends what was kept, as the host takes it, and ends.
class EndedTask final : public Task {
 public:
  EndedTask(Server* server, uint32_t stream,
            std::shared_ptr<const EndedProcess> process)
      : server_(server), stream_(stream), process_(std::move(process)) {}

  void OnWritable() override { Send(); }

  void Send() {
    for (size_t i = 0; i < sent_.size(); ++i) {
      const std::string& output = process_->output[i];
      const Bytes rest =
          Bytes(reinterpret_cast<const uint8_t*>(output.data()), output.size())
              .subspan(sent_[i]);
      if (rest.empty()) continue;
      sent_[i] += server_->Write(
          stream_, static_cast<uint8_t>(agent::kStdout + i), rest, false);
      if (sent_[i] < output.size()) return;
    }
    server_->Finish(stream_, Encode(process_->report));
  }

 private:
  Server* const server_;  // Not owned.
  const uint32_t stream_;
  const std::shared_ptr<const EndedProcess> process_;
  std::array<size_t, 2> sent_{};
};

}  // namespace

void EndedProcesses::Keep(EndedProcess process) {
  output_bytes_ += process.output_bytes();
  processes_.push_back(
      std::make_shared<const EndedProcess>(std::move(process)));
  if (processes_.size() > kMaxProcesses) {
    output_bytes_ -= processes_.front()->output_bytes();
    processes_.pop_front();
  }
  for (auto& old : processes_) {
    if (output_bytes_ <= kMaxOutputBytes) return;
    if (old->output_bytes() == 0) continue;
    output_bytes_ -= old->output_bytes();
    auto bare = std::make_shared<EndedProcess>();
    bare->id = old->id;
    bare->report = old->report;
    bare->report.truncated = true;
    old = std::move(bare);
  }
}

std::unique_ptr<Task> EndedProcesses::AttachTo(Server* server, uint32_t stream,
                                               uint64_t process_id) const {
  for (const auto& process : processes_) {
    if (process->id != process_id) continue;
    server->SendMessage(stream, Encode(agent::Started{process_id, 0}));
    auto task = std::make_unique<EndedTask>(server, stream, process);
    task->Send();
    return task;
  }
  return nullptr;
}

}  // namespace catnap::guest
