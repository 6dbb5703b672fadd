#include "guest/agent/hosts.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <string_view>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

constexpr std::string_view kName = "host.catnap";
constexpr std::string_view kLine = "127.0.0.2\thost.catnap\n";
constexpr std::string_view kLoopback =
    "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
constexpr off_t kMaxFileBytes = 1 << 20;
constexpr std::string_view kBlanks = " \t\r";

// Whether a line of the file gives some address the host's name.
bool Names(std::string_view line) {
  line = line.substr(0, line.find('#'));
  bool is_name = false;  // The first word is the address.
  for (;;) {
    const size_t start = line.find_first_not_of(kBlanks);
    if (start == std::string_view::npos) return false;
    line.remove_prefix(start);
    const size_t end = line.find_first_of(kBlanks);
    if (is_name && line.substr(0, end) == kName) return true;
    if (end == std::string_view::npos) return false;
    line.remove_prefix(end);
    is_name = true;
  }
}

bool ReadAll(int fd, std::string* text) {
  std::array<char, 4096> piece;  // Not cleared: it is read into.
  while (text->size() <= static_cast<size_t>(kMaxFileBytes)) {
    const ssize_t got = read(fd, piece.data(), piece.size());
    if (got <= 0) return got == 0;
    text->append(piece.data(), static_cast<size_t>(got));
  }
  return false;
}

bool AddTo(int fd) {
  struct stat status {};
  std::string text;
  // A pipe or a device of the image's would keep process 1 waiting.
  if (fstat(fd, &status) != 0 || !S_ISREG(status.st_mode) ||
      status.st_size > kMaxFileBytes || !ReadAll(fd, &text)) {
    return false;
  }
  for (const std::string_view line : Split(text, '\n')) {
    if (Names(line)) return true;
  }
  std::string more;
  if (text.empty()) more = kLoopback;
  if (!text.empty() && text.back() != '\n') more = "\n";
  more += kLine;
  return write(fd, more.data(), more.size()) ==
         static_cast<ssize_t>(more.size());
}

}  // namespace

bool NameTheHost(const std::string& path) {
  const int fd = open(
      path.c_str(),
      O_RDWR | O_APPEND | O_CREAT | O_NONBLOCK | O_NOCTTY | O_CLOEXEC, 0644);
  if (fd < 0) return false;
  const bool done = AddTo(fd);
  close(fd);
  return done;
}

}  // namespace catnap::guest
