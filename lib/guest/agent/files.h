#ifndef CATNAP_LIB_GUEST_AGENT_FILES_H_
#define CATNAP_LIB_GUEST_AGENT_FILES_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "agent/messages.h"
#include "guest/agent/server.h"

struct stat;

namespace catnap::guest {

// Serves one file operation. Works a piece at a time, as far as the host's
// credit goes; a disk that is slow delays the agent's other work by a piece.
std::unique_ptr<Task> MakeFileTask(Server* server, uint32_t stream,
                                   agent::Kind kind, Bytes request);

// The tree kinds; in tree.cc.
std::unique_ptr<Task> MakeTreeTask(Server* server, uint32_t stream,
                                   agent::Kind kind,
                                   const agent::FileRequest& request);

// A failed system call as a result.
agent::FileResult FileError(int error, std::string_view what);

// Fills all but path, link and data.
void FillEntry(const struct stat& info, agent::FileEntry* entry);

// Sends what Produce() makes on the main channel, then the result.
class SourceTask : public Task {
 public:
  SourceTask(Server* server, uint32_t stream)
      : server_(server), stream_(stream) {}
  void OnWritable() override { Pump(); }
  void Pump();

 protected:
  // Appends a piece. False: that was the last one, and result_ is set.
  virtual bool Produce(std::vector<uint8_t>* to) = 0;
  agent::FileResult result_;

 private:
  Server* const server_;  // Not owned.
  const uint32_t stream_;
  std::vector<uint8_t> pending_;
  size_t sent_ = 0;
  bool done_ = false;
};

}  // namespace catnap::guest

#endif  // CATNAP_LIB_GUEST_AGENT_FILES_H_
