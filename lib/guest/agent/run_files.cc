#include "guest/agent/run_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <string_view>

#include "guest/agent/text.h"

namespace catnap::guest {
namespace {

// Others are commands to a shell that reads the file.
bool IsShellName(std::string_view name) {
  const auto letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  };
  return !name.empty() && letter(name[0]) &&
         std::all_of(name.begin(), name.end(), [letter](char c) {
           return letter(c) || (c >= '0' && c <= '9');
         });
}

}  // namespace

RunFiles::RunFiles(const std::string& directory) : directory_(directory) {
  if (directory_.empty()) return;
  mkdir(directory_.c_str(), 0755);
  const std::string path = directory_ + "/generation";
  unlink(path.c_str());
  generation_fd_ =
      open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (generation_fd_ >= 0) {
    fchmod(generation_fd_, 0644);
    WriteGeneration();
  }
  SetEnv({});
}

RunFiles::~RunFiles() {
  if (generation_fd_ >= 0) close(generation_fd_);
}

int RunFiles::WriteGeneration() {
  std::array<char, 32> text{};
  const int size =
      std::snprintf(text.data(), text.size(), "%016llx\n",
                    static_cast<unsigned long long>(generation_));  // NOLINT
  // Over the old one, which is as long: no reader sees a part.
  return pwrite(generation_fd_, text.data(), static_cast<size_t>(size), 0) ==
                 size
             ? 0
             : errno;
}

int RunFiles::SetGeneration(uint64_t generation) {
  if (directory_.empty()) return 0;
  if (generation_fd_ < 0) return EBADF;
  generation_ = generation == 0 || generation == generation_ ? generation_ + 1
                                                             : generation;
  const int error = WriteGeneration();
  // Some watch for the end of writing only.
  const int again = open((directory_ + "/generation").c_str(),
                         O_WRONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (again >= 0) close(again);
  return error;
}

int RunFiles::SetEnv(const std::vector<std::string>& env) {
  if (directory_.empty()) return 0;
  std::string text;
  for (const std::string_view variable : env) {
    const size_t name = variable.find('=');
    if (name == std::string_view::npos) continue;
    if (!IsShellName(variable.substr(0, name))) continue;
    text += variable.substr(0, name + 1);
    text += '\'';
    for (const char c : variable.substr(name + 1)) {
      if (c == '\'') {
        text += "'\\''";
      } else {
        text += c;
      }
    }
    text += "'\n";
  }
  const std::string path = directory_ + "/env";
  // Most copies have their parent's; a new file takes memory in each.
  if (access(path.c_str(), F_OK) == 0 &&
      ReadText(path, text.size() + 1) == text) {
    return 0;
  }
  const std::string draft = directory_ + "/.env";
  unlink(draft.c_str());
  const int fd =
      open(draft.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (fd < 0) return errno;
  fchmod(fd, 0644);
  int error =
      write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size())
          ? 0
          : EIO;
  close(fd);
  if (error == 0 && rename(draft.c_str(), path.c_str()) != 0) error = errno;
  return error;
}

}  // namespace catnap::guest
