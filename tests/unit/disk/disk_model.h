#ifndef CATNAP_TESTS_UNIT_DISK_DISK_MODEL_H_
#define CATNAP_TESTS_UNIT_DISK_DISK_MODEL_H_

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "disk/block_io.h"
#include "disk/file_io.h"

namespace catnap::disk {

// A sector of the tests holds one number, 64 times. 0: it is zero.
using SectorValue = uint64_t;

inline void FillSector(uint8_t* sector, SectorValue value) {
  for (size_t i = 0; i < kSectorBytes; i += 8) {
    std::memcpy(sector + i, &value, 8);
  }
}

// Empty: the sector is a mixture.
inline std::optional<SectorValue> ValueOf(const uint8_t* sector) {
  SectorValue value = 0;
  std::memcpy(&value, sector, 8);
  for (size_t i = 8; i < kSectorBytes; i += 8) {
    if (std::memcmp(sector, sector + i, 8) != 0) return std::nullopt;
  }
  return value;
}

// What each sector may hold, from the times at which requests began and ended.
class DiskModel {
 public:
  static constexpr uint64_t kNever = UINT64_MAX;

  uint64_t Now() { return ++now_; }

  // A request that leaves `value` in the sector, from its start on.
  void Begin(uint64_t sector, SectorValue value, uint64_t request) {
    events_[sector].push_back({value, Now(), kNever, request});
  }
  void End(uint64_t first, uint64_t count, uint64_t request) {
    const uint64_t now = Now();
    for (uint64_t sector = first; sector < first + count; ++sector) {
      for (Event& event : events_[sector]) {
        if (event.request == request) event.end = now;
      }
    }
  }
  // Sets the content that the sector has had since before all requests.
  void Start(uint64_t sector, SectorValue value) {
    events_[sector] = {{value, 0, 0, 0}};
  }
  // A request that ends at `before` and makes `value` visible must not be older
  // than another that ended and began after it, before `since`.
  bool Allows(uint64_t sector, SectorValue value, uint64_t since) const {
    const auto found = events_.find(sector);
    if (found == events_.end()) return false;
    const auto& events = found->second;
    return std::any_of(events.begin(), events.end(), [&](const Event& event) {
      return event.value == value &&
             std::none_of(events.begin(), events.end(),
                          [&](const Event& later) {
                            return later.start > event.end && later.end < since;
                          });
    });
  }

 private:
  struct Event {
    SectorValue value;
    uint64_t start;
    uint64_t end;
    uint64_t request;
  };
  uint64_t now_ = 0;
  std::map<uint64_t, std::vector<Event>> events_;
};

// A read-only disk whose sectors hold their number plus 2^40. Answers when the
// file's operations are stepped.
class PatternDisk final : public BlockIo {
 public:
  PatternDisk(std::shared_ptr<FileIo> file, uint64_t capacity)
      : file_(std::move(file)), capacity_(capacity) {}

  static SectorValue ValueAt(uint64_t sector) {
    return (uint64_t{1} << 40) + sector;
  }

  uint64_t capacity() const override { return capacity_; }
  bool read_only() const override { return true; }
  DiskId id() const override { return {1, 2, 3}; }
  void Read(std::span<const iovec> buffers, uint64_t offset,
            BlockCompletion done) override {
    std::vector<iovec> copy(buffers.begin(), buffers.end());
    file_->Post([copy, offset, done = std::move(done)]() mutable {
      uint64_t at = offset;
      for (const iovec& buffer : copy) {
        for (size_t i = 0; i < buffer.iov_len; ++i, ++at) {
          const SectorValue value = ValueAt(at / kSectorBytes);
          static_cast<uint8_t*>(buffer.iov_base)[i] =
              static_cast<uint8_t>(value >> (at % 8 * 8));
        }
      }
      std::move(done)(absl::OkStatus());
    });
  }
  void Write(std::span<const iovec>, uint64_t, BlockCompletion done) override {
    Refuse(std::move(done));
  }
  void Flush(BlockCompletion done) override { Refuse(std::move(done)); }
  void Discard(uint64_t, uint64_t, BlockCompletion done) override {
    Refuse(std::move(done));
  }
  void WriteZeroes(uint64_t, uint64_t, BlockCompletion done) override {
    Refuse(std::move(done));
  }
  void Resize(uint64_t, BlockCompletion done) override {
    Refuse(std::move(done));
  }
  void Drain(DrainCompletion done) override { file_->Post(std::move(done)); }

 private:
  static void Refuse(BlockCompletion done) {
    std::move(done)(absl::FailedPreconditionError("read-only"));
  }
  const std::shared_ptr<FileIo> file_;
  const uint64_t capacity_;
};

}  // namespace catnap::disk

#endif  // CATNAP_TESTS_UNIT_DISK_DISK_MODEL_H_
