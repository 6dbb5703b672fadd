#ifndef CATNAP_BENCH_PEERS_QEMU_GUEST_H_
#define CATNAP_BENCH_PEERS_QEMU_GUEST_H_

#include <sys/types.h>

#include <functional>
#include <string>
#include <vector>

#include "base/unique_fd.h"

namespace catnap::bench {

// The same kernel and root disk in QEMU's microvm: one vCPU, virtio-mmio
// devices, a shell as process 1 on its serial port. Dies with this process.
class QemuGuest {
 public:
  struct Disk {
    std::string path;
    std::string serial;
    bool read_only = false;
    bool direct = false;  // Around the host's page cache.
  };
  struct Options {
    int memory_mib = 768;
    std::vector<Disk> disks{};     // One has the serial "root".
    std::string initramfs{};       // A path to make it at.
    std::string network_socket{};  // passt's; empty: no network.
    std::string control_socket{};  // Made there, for Qmp; empty: none.
    // Runs nothing: waits for the memory of another.
    bool incoming = false;
  };

  // Returns when the shell answers, or with `incoming` at once.
  explicit QemuGuest(const Options& options);
  ~QemuGuest();
  QemuGuest(const QemuGuest&) = delete;
  QemuGuest& operator=(const QemuGuest&) = delete;

  // The name of a disk in the guest: vda, ...
  std::string DiskOf(const std::string& serial);
  // Runs commands of the shell; what they wrote. A failure ends this program.
  std::string Shell(const std::string& commands);
  // The same; bytes `tick` are left out of what they wrote, and told as they
  // come.
  std::string Listen(const std::string& commands, char tick,
                     const std::function<void()>& on_tick);
  // Writes to the program that reads the terminal. Beside Listen() from another
  // thread.
  void Type(const std::string& text);

 private:
  std::string ReadTo(const std::string& mark);

  pid_t pid_ = -1;
  base::UniqueFd to_;
  base::UniqueFd from_;
  std::string console_;
  char tick_ = 0;
  std::function<void()> on_tick_;
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_PEERS_QEMU_GUEST_H_
