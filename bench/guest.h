#ifndef CATNAP_BENCH_GUEST_H_
#define CATNAP_BENCH_GUEST_H_

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "agent/client.h"
#include "base/clock.h"
#include "harness.h"
#include "io/event_loop.h"
#include "kvm/system.h"
#include "runtime/agent_connection.h"
#include "vmm/guest_devices.h"
#include "vmm/machine.h"

namespace catnap::bench {

// When a call of a benchmark is given up.
std::chrono::steady_clock::time_point Soon();

// A running Linux guest with one vCPU, its agent and our end of the connection,
// as MicroVM::Run makes it, but with the machine at hand.
class Guest {
 public:
  // `loop` must outlive the guest. Returns when the agent answers.
  Guest(const std::shared_ptr<const kvm::System>& system, io::EventLoop* loop,
        uint64_t memory_bytes, vmm::GuestDevices devices);
  ~Guest();
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  vmm::Machine& machine() { return *machine_; }
  vmm::GuestSockets& sockets() { return *sockets_; }
  agent::Client* client() { return client_.get(); }
  const std::shared_ptr<agent::Client>& shared_client() { return client_; }

  void Ping();
  // What it wrote; a program that fails ends this one.
  std::string Exec(std::vector<std::string> argv);
  std::string Shell(const std::string& commands) {
    return Exec({"/bin/sh", "-c", commands});
  }
  void CopyIn(const std::string& from, const std::string& to);

 private:
  base::SystemClock clock_;
  std::shared_ptr<vmm::Machine> machine_;
  vmm::GuestSockets* sockets_ = nullptr;
  std::unique_ptr<runtime::AgentConnection> connection_;
  std::shared_ptr<agent::Client> client_;
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_GUEST_H_
