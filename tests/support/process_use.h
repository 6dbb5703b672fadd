#ifndef CATNAP_TESTS_SUPPORT_PROCESS_USE_H_
#define CATNAP_TESTS_SUPPORT_PROCESS_USE_H_

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <vector>

namespace catnap::test {

inline size_t OpenDescriptors() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(all), end(all)));
}

// The names of this process's threads, in order, without those that the kernel
// starts and ends in it as it likes: io_uring's workers, and KVM's that splits
// large pages.
inline std::vector<std::string> OwnThreads() {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator at("/proc/self/task", error), end;
       !error && at != end; at.increment(error)) {
    std::string name;
    std::getline(std::ifstream(at->path() / "comm"), name);
    // One that has ended meanwhile has none.
    if (name.empty() || name.rfind("iou-", 0) == 0 ||
        name.rfind("kvm-", 0) == 0) {
      continue;
    }
    names.push_back(std::move(name));
  }
  std::sort(names.begin(), names.end());
  return names;
}

// The same, as soon as there are at most `most`, or after a minute: a thread
// that was joined is listed for a moment more.
inline std::vector<std::string> OwnThreadsWithin(size_t most) {
  const auto latest =
      std::chrono::steady_clock::now() + std::chrono::seconds(60);
  std::vector<std::string> names = OwnThreads();
  while (names.size() > most && std::chrono::steady_clock::now() < latest) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    names = OwnThreads();
  }
  return names;
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_PROCESS_USE_H_
