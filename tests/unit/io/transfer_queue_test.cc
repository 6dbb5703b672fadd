#include "io/transfer_queue.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>

#include <catch2/catch.hpp>
#include <csignal>
#include <cstring>
#include <set>
#include <string>

#include "io/file.h"
#include "support/lowered_limit.h"
#include "support/temporary_directory.h"

namespace catnap::io {
namespace {

constexpr size_t kBuffer = 8192;

base::UniqueFd NewFile(const test::TemporaryDirectory& directory) {
  auto fd = OpenFile(directory.File("file"), O_RDWR | O_CREAT | O_EXCL);
  REQUIRE(fd.ok());
  return *std::move(fd);
}

std::unique_ptr<TransferQueue> NewQueue(const TransferQueueOptions& options) {
  auto queue = TransferQueue::Create(options);
  REQUIRE(queue.ok());
  return *std::move(queue);
}

TEST_CASE("A transfer queue writes and reads with all its buffers at once") {
  const bool plain = GENERATE(false, true);
  const bool registered = GENERATE(false, true);
  CAPTURE(plain, registered);
  const test::TemporaryDirectory directory;
  const base::UniqueFd file = NewFile(directory);
  const auto queue = NewQueue({.buffers = 4,
                               .buffer_bytes = kBuffer,
                               .register_buffers = registered,
                               .plain = plain});
  CHECK((!plain || !queue->uses_ring()));
  CHECK_FALSE(queue->backend_text().empty());
  for (unsigned i = 0; i < 4; ++i) {
    std::memset(queue->buffer(i), 'a' + static_cast<int>(i), kBuffer);
    queue->StartWrite(file.get(), i, kBuffer, i * kBuffer);
  }
  CHECK(queue->in_flight() == 4);
  std::set<unsigned> seen;
  while (queue->in_flight() > 0) {
    const auto finished = queue->Wait();
    REQUIRE(finished.result.ok());
    CHECK(*finished.result == kBuffer);
    seen.insert(finished.buffer);
  }
  CHECK(seen.size() == 4);
  // The last half of the file, and as much behind its end.
  queue->StartRead(file.get(), 0, kBuffer, 3 * kBuffer + kBuffer / 2);
  const auto finished = queue->Wait();
  REQUIRE(finished.result.ok());
  CHECK(*finished.result == kBuffer / 2);
  CHECK(std::string(queue->buffer(0), queue->buffer(0) + kBuffer / 2) ==
        std::string(kBuffer / 2, 'd'));
}

TEST_CASE("A transfer queue says what failed") {
  const bool plain = GENERATE(false, true);
  const auto queue =
      NewQueue({.buffers = 1, .buffer_bytes = kBuffer, .plain = plain});
  queue->StartRead(-1, 0, kBuffer, 0);
  CHECK_FALSE(queue->Wait().result.ok());
  CHECK(queue->in_flight() == 0);
}

TEST_CASE("A transfer queue continues a short write up to the error") {
  sigset_t set{};
  sigemptyset(&set);
  sigaddset(&set, SIGXFSZ);
  REQUIRE(::pthread_sigmask(SIG_BLOCK, &set, nullptr) == 0);
  const bool plain = GENERATE(false, true);
  const test::TemporaryDirectory directory;
  const base::UniqueFd file = NewFile(directory);
  const auto queue =
      NewQueue({.buffers = 1, .buffer_bytes = kBuffer, .plain = plain});
  const test::LoweredLimit lowered(RLIMIT_FSIZE, kBuffer / 2);
  queue->StartWrite(file.get(), 0, kBuffer, 0);
  CHECK(queue->Wait().result.status().code() ==
        absl::StatusCode::kResourceExhausted);
}

TEST_CASE("A transfer queue that goes waits for its transfers") {
  const test::TemporaryDirectory directory;
  const base::UniqueFd file = NewFile(directory);
  {
    const auto queue = NewQueue({.buffers = 8, .buffer_bytes = kBuffer});
    for (unsigned i = 0; i < 8; ++i) {
      std::memset(queue->buffer(i), 'x', kBuffer);
      queue->StartWrite(file.get(), i, kBuffer, i * kBuffer);
    }
  }
  const auto content = ReadFile(directory.File("file"), 8 * kBuffer);
  REQUIRE(content.ok());
  CHECK(*content == std::string(8 * kBuffer, 'x'));
}

TEST_CASE("A transfer queue refuses options out of range") {
  for (const TransferQueueOptions& options :
       {TransferQueueOptions{.buffers = 0}, TransferQueueOptions{.buffers = 65},
        TransferQueueOptions{.buffer_bytes = 100},
        TransferQueueOptions{.buffer_bytes = 0},
        TransferQueueOptions{.buffer_bytes = size_t{32} << 20}}) {
    CHECK(TransferQueue::Create(options).status().code() ==
          absl::StatusCode::kInvalidArgument);
  }
}

TEST_CASE("A file is linked where it can be, and else copied") {
  const test::TemporaryDirectory a;
  const test::TemporaryDirectory b;
  const auto from = OpenFile(a.path(), O_RDONLY | O_DIRECTORY);
  const auto to = OpenFile(b.path(), O_RDONLY | O_DIRECTORY);
  REQUIRE((from.ok() && to.ok()));
  const std::string content(100'000, 'c');
  {
    const auto file = OpenFileAt(from->get(), "f", O_WRONLY | O_CREAT);
    REQUIRE(file.ok());
    REQUIRE(WriteFully(file->get(), content.data(), content.size(), 0).ok());
  }
  const auto linked = LinkOrCopy(from->get(), to->get(), "f", {});
  REQUIRE(linked.ok());
  CHECK(*linked);
  CHECK(ReadFile(b.File("f"), content.size()).value() == content);
  CHECK(LinkOrCopy(from->get(), to->get(), "f", {}).status().code() ==
        absl::StatusCode::kAlreadyExists);
  CHECK(LinkOrCopy(from->get(), to->get(), "g", {}).status().code() ==
        absl::StatusCode::kNotFound);
  // /dev/shm is another file system.
  std::string shm = "/dev/shm/catnap-test-XXXXXX";
  if (::mkdtemp(shm.data()) == nullptr) return;
  const auto far = OpenFile(shm, O_RDONLY | O_DIRECTORY);
  REQUIRE(far.ok());
  const auto copied = LinkOrCopy(from->get(), far->get(), "f", {});
  const auto text = ReadFile(shm + "/f", content.size());
  std::filesystem::remove_all(shm);
  REQUIRE(copied.ok());
  CHECK_FALSE(*copied);
  CHECK(text.value() == content);
}

}  // namespace
}  // namespace catnap::io
