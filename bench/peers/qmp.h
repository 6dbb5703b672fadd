#ifndef CATNAP_BENCH_PEERS_QMP_H_
#define CATNAP_BENCH_PEERS_QMP_H_

#include <string>

#include "base/unique_fd.h"

namespace catnap::bench {

// QEMU's control socket. A failure ends this program.
class Qmp {
 public:
  // Waits until QEMU has made it. Events are seen by who waits for them.
  explicit Qmp(const std::string& path);

  // `arguments` is JSON, "" for none. Returns the whole answer.
  std::string Run(const std::string& command,
                  const std::string& arguments = "");
  // Gives QEMU a descriptor by this name.
  void SendFd(const std::string& name, int fd);
  // Until an event has come that has both texts in it. One that has `failure`
  // ends this program.
  void WaitForEvent(const std::string& name, const std::string& text,
                    const std::string& failure);

 private:
  void Send(const std::string& line, int fd);
  std::string ReadLine();
  std::string Answer(const std::string& command);

  base::UniqueFd socket_;
  std::string buffer_;
  std::string events_;  // Lines that nobody waited for yet.
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_PEERS_QMP_H_
