#include "memory/page_filler.h"

#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/checked.h"
#include "base/status.h"

namespace catnap::memory {
namespace {

absl::Status WriteAll(int fd, base::PageRange range, const uint8_t* from) {
  uint64_t done = 0;
  while (done < range.length) {
    const ssize_t wrote = ::pwrite(fd, from + done, range.length - done,
                                   static_cast<off_t>(range.offset + done));
    if (wrote > 0) {
      done += static_cast<uint64_t>(wrote);
    } else if (wrote == 0 || errno != EINTR) {
      return ErrnoError(wrote == 0 ? EIO : errno,
                        "write {} bytes of guest memory in place",
                        range.length - done);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PageFiller> PageFiller::Create(MemoryFile* file) {
  CATNAP_ASSIGN_OR_RETURN(const auto alias, file->Writable({0, file->size()}));
  PageFiller filler(file->fd(), alias);
  auto userfault = Userfault::OpenToPut();
  if (userfault.ok() && userfault->Register(alias.data(), alias.size()).ok()) {
    filler.userfault_ = std::move(*userfault);
  }
  return filler;
}

absl::Status PageFiller::Put(base::PageRange range, const uint8_t* from) const {
  if (!base::InRange<uint64_t>(range.offset, range.length, alias_.size())) {
    return Error(absl::StatusCode::kOutOfRange,
                 "{} bytes at {:#x} are not in a memory file of {} bytes",
                 range.length, range.offset, alias_.size());
  }
  if (userfault_.has_value()) {
    return userfault_->Put(alias_.data() + range.offset, from, range.length);
  }
  return WriteAll(fd_, range, from);
}

}  // namespace catnap::memory
