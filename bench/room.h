#ifndef CATNAP_BENCH_ROOM_H_
#define CATNAP_BENCH_ROOM_H_

#include <filesystem>
#include <string>

namespace catnap::bench {

// Whether this runs in the emulated host.
bool IsEmulated();

// A directory for disks and trees, in $TMPDIR or on the emulated host's scratch
// disk; goes at the end.
class Room {
 public:
  Room();
  ~Room();
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;

  std::string operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// The tar that CATNAP_BENCH_ROOTFS names, or that of examples/debian_rootfs.sh
// below `source`, which makes it when it is not there.
std::string FindRootfs(const std::string& source);

// Writes back all files below `directory` and takes them out of the page cache.
// Ends the program when one stays there.
void DropFromCache(const std::string& directory);

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_ROOM_H_
