#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <memory>
#include <utility>
#include <vector>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "disk/cow_layer.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

// A hostile layer file: opened, read at places of the disk, written to, flushed
// and, when all that went well, opened again. The first byte says whether the
// checksums are made right first, so that the fuzzer gets behind them.

namespace catnap::disk {
namespace {

// A file in memory; what is started ends in Run().
class FuzzFile final : public FileIo {
 public:
  explicit FuzzFile(std::vector<uint8_t> bytes) : bytes_(std::move(bytes)) {}

  void Run() {
    while (!queue_.empty()) {
      auto function = std::move(queue_.front());
      queue_.pop_front();
      std::move(function)();
    }
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

  void Read(std::span<const iovec> buffers, uint64_t offset,
            FileCompletion done) override {
    size_t count = 0;
    for (const iovec& buffer : buffers) {
      const uint64_t at = offset + count;
      if (at >= bytes_.size()) break;
      const size_t take =
          std::min<uint64_t>(buffer.iov_len, bytes_.size() - at);
      std::memcpy(buffer.iov_base, &bytes_[at], take);
      count += take;
    }
    End(count, std::move(done));
  }
  void Write(std::span<const iovec> buffers, uint64_t offset,
             FileCompletion done) override {
    size_t count = 0;
    for (const iovec& buffer : buffers) {
      const uint64_t end = offset + count + buffer.iov_len;
      // As a host with little room.
      if (end > kMaxBytes) {
        return End(absl::InternalError("too large"), std::move(done));
      }
      if (end > bytes_.size()) bytes_.resize(end);
      std::memcpy(&bytes_[offset + count], buffer.iov_base, buffer.iov_len);
      count += buffer.iov_len;
    }
    End(count, std::move(done));
  }
  void Datasync(FileCompletion done) override {
    End(size_t{0}, std::move(done));
  }
  void PunchHole(uint64_t, uint64_t, FileCompletion done) override {
    End(size_t{0}, std::move(done));
  }
  void StartTimer(std::chrono::nanoseconds, FileCompletion) override {}
  void Post(absl::AnyInvocable<void() &&> function) override {
    queue_.push_back(std::move(function));
  }
  absl::StatusOr<uint64_t> Size() override { return bytes_.size(); }
  absl::Status SetSize(uint64_t) override { return absl::OkStatus(); }
  absl::Status ReadNow(std::span<uint8_t> bytes, uint64_t offset) override {
    if (offset > bytes_.size() || bytes.size() > bytes_.size() - offset) {
      return absl::OutOfRangeError("end of file");
    }
    std::memcpy(bytes.data(), &bytes_[offset], bytes.size());
    return absl::OkStatus();
  }
  absl::Status WriteNow(std::span<const uint8_t>, uint64_t) override {
    return absl::InternalError("not used");
  }

 private:
  static constexpr uint64_t kMaxBytes = 1 << 20;

  void End(absl::StatusOr<size_t> result, FileCompletion done) {
    queue_.emplace_back(
        [result = std::move(result), done = std::move(done)]() mutable {
          std::move(done)(std::move(result));
        });
  }

  std::vector<uint8_t> bytes_;
  std::list<absl::AnyInvocable<void() &&>> queue_;
};

// Makes the checksum of each pointer in a page that of what it names.
void FixPointers(std::vector<uint8_t>* file, uint64_t page, int level) {
  if (level == 0) return;
  for (uint64_t i = 0; i < kPointersPerPage; ++i) {
    uint8_t* at = file->data() + page * kPageBytes + i * 8;
    const uint32_t below = base::LoadLe<uint32_t>(at);
    // Only ever onwards in the file, so that this ends.
    if (below <= page || (below + uint64_t{1}) * kPageBytes > file->size()) {
      continue;
    }
    FixPointers(file, below, level - 1);
    base::StoreLe<uint32_t>(
        at + 4, base::Crc32c({file->data() + below * kPageBytes, kPageBytes}));
  }
}

void FixChecksums(std::vector<uint8_t>* file) {
  if (file->size() < kFirstFreePage * kPageBytes) return;
  for (const size_t page : {size_t{1}, size_t{2}}) {
    uint8_t* record = file->data() + page * kPageBytes;
    const uint32_t root = base::LoadLe<uint32_t>(record + 24);
    if (root > page && (root + uint64_t{1}) * kPageBytes <= file->size()) {
      FixPointers(file, root, 2);
      base::StoreLe<uint32_t>(
          record + 28,
          base::Crc32c({file->data() + root * kPageBytes, kPageBytes}));
    }
  }
  for (const size_t page : {size_t{0}, size_t{1}, size_t{2}}) {
    uint8_t* record = file->data() + page * kPageBytes;
    base::StoreLe<uint32_t>(record + 508, base::Crc32c({record, 508}));
  }
}

// The seeds are short: pairs of a count of zero bytes and a count of bytes that
// follow, 16 bits each.
std::vector<uint8_t> Unpack(fuzz::FuzzInput* input) {
  constexpr size_t kMaxFile = 256 << 10;
  std::vector<uint8_t> file;
  while (!input->empty() && file.size() < kMaxFile) {
    const auto zeroes = input->Integer<uint16_t>();
    const auto bytes = input->Bytes(input->Integer<uint16_t>());
    file.resize(file.size() + zeroes);
    file.insert(file.end(), bytes.begin(), bytes.end());
  }
  return file;
}

void Read(CowLayer* layer, FuzzFile* file, uint64_t offset, uint64_t length) {
  std::vector<uint8_t> bytes(length);
  const iovec buffer{bytes.data(), bytes.size()};
  bool done = false;
  layer->Read({&buffer, 1}, offset, [&](const absl::Status&) { done = true; });
  file->Run();
  FUZZ_CHECK(done);
}

}  // namespace
}  // namespace catnap::disk

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace catnap::disk;  // NOLINT(google-build-using-namespace)
  catnap::fuzz::FuzzInput input(data, size);
  const bool fix = input.Integer<uint8_t>() != 0;
  const auto place = input.Integer<uint32_t>();
  std::vector<uint8_t> content = Unpack(&input);
  if (fix) FixChecksums(&content);
  const auto file = std::make_shared<FuzzFile>(std::move(content));
  const auto layer = CowLayer::Open(file, nullptr, {});
  if (!layer.ok()) {
    FUZZ_CHECK(!absl::IsInternal(layer.status()));
    return 0;
  }
  const uint64_t capacity = (*layer)->capacity();
  FUZZ_CHECK(capacity > 0 && capacity <= kMaxVirtualBytes);
  const uint64_t length = std::min<uint64_t>(capacity, 128 << 10);
  const uint64_t offset =
      uint64_t{place} * kSectorBytes % (capacity - length + kSectorBytes);
  Read(layer->get(), file.get(), 0, length);
  Read(layer->get(), file.get(), offset, length);
  Read(layer->get(), file.get(), capacity - length, length);
  std::vector<uint8_t> sector(kSectorBytes, uint8_t{0x5a});
  const iovec buffer{sector.data(), sector.size()};
  int ended = 0;
  bool flushed = false;
  (*layer)->Write({&buffer, 1}, offset, [&](const absl::Status&) { ++ended; });
  (*layer)->Discard(0, length, [&](const absl::Status&) { ++ended; });
  file->Run();
  (*layer)->Flush([&](const absl::Status& status) {
    ++ended;
    flushed = status.ok();
  });
  file->Run();
  FUZZ_CHECK(ended == 3);
  if (!flushed) return 0;
  const auto copy = std::make_shared<FuzzFile>(file->bytes());
  FUZZ_CHECK(CowLayer::Open(copy, nullptr, {}).ok());
  return 0;
}
