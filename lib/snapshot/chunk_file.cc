#include "snapshot/chunk_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>

#include "base/status.h"
#include "io/file.h"

namespace catnap::snapshot {

absl::StatusOr<base::UniqueFd> OpenChunkFile(int directory,
                                             const ChunkFile& file) {
  // Whoever can write the directory cannot make us wait (a FIFO) or leave it (a
  // symbolic link).
  auto fd = io::OpenFileAt(directory, file.name,
                           O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  if (fd.status().code() == absl::StatusCode::kNotFound) {
    return Error(absl::StatusCode::kDataLoss, "{} is missing", file.name);
  }
  if (!fd.ok()) return fd.status();
  struct stat info {};
  if (::fstat(fd->get(), &info) != 0) {
    return ErrnoError(errno, "stat {}", file.name);
  }
  if (!S_ISREG(info.st_mode) ||
      static_cast<uint64_t>(info.st_size) != file.file_bytes) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} has {} bytes, must be a file of {}", file.name,
                 info.st_size, file.file_bytes);
  }
  std::array<uint8_t, kChunkHeaderBytes> header{};
  if (const absl::Status status =
          io::ReadFully(fd->get(), header.data(), header.size(), 0);
      !status.ok()) {
    return status.code() == absl::StatusCode::kOutOfRange
               ? Error(absl::StatusCode::kDataLoss, "{} is cut", file.name)
               : AddContext(status, file.name);
  }
  const auto id = DecodeChunkHeader(header);
  if (!id.ok()) return AddContext(id.status(), file.name);
  if (*id != file.id) {
    return Error(absl::StatusCode::kDataLoss,
                 "{} is another file: its id is {}, must be {}", file.name,
                 IdText(*id), IdText(file.id));
  }
  return fd;
}

}  // namespace catnap::snapshot
