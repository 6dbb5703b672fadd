#ifndef CATNAP_TESTS_SUPPORT_WRITING_GUEST_H_
#define CATNAP_TESTS_SUPPORT_WRITING_GUEST_H_

#include <cstdint>
#include <filesystem>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "disk/block_io.h"
#include "memory/guest_memory.h"

// A guest of a few instructions, in place of Linux and its agent, for a real
// machine with real devices, disk and snapshots (writer_factory.h): so any KVM
// runs it.
namespace catnap::test {

// How far such a guest is. In step n it fills page n % kPages of its data with
// n, and writes that page into block n % kBlocks of its disk; so what it holds
// is known to the byte.
struct WriterProgress {
  uint32_t begun = 0;  // The last step it began, and the last it ended:
  uint32_t done = 0;   // the same one, or the one before.

  friend bool operator==(const WriterProgress&,
                         const WriterProgress&) = default;
};

inline constexpr uint64_t kWriterMemory = uint64_t{64} << 20;
inline constexpr char kWriterImage[] = "writer";

struct WriterOptions {
  uint64_t memory_bytes = kWriterMemory;
  // It has no work of its own: after a first step, in which it sets itself up,
  // it halts, and each interrupt of its disk is another one, in which it only
  // counts. A machine that goes on is interrupted once.
  bool rests = false;
};

// Adds an image of such guests, each before its first step, to a Host's
// directory of images. Joins all threads that it starts.
absl::Status MakeWriterImage(const std::filesystem::path& image_dir,
                             const WriterOptions& options = {});

// How far the guest in this memory is.
absl::StatusOr<WriterProgress> ProgressOf(const memory::GuestMemory& memory);
// Whether its disk failed a write: then it stands for ever.
absl::StatusOr<bool> HasFailed(const memory::GuestMemory& memory);
// Whether it rests between two steps, for as long as it is told so.
absl::Status LetRest(memory::GuestMemory& memory, bool rest);

// Looks at every byte of memory and disk of a guest that stands still, with its
// devices drained. `whole`: also at the memory that it never touched.
// Errors: DATA_LOSS, naming the first byte that is wrong.
absl::StatusOr<WriterProgress> CheckWriter(const memory::GuestMemory& memory,
                                           disk::BlockIo* disk, bool whole);

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_WRITING_GUEST_H_
