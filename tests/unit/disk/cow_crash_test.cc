#include <catch2/catch.hpp>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "crash_file.h"
#include "disk/cow_layer.h"
#include "disk_model.h"

// Random requests, many in flight, against a model; then a power failure at
// any moment, and what is left is compared with what was promised.

namespace catnap::disk {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kGiB = uint64_t{1} << 30;
// Two directories, and a last block that is not whole.
constexpr uint64_t kDiskBytes = 16 * kGiB + kMiB + 5 * kSectorBytes;
// Ends inside a block.
constexpr uint64_t kParentBytes = 32 * kMiB + 3 * kSectorBytes;

// Sanitized builds are ten times as slow.
#ifdef NDEBUG
constexpr uint64_t kSeeds = 20;
constexpr int kSteps = 400;
#else
constexpr uint64_t kSeeds = 4;
constexpr int kSteps = 150;
#endif

struct Area {
  uint64_t first;  // In sectors.
  uint64_t count;
};

// Where the requests go: the start, a border of map pages with the parent's
// end, a border of directories, the disk's end.
const std::vector<Area>& Areas() {
  static const std::vector<Area> areas = [] {
    const uint64_t half = 96 << 10;  // One cluster and a half.
    std::vector<Area> made{{0, 2 * half / kSectorBytes}};
    for (const uint64_t border : {32 * kMiB, 16 * kGiB}) {
      made.push_back({(border - half) / kSectorBytes, 2 * half / kSectorBytes});
    }
    made.push_back({(kDiskBytes - half) / kSectorBytes, half / kSectorBytes});
    return made;
  }();
  return areas;
}

class Session {
 public:
  Session(uint64_t seed, const FileImage* image)
      : random_(seed),
        file_(image == nullptr ? std::make_shared<CrashFile>()
                               : std::make_shared<CrashFile>(*image)),
        parent_(std::make_shared<PatternDisk>(file_, kParentBytes)) {
    auto layer = image == nullptr
                     ? CowLayer::Create(file_, kDiskBytes, parent_, {})
                     : CowLayer::Open(file_, parent_, {});
    status_ = layer.status();
    if (layer.ok()) layer_ = *std::move(layer);
  }

  const absl::Status& status() const { return status_; }
  CrashFile& file() { return *file_; }
  CowLayer& layer() { return *layer_; }
  DiskModel& model() { return model_; }
  std::mt19937_64& random() { return random_; }
  const std::string& failure() const { return failure_; }
  uint64_t flushed() const { return flushed_; }
  size_t in_flight() const { return in_flight_; }

  // A new disk: what the parent has.
  void StartModel() {
    for (const Area& area : Areas()) {
      for (uint64_t i = area.first; i < area.first + area.count; ++i) {
        const bool below = (i + 1) * kSectorBytes <= kParentBytes;
        model_.Start(i, below ? PatternDisk::ValueAt(i) : 0);
      }
    }
  }

  void StartRandomRequest() {
    const uint64_t kind = random_() % 16;
    const Area& area = Areas()[random_() % Areas().size()];
    // Mostly a few sectors, sometimes whole blocks and clusters.
    uint64_t count = 1 + random_() % 12;
    if (random_() % 4 == 0) count = 1 + random_() % area.count;
    uint64_t at = random_() % area.count;
    if (random_() % 2 == 0) at = at / 8 * 8;
    count = std::min(count, area.count - at);
    if (kind < 7) return Write(area.first + at, count);
    if (kind < 10) return Zero(area.first + at, count);
    if (kind < 14) return Read(area.first + at, count);
    Flush();
  }

  void Write(uint64_t first, uint64_t count) {
    const uint64_t request = ++last_request_;
    auto bytes = std::make_shared<std::vector<uint8_t>>(count * kSectorBytes);
    for (uint64_t i = 0; i < count; ++i) {
      const SectorValue value = request << 20 | (first + i) % (1 << 20);
      FillSector(&(*bytes)[i * kSectorBytes], value);
      model_.Begin(first + i, value, request);
    }
    ++in_flight_;
    // Two buffers, cut anywhere.
    const uint64_t cut = random_() % bytes->size();
    const iovec buffers[] = {{bytes->data(), cut},
                             {bytes->data() + cut, bytes->size() - cut}};
    layer_->Write(
        buffers, first * kSectorBytes,
        [this, bytes, first, count, request](const absl::Status& status) {
          EndWrite(status, first, count, request);
        });
  }
  void Zero(uint64_t first, uint64_t count) {
    const uint64_t request = ++last_request_;
    for (uint64_t i = 0; i < count; ++i) model_.Begin(first + i, 0, request);
    ++in_flight_;
    layer_->Discard(first * kSectorBytes, count * kSectorBytes,
                    [this, first, count, request](const absl::Status& status) {
                      EndWrite(status, first, count, request);
                    });
  }
  void Read(uint64_t first, uint64_t count) {
    auto bytes = std::make_shared<std::vector<uint8_t>>(count * kSectorBytes,
                                                        uint8_t{0xee});
    const uint64_t since = model_.Now();
    ++in_flight_;
    const iovec buffer{bytes->data(), bytes->size()};
    layer_->Read(
        {&buffer, 1}, first * kSectorBytes,
        [this, bytes, first, count, since](const absl::Status& status) {
          --in_flight_;
          if (!status.ok()) return Fail("read", first, status);
          for (uint64_t i = 0; i < count; ++i) {
            Check(first + i, &(*bytes)[i * kSectorBytes], since);
          }
        });
  }
  void Flush() {
    const uint64_t since = model_.Now();
    ++in_flight_;
    layer_->Flush([this, since](const absl::Status& status) {
      --in_flight_;
      if (!status.ok()) return Fail("flush", 0, status);
      flushed_ = std::max(flushed_, since);
    });
  }
  void Freeze() {
    const uint64_t since = model_.Now();
    ++in_flight_;
    layer_->Freeze([this, since](const absl::Status& status) {
      --in_flight_;
      frozen_ = status;
      // What was written before the call is frozen, too.
      if (status.ok()) flushed_ = std::max(flushed_, since);
    });
  }
  const std::optional<absl::Status>& frozen() const { return frozen_; }
  // Reads all areas; each sector must be one that the other session's crash
  // may leave. They become this model's start.
  void CompareWith(const DiskModel& model, uint64_t flushed) {
    for (const Area& area : Areas()) {
      std::vector<uint8_t> bytes(area.count * kSectorBytes);
      const iovec buffer{bytes.data(), bytes.size()};
      bool done = false;
      layer_->Read({&buffer, 1}, area.first * kSectorBytes,
                   [&](const absl::Status& status) {
                     done = true;
                     if (!status.ok()) Fail("read", area.first, status);
                   });
      while (!done && file_->Step(&random_)) {
      }
      for (uint64_t i = 0; i < area.count; ++i) {
        const auto value = ValueOf(&bytes[i * kSectorBytes]);
        if (!value.has_value() ||
            !model.Allows(area.first + i, *value, flushed)) {
          Fail("after the crash", area.first + i,
               absl::DataLossError(std::to_string(value.value_or(UINT64_MAX))));
          return;
        }
        model_.Start(area.first + i, *value);
      }
    }
  }
  void Settle() {
    while (file_->Step(&random_) || (in_flight_ > 0 && file_->FireTimer())) {
    }
  }

 private:
  void EndWrite(const absl::Status& status, uint64_t first, uint64_t count,
                uint64_t request) {
    --in_flight_;
    if (!status.ok()) return Fail("write", first, status);
    model_.End(first, count, request);
  }
  void Check(uint64_t sector, const uint8_t* bytes, uint64_t since) {
    const auto value = ValueOf(bytes);
    if (value.has_value() && model_.Allows(sector, *value, since)) return;
    Fail("read", sector,
         absl::DataLossError(std::to_string(value.value_or(UINT64_MAX))));
  }
  void Fail(const char* what, uint64_t sector, const absl::Status& status) {
    if (!failure_.empty()) return;
    failure_ = std::string(what) + ", sector " + std::to_string(sector) + ": " +
               status.ToString();
  }

  std::mt19937_64 random_;
  const std::shared_ptr<CrashFile> file_;
  const std::shared_ptr<PatternDisk> parent_;
  std::shared_ptr<CowLayer> layer_;
  absl::Status status_;
  DiskModel model_;
  uint64_t last_request_ = 0;
  uint64_t flushed_ = 0;
  size_t in_flight_ = 0;
  std::string failure_;
  std::optional<absl::Status> frozen_;
};

// Opens what a crash left, and compares. Returns what is wrong.
std::string CheckCrash(Session* session, uint64_t seed, FileImage* image) {
  *image = session->file().Crash(&session->random());
  Session after(seed, image);
  if (!after.status().ok()) {
    return session->flushed() == 0 ? "" : after.status().ToString();
  }
  after.CompareWith(session->model(), session->flushed());
  return after.failure();
}

// One life after the other: random requests until a crash, with looks at what
// other crashes on the way would leave. `trouble` may change the file.
template <typename Trouble>
std::string RunLives(uint64_t seed, int steps, Trouble&& trouble) {
  FileImage image;
  std::unique_ptr<Session> session = std::make_unique<Session>(seed, nullptr);
  session->StartModel();
  for (int life = 0; life < 3; ++life) {
    for (int step = 0; step < steps; ++step) {
      trouble(session.get());
      if (session->in_flight() < 12 && session->random()() % 3 == 0) {
        session->StartRandomRequest();
      }
      session->file().Step(&session->random());
      if (step % 8 == 0) {
        std::string wrong = CheckCrash(session.get(), seed, &image);
        if (!wrong.empty()) return wrong;
      }
      if (!session->failure().empty()) return session->failure();
    }
    if (session->flushed() == 0) {
      session->Flush();
      session->file().set_full(false);
      session->Settle();
    }
    std::string wrong = CheckCrash(session.get(), seed, &image);
    if (!wrong.empty()) return wrong;
    auto next = std::make_unique<Session>(seed + 1000, &image);
    if (!next->status().ok()) return next->status().ToString();
    next->CompareWith(session->model(), session->flushed());
    if (!next->failure().empty()) return next->failure();
    session->file().set_full(false);
    session->Settle();
    if (!session->failure().empty()) return session->failure();
    session = std::move(next);
  }
  session->Settle();
  return session->failure();
}

TEST_CASE("A CowLayer keeps what was flushed through crashes at any moment") {
  const uint64_t seed = GENERATE(range(uint64_t{1}, 1 + kSeeds));
  CAPTURE(seed);
  const std::string wrong = RunLives(seed, kSteps, [](Session*) {});
  CAPTURE(wrong);
  CHECK(wrong.empty());
}

TEST_CASE("A CowLayer is whole after a crash at any moment of a freeze") {
  const uint64_t seed = GENERATE(range(uint64_t{300}, 300 + kSeeds));
  CAPTURE(seed);
  Session session(seed, nullptr);
  session.StartModel();
  for (int step = 0; step < kSteps / 4; ++step) {
    if (session.in_flight() < 12) session.StartRandomRequest();
    session.file().Step(&session.random());
  }
  const bool full = seed % 4 == 0;
  if (full) session.file().set_full(true);
  session.Freeze();
  FileImage image;
  std::string wrong;
  while (wrong.empty() && session.file().Step(&session.random())) {
    wrong = CheckCrash(&session, seed, &image);
  }
  CAPTURE(wrong);
  CHECK(wrong.empty());
  REQUIRE(session.frozen().has_value());
  CHECK(session.layer().read_only() == session.frozen()->ok());
  CHECK((full || session.frozen()->ok()));
  session.file().set_full(false);
  session.Settle();
  CHECK(session.failure().empty());
}

TEST_CASE("A CowLayer keeps what was flushed when holes cannot be punched") {
  const uint64_t seed = GENERATE(range(uint64_t{100}, 100 + kSeeds));
  CAPTURE(seed);
  const std::string wrong = RunLives(seed, kSteps, [](Session* session) {
    session->file().set_can_punch(false);
  });
  CAPTURE(wrong);
  CHECK(wrong.empty());
}

TEST_CASE("A CowLayer keeps what was flushed while the disk is full at times") {
  const uint64_t seed = GENERATE(range(uint64_t{200}, 200 + kSeeds));
  CAPTURE(seed);
  const std::string wrong = RunLives(seed, kSteps, [](Session* session) {
    const uint64_t dice = session->random()() % 40;
    if (dice == 0) session->file().set_full(true);
    if (dice == 1) session->file().set_room(session->random()() % 4);
    if (dice < 5) session->file().FireTimer();
    if (dice > 35) session->file().set_full(false);
  });
  CAPTURE(wrong);
  CHECK(wrong.empty());
}

}  // namespace
}  // namespace catnap::disk
