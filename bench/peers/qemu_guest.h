#ifndef CATNAP_BENCH_PEERS_QEMU_GUEST_H_
#define CATNAP_BENCH_PEERS_QEMU_GUEST_H_

#include <sys/types.h>

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
    std::vector<Disk> disks;     // One has the serial "root".
    std::string initramfs;       // A path to make it at.
    std::string network_socket;  // passt's; empty: no network.
  };

  // Returns when the shell answers.
  explicit QemuGuest(const Options& options);
  ~QemuGuest();
  QemuGuest(const QemuGuest&) = delete;
  QemuGuest& operator=(const QemuGuest&) = delete;

  // The name of a disk in the guest: vda, ...
  std::string DiskOf(const std::string& serial);
  // Runs commands of the shell; what they wrote. A failure ends this program.
  std::string Shell(const std::string& commands);

 private:
  std::string ReadTo(const std::string& mark);

  pid_t pid_ = -1;
  base::UniqueFd to_;
  base::UniqueFd from_;
  std::string console_;
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_PEERS_QEMU_GUEST_H_
