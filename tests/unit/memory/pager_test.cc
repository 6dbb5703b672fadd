// Memory files that are filled while guests run over them.
#include "memory/pager.h"

#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <optional>
#include <random>
#include <thread>

#include "base/status.h"
#include "memory_test_support.h"
#include "support/process_use.h"

namespace catnap::memory {
namespace {

constexpr uint64_t kPages = 256;
constexpr uint64_t kSize = kPages * kPage;
// Pages that come together, and the first page that nobody stored.
constexpr uint64_t kPiece = 4;
constexpr uint64_t kStored = kPages - 8;

uint8_t ValueOf(uint64_t page) { return static_cast<uint8_t>(page % 250 + 1); }

// Pages of one byte each, with what happens to them under the test's control.
struct Source {
  std::atomic<uint64_t> bad_page{UINT64_MAX};
  std::atomic<bool> holds{false};  // Nothing comes that was not asked for.
  std::atomic<uint64_t> brought{0};
  std::vector<base::PageRange> there;  // Before it is filled.
};

class FakeSupply final : public PageSupply {
 public:
  explicit FakeSupply(std::shared_ptr<Source> source)
      : source_(std::move(source)) {}

  std::vector<base::PageRange> There() const override { return source_->there; }
  absl::StatusOr<bool> Bring(uint64_t offset, PutPages put) override {
    const uint64_t page = offset / kPage;
    if (page >= kStored) return false;
    CATNAP_RETURN_IF_ERROR(PutPiece(page / kPiece * kPiece, put));
    return true;
  }
  absl::StatusOr<bool> BringMore(PutPages put,
                                 const std::stop_token& stop) override {
    CATNAP_RETURN_IF_ERROR(Hold(stop, {}));
    if (next_ >= kStored) return false;
    CATNAP_RETURN_IF_ERROR(PutPiece(next_, put));
    next_ += kPiece;
    return true;
  }
  absl::Status BringAll(
      PutPages put, const std::stop_token& stop,
      std::optional<std::chrono::steady_clock::time_point> deadline) override {
    for (uint64_t page = 0; page < kStored; page += kPiece) {
      CATNAP_RETURN_IF_ERROR(Hold(stop, deadline));
      CATNAP_RETURN_IF_ERROR(PutPiece(page, put));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Hold(
      const std::stop_token& stop,
      std::optional<std::chrono::steady_clock::time_point> deadline) const {
    const auto late = [&deadline] {
      return deadline.has_value() &&
             std::chrono::steady_clock::now() > *deadline;
    };
    while (source_->holds && !stop.stop_requested() && !late()) ::usleep(1000);
    if (stop.stop_requested()) return absl::CancelledError("stopped");
    return late() ? absl::DeadlineExceededError("late") : absl::OkStatus();
  }
  absl::Status PutPiece(uint64_t first, PutPages put) {
    const uint64_t bad = source_->bad_page;
    if (bad >= first && bad < first + kPiece) {
      return absl::DataLossError("bad piece");
    }
    std::vector<uint8_t> bytes(kPiece * kPage);
    for (uint64_t i = 0; i < kPiece; ++i) {
      std::memset(bytes.data() + i * kPage, ValueOf(first + i), kPage);
    }
    ++source_->brought;
    return put(Pages(first, kPiece), bytes.data());
  }

  const std::shared_ptr<Source> source_;
  uint64_t next_ = 0;
};

bool IsRefused() {
  const absl::Status status = Userfault::Open().status();
  if (status.ok()) return false;
  WARN("nothing was looked at: " << status.ToString());
  return true;
}

// A file that is filled on demand, and the image of it; pages behind kStored
// are zeros.
struct Filling {
  std::shared_ptr<Source> source = std::make_shared<Source>();
  std::shared_ptr<MemoryFile> file;
  std::shared_ptr<const MemoryImage> image;
};

Filling NewFilling(bool fills) {
  Filling filling;
  filling.source->holds = fills;
  filling.file = NewFile(kSize);
  Must(filling.file->FillOnDemand(std::make_unique<FakeSupply>(filling.source),
                                  fills));
  filling.image = Must(MemoryImage::Create(
      kSize, {filling.file}, {{.offset = 0, .length = kSize, .file = 0}}));
  return filling;
}

bool IsWhole(const GuestMemory& memory, uint64_t page) {
  const uint8_t* const bytes = memory.host_base() + page * kPage;
  const std::vector<uint8_t> wanted(kPage, page < kStored ? ValueOf(page) : 0);
  return std::memcmp(bytes, wanted.data(), kPage) == 0;
}

TEST_CASE("A page comes when it is touched, and is nobody's own") {
  if (IsRefused()) return;
  Filling filling = NewFilling(/*fills=*/false);
  const auto memory = NewGuest(filling.image);
  CHECK(Must(filling.file->AllocatedBytes()) == 0);
  CHECK(IsWhole(*memory, 9));
  CHECK(IsWhole(*memory, 10));
  CHECK(filling.source->brought == 1);
  CHECK(Must(filling.file->AllocatedBytes()) == kPiece * kPage);
  CHECK(Must(OwnPages(*memory)).empty());

  SECTION("what is written becomes its own, beside what was there") {
    memory->host_base()[100 * kPage + 7] = 255;
    CHECK(Must(OwnPages(*memory)) == std::vector{Pages(100, 1)});
    CHECK(memory->host_base()[100 * kPage + 6] == ValueOf(100));
    const auto other = NewGuest(filling.image);
    CHECK(IsWhole(*other, 100));
  }
  SECTION("a page that nobody stored is zeros") {
    CHECK(IsWhole(*memory, kPages - 1));
  }
  SECTION("the kernel's own accesses are served") {
    std::array<int, 2> ends{};
    REQUIRE(::pipe(ends.data()) == 0);
    const uint8_t* const page = memory->host_base() + 60 * kPage;
    CHECK(::write(ends[1], page, kPage) == static_cast<ssize_t>(kPage));
    std::vector<uint8_t> got(kPage);
    CHECK(::read(ends[0], got.data(), kPage) == static_cast<ssize_t>(kPage));
    CHECK(got == std::vector<uint8_t>(kPage, ValueOf(60)));
    ::close(ends[0]);
    ::close(ends[1]);
  }
  SECTION("who reads the file gets what is to be there") {
    std::vector<uint8_t> bytes(3 * kPage);
    Must(filling.image->Read(70 * kPage + 5, bytes));
    CHECK(bytes[0] == ValueOf(70));
    CHECK(bytes.back() == ValueOf(73));
  }
  SECTION("a guest that went leaves the others alone") {
    auto other = NewGuest(filling.image);
    CHECK(IsWhole(*other, 20));
    other.reset();
    CHECK(IsWhole(*memory, 200));
  }
  SECTION("all of it comes for who asks for it") {
    Must(filling.file->pager()->WaitUntilFull());
    CHECK(filling.file->pager()->full());
    CHECK(IsWhole(*memory, 150));
  }
}

TEST_CASE("A file that is full has no pager's threads, nor descriptors") {
  if (IsRefused()) return;
  std::thread([] {}).join();  // With the first, a sanitizer starts its own.
  const size_t threads = test::OwnThreads().size();
  const auto memory = NewGuest(kSize);
  Filling filling = NewFilling(/*fills=*/true);
  Must(memory->MapImage(filling.image));
  filling.source->holds = false;
  Must(filling.file->pager()->WaitUntilFull());
  // The threads say that it is full before they end.
  CHECK(test::OwnThreadsWithin(threads).size() <= threads);
  CHECK_FALSE(filling.file->writable());
  for (uint64_t page = 0; page < kPages; ++page) CHECK(IsWhole(*memory, page));
  CHECK(Must(OwnPages(*memory)).empty());
  // Another one just maps it.
  const auto other = NewGuest(filling.image);
  CHECK(IsWhole(*other, 3));
}

TEST_CASE("Guests touch pages all over while they are filled") {
  if (IsRefused()) return;
  for (int round = 0; round < 20; ++round) {
    Filling filling = NewFilling(/*fills=*/true);
    const std::array guests{NewGuest(filling.image), NewGuest(filling.image)};
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        std::mt19937 random(static_cast<unsigned>(round) * 4 + i);
        for (int touch = 0; touch < 200; ++touch) {
          if (!IsWhole(*guests.at(i % 2), random() % kPages)) ++wrong;
        }
      });
    }
    filling.source->holds = false;
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    for (uint64_t page = 0; page < kPages; ++page) {
      CHECK(IsWhole(*guests[0], page));
    }
  }
}

TEST_CASE("Memory that is lost is told before anybody sees zeros") {
  if (IsRefused()) return;
  const bool fills = GENERATE(false, true);
  Filling filling = NewFilling(fills);
  const auto memory = NewGuest(kSize);
  std::atomic<bool> told{false};
  Must(memory->MapImage(filling.image, [&told](const absl::Status& why) {
    told = absl::IsDataLoss(why);
  }));
  CHECK(IsWhole(*memory, 5));
  filling.source->bad_page = 101;
  if (fills) {
    filling.source->holds = false;
    CHECK(absl::IsDataLoss(filling.file->pager()->WaitUntilFull()));
  }
  std::thread blocked([&] {
    const uint8_t seen = At(*memory, 100);
    // NOLINTNEXTLINE(bugprone-assert-side-effect)
    CHECK((seen == 0 && told));
  });
  blocked.join();
  CHECK(told);
  CHECK(absl::IsDataLoss(filling.file->pager()->status()));
  CHECK(absl::IsDataLoss(filling.file->pager()->WaitUntilFull()));
  CHECK(IsWhole(*memory, 5));
  // Nobody starts from it, nor copies it.
  CHECK(absl::IsDataLoss(NewGuest(kSize)->MapImage(filling.image)));
  std::vector<uint8_t> page(kPage);
  CHECK(absl::IsDataLoss(filling.image->Read(0, page)));
}

TEST_CASE("Who waits for all pages may give up") {
  if (IsRefused()) return;
  Filling filling = NewFilling(/*fills=*/true);
  Pager* const pager = filling.file->pager();
  CHECK(absl::IsDeadlineExceeded(pager->WaitUntilFull(
      {}, std::chrono::steady_clock::now() + std::chrono::milliseconds(1))));
  std::stop_source stop;
  std::thread stopper([&stop] { stop.request_stop(); });
  CHECK(absl::IsCancelled(pager->WaitUntilFull(stop.get_token())));
  stopper.join();
}

TEST_CASE("A pager knows which pages come, and which were there before") {
  if (IsRefused()) return;
  const auto source = std::make_shared<Source>();
  source->there = {Pages(20, 3), Pages(100, 1)};
  const auto file = NewFile(kSize);
  Must(file->FillOnDemand(std::make_unique<FakeSupply>(source), false));
  const Pager& pager = *file->pager();
  CHECK(pager.Has(Pages(20, 3)));
  CHECK(pager.Has(Pages(100, 1)));
  CHECK_FALSE(pager.Has(Pages(20, 4)));
  CHECK_FALSE(pager.HasAll());
  // A fault brings a piece, a page that nobody stored comes alone, and so does
  // one that is read from the file.
  const auto memory =
      NewGuest(Must(MemoryImage::Create(kSize, {file}, {{0, kSize, 0}})));
  CHECK(IsWhole(*memory, 9));
  CHECK(IsWhole(*memory, kStored));
  std::vector<uint8_t> byte(1);
  Must(file->Read(50 * kPage, byte));
  CHECK(pager.Has(Pages(8, kPiece)));
  CHECK_FALSE(pager.Has(Pages(7, 1)));
  CHECK(pager.Has(Pages(kStored, 1)));
  CHECK_FALSE(pager.Has(Pages(kStored + 1, 1)));
  CHECK(pager.Has(Pages(48, kPiece)));
  Must(file->pager()->WaitUntilFull());
  CHECK(pager.Has(Pages(0, kPages)));
  CHECK(pager.HasAll());
}

TEST_CASE("An overlay over what is being filled copies what is to be there") {
  if (IsRefused()) return;
  Filling filling = NewFilling(/*fills=*/false);
  const auto top = NewFile(kSize);
  Fill(*top, Pages(10, 1), 255);
  Fill(*top, Pages(12, 1), 255);
  const auto overlaid =
      Must(Overlay(*filling.image, top, std::vector{Pages(10, 1), Pages(12, 1)},
                   {.max_extents = 3, .wanted_extents = 3}));
  CHECK(overlaid.materialized_bytes == kPage);
  Must(top->Seal());
  const auto memory = NewGuest(overlaid.image);
  CHECK(At(*memory, 10) == 255);
  CHECK(IsWhole(*memory, 11));
  CHECK(IsWhole(*memory, 13));
}

TEST_CASE("Filling that ends early, a hundred times, leaves nothing") {
  if (IsRefused()) return;
  std::optional<size_t> threads;
  std::optional<size_t> descriptors;
  for (int i = 0; i < 100; ++i) {
    {
      Filling filling = NewFilling(/*fills=*/i % 2 == 0);
      const auto memory = NewGuest(filling.image);
      CHECK(IsWhole(*memory, static_cast<uint64_t>(i)));
    }
    if (!threads.has_value()) {
      threads = test::OwnThreads().size();
      descriptors = test::OpenDescriptors();
    }
    REQUIRE(test::OwnThreadsWithin(*threads).size() <= *threads);
    REQUIRE(test::OpenDescriptors() == *descriptors);
  }
}

TEST_CASE("Where userfaultfd is refused nothing is filled on demand",
          "[.refused_userfaultfd]") {
  const auto file = NewFile(kSize);
  const absl::Status status = file->FillOnDemand(
      std::make_unique<FakeSupply>(std::make_shared<Source>()), true);
  CHECK(status.code() == absl::StatusCode::kFailedPrecondition);
  CHECK(std::string(status.message()).find("CAP_SYS_PTRACE") !=
        std::string::npos);
  CHECK(file->pager() == nullptr);
  // It can be filled as any other.
  Fill(*file, Pages(3, 1), 7);
  const std::array<uint8_t, 1> byte{8};
  CHECK(::pwrite(file->fd(), byte.data(), 1, 5) == 1);
  Must(file->Seal());
}

}  // namespace
}  // namespace catnap::memory
