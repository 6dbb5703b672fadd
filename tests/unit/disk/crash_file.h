#ifndef CATNAP_TESTS_UNIT_DISK_CRASH_FILE_H_
#define CATNAP_TESTS_UNIT_DISK_CRASH_FILE_H_

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <map>
#include <random>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "disk/block_io.h"
#include "disk/file_io.h"

namespace catnap::disk {

// What a CrashFile leaves behind, and what it starts from.
using FileImage = std::vector<uint8_t>;

// A file in memory that remembers, for each sector, every content it had since
// the last fdatasync, so that it can say what a crash may leave: for each
// sector any of them. Nothing happens by itself: operations wait until Step()
// ends one. For one thread.
class CrashFile final : public FileIo {
 public:
  CrashFile() = default;
  explicit CrashFile(const FileImage& image)
      : size_(image.size()), durable_size_(image.size()) {
    for (size_t at = 0; at < image.size(); at += kSectorBytes) {
      Sector content{};
      std::memcpy(content.data(), &image[at],
                  std::min<size_t>(kSectorBytes, image.size() - at));
      if (content != Sector{}) sectors_[at / kSectorBytes] = {{0, content}};
    }
  }

  // While set, writes behind the file's end fail as on a full disk.
  void set_full(bool full) { full_ = full; }
  // Writes that succeed before the disk is full.
  void set_room(uint64_t writes) { room_ = writes; }
  void set_sync_error(absl::Status status) { sync_error_ = std::move(status); }
  void set_can_punch(bool can) { can_punch_ = can; }
  uint64_t bytes_written() const { return bytes_written_; }
  uint64_t punched_bytes() const { return punched_bytes_; }
  uint64_t syncs() const { return syncs_; }
  bool idle() const { return pending_.empty(); }

  // Ends one operation that waits, any of them. False: there is none.
  bool Step(std::mt19937_64* random) {
    if (pending_.empty()) return false;
    auto op = std::next(pending_.begin(),
                        static_cast<ptrdiff_t>((*random)() % pending_.size()));
    // What is posted keeps its order.
    if (op->kind == Kind::kPost) {
      op = std::find_if(pending_.begin(), pending_.end(), [](const Op& other) {
        return other.kind == Kind::kPost;
      });
    }
    Op taken = std::move(*op);
    pending_.erase(op);
    if (taken.kind == Kind::kPost) {
      std::move(taken.function)();
    } else {
      std::move(taken.done)(Apply(taken));
    }
    return true;
  }
  // Fires the oldest timer.
  bool FireTimer() {
    if (timers_.empty()) return false;
    FileCompletion done = std::move(timers_.front());
    timers_.pop_front();
    std::move(done)(size_t{0});
    return true;
  }
  size_t timers() const { return timers_.size(); }

  // The file after a power failure now.
  FileImage Crash(std::mt19937_64* random) const {
    std::map<uint64_t, std::vector<Version>> possible = sectors_;
    for (const Op& op : pending_) {
      AddVersions(op, UINT64_MAX, &possible);
    }
    // Sometimes all that came last, or nothing that was not synced.
    const uint64_t mode = (*random)() % 4;
    FileImage image(durable_size_);
    for (const auto& [sector, versions] : possible) {
      size_t choice = (*random)() % versions.size();
      if (mode == 0) choice = versions.size() - 1;
      const bool synced = IsSynced(versions.front());
      if (mode == 1) choice = 0;
      if (choice == 0 && !synced && (mode == 1 || (*random)() % 2 == 0)) {
        continue;  // Still as before the file was that long: zero.
      }
      const uint64_t at = sector * kSectorBytes;
      if (image.size() < at + kSectorBytes) image.resize(at + kSectorBytes);
      std::memcpy(&image[at], versions[choice].content.data(), kSectorBytes);
    }
    return image;
  }
  // The file after kill -9: all that was completed.
  FileImage Content() const {
    FileImage image(size_);
    for (const auto& [sector, versions] : sectors_) {
      std::memcpy(&image[sector * kSectorBytes], versions.back().content.data(),
                  kSectorBytes);
    }
    return image;
  }

  void Read(std::span<const iovec> buffers, uint64_t offset,
            FileCompletion done) override {
    Add(Kind::kRead, buffers, offset, 0, std::move(done));
  }
  void Write(std::span<const iovec> buffers, uint64_t offset,
             FileCompletion done) override {
    Add(Kind::kWrite, buffers, offset, 0, std::move(done));
  }
  void Datasync(FileCompletion done) override {
    Add(Kind::kSync, {}, 0, 0, std::move(done));
  }
  void PunchHole(uint64_t offset, uint64_t length,
                 FileCompletion done) override {
    Add(Kind::kPunch, {}, offset, length, std::move(done));
  }
  void StartTimer(std::chrono::nanoseconds, FileCompletion done) override {
    timers_.push_back(std::move(done));
  }
  void Post(absl::AnyInvocable<void() &&> function) override {
    Op op;
    op.function = std::move(function);
    pending_.push_back(std::move(op));
  }
  absl::StatusOr<uint64_t> Size() override { return size_; }
  absl::Status SetSize(uint64_t bytes) override {
    size_ = bytes;
    return absl::OkStatus();
  }
  absl::Status ReadNow(std::span<uint8_t> bytes, uint64_t offset) override {
    if (offset + bytes.size() > size_) {
      return absl::OutOfRangeError("end of file");
    }
    CopyOut(bytes.data(), bytes.size(), offset);
    return absl::OkStatus();
  }
  absl::Status WriteNow(std::span<const uint8_t> bytes,
                        uint64_t offset) override {
    Op op;
    op.kind = Kind::kWrite;
    op.offset = offset;
    op.buffers = {{const_cast<uint8_t*>(bytes.data()), bytes.size()}};
    op.length = bytes.size();
    return Apply(op).status();
  }

 private:
  enum class Kind { kPost, kRead, kWrite, kSync, kPunch };
  using Sector = std::array<uint8_t, kSectorBytes>;
  struct Version {
    uint64_t id = 0;  // 0: durable from the start.
    Sector content{};
  };
  struct Op {
    Kind kind = Kind::kPost;
    std::vector<iovec> buffers;
    uint64_t offset = 0;
    uint64_t length = 0;
    uint64_t seen = 0;  // Of a sync: the writes that it covers.
    uint64_t seen_size = 0;
    FileCompletion done;
    absl::AnyInvocable<void() &&> function;
  };

  bool IsSynced(const Version& version) const { return version.id <= synced_; }

  void Add(Kind kind, std::span<const iovec> buffers, uint64_t offset,
           uint64_t length, FileCompletion done) {
    Op op;
    op.kind = kind;
    op.buffers.assign(buffers.begin(), buffers.end());
    op.offset = offset;
    op.length = length;
    for (const iovec& buffer : buffers) op.length += buffer.iov_len;
    op.seen = last_id_;
    op.seen_size = size_;
    op.done = std::move(done);
    pending_.push_back(std::move(op));
  }

  absl::StatusOr<size_t> Apply(const Op& op) {
    switch (op.kind) {
      case Kind::kPost:
        break;
      case Kind::kRead: {
        size_t done = 0;
        for (const iovec& buffer : op.buffers) {
          const uint64_t at = op.offset + done;
          const uint64_t left = at < size_ ? size_ - at : 0;
          const size_t take = std::min<uint64_t>(buffer.iov_len, left);
          CopyOut(static_cast<uint8_t*>(buffer.iov_base), take, at);
          done += take;
        }
        return done;
      }
      case Kind::kWrite:
        if (full_ && room_ == 0) {
          return absl::ResourceExhaustedError("no space left on device");
        }
        if (full_) --room_;
        bytes_written_ += op.length;
        AddVersions(op, ++last_id_, &sectors_);
        size_ = std::max(size_, op.offset + op.length);
        return op.length;
      case Kind::kPunch:
        if (!can_punch_) return absl::UnimplementedError("no holes");
        punched_bytes_ += op.length;
        AddVersions(op, ++last_id_, &sectors_);
        return size_t{0};
      case Kind::kSync:
        if (!sync_error_.ok()) return sync_error_;
        ++syncs_;
        for (auto& [sector, versions] : sectors_) {
          size_t first = 0;
          while (first + 1 < versions.size() &&
                 versions[first + 1].id <= op.seen) {
            ++first;
          }
          versions.erase(versions.begin(),
                         versions.begin() + static_cast<ptrdiff_t>(first));
        }
        synced_ = std::max(synced_, op.seen);
        durable_size_ = std::max(durable_size_, op.seen_size);
        return size_t{0};
    }
    return size_t{0};
  }

  void AddVersions(const Op& op, uint64_t id,
                   std::map<uint64_t, std::vector<Version>>* to) const {
    if (op.kind != Kind::kWrite && op.kind != Kind::kPunch) return;
    std::vector<uint8_t> bytes(op.kind == Kind::kPunch ? op.length : 0);
    for (const iovec& buffer : op.buffers) {
      const auto* from = static_cast<const uint8_t*>(buffer.iov_base);
      bytes.insert(bytes.end(), from, from + buffer.iov_len);
    }
    for (uint64_t at = 0; at < bytes.size(); at += kSectorBytes) {
      const uint64_t sector = (op.offset + at) / kSectorBytes;
      if (op.kind == Kind::kPunch && to->count(sector) == 0) continue;
      Version version{id, {}};
      std::memcpy(version.content.data(), &bytes[at], kSectorBytes);
      (*to)[sector].push_back(version);
    }
  }

  void CopyOut(uint8_t* to, size_t length, uint64_t offset) const {
    for (size_t done = 0; done < length;) {
      const uint64_t at = offset + done;
      const uint64_t within = at % kSectorBytes;
      const size_t take =
          std::min<uint64_t>(length - done, kSectorBytes - within);
      const auto found = sectors_.find(at / kSectorBytes);
      if (found == sectors_.end()) {
        std::memset(to + done, 0, take);
      } else {
        std::memcpy(to + done, &found->second.back().content[within], take);
      }
      done += take;
    }
  }

  std::map<uint64_t, std::vector<Version>> sectors_;  // Oldest first.
  uint64_t last_id_ = 0;
  uint64_t synced_ = 0;  // Versions up to here are durable.
  uint64_t size_ = 0;
  uint64_t durable_size_ = 0;
  std::list<Op> pending_;
  std::list<FileCompletion> timers_;
  bool full_ = false;
  bool can_punch_ = true;
  uint64_t room_ = 0;
  absl::Status sync_error_;
  uint64_t bytes_written_ = 0;
  uint64_t punched_bytes_ = 0;
  uint64_t syncs_ = 0;
};

}  // namespace catnap::disk

#endif  // CATNAP_TESTS_UNIT_DISK_CRASH_FILE_H_
