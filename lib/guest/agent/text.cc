#include "guest/agent/text.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cstring>

namespace catnap::guest {

std::vector<std::string_view> Split(std::string_view text, char separator) {
  std::vector<std::string_view> pieces;
  for (;;) {
    const size_t end = text.find(separator);
    pieces.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return pieces;
    text.remove_prefix(end + 1);
  }
}

std::string ReadText(const std::string& path, size_t max_bytes) {
  std::string text;
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return text;
  std::array<char, 4096> piece{};
  while (text.size() < max_bytes) {
    const ssize_t got = read(fd, piece.data(), piece.size());
    if (got <= 0) break;
    text.append(piece.data(), static_cast<size_t>(got));
  }
  close(fd);
  if (text.size() > max_bytes) text.resize(max_bytes);
  return text;
}

bool WriteText(const std::string& path, std::string_view text) {
  const int fd = open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool done =
      write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  close(fd);
  return done;
}

std::string ErrorText(std::string_view what, int error) {
  std::array<char, 128> buffer{};
  std::string text(what);
  text += ": ";
  text += strerror_r(error, buffer.data(), buffer.size());
  return text;
}

}  // namespace catnap::guest
