#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "golden/golden_guest.h"
#include "snapshot/memory_file.h"
#include "snapshot/reader.h"
#include "snapshot/writer.h"

// Writes the golden snapshots of the current format; see README.md. Ids are
// random, so a second run writes other bytes: run it for a new format only.

namespace catnap::test {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<uint8_t>;
constexpr uint64_t kPage = base::kPageBytes;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);  // NOLINT(concurrency-mt-unsafe): the only thread.
}

Bytes Load(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

void Store(const fs::path& path, const Bytes& bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(reinterpret_cast<const char*>(bytes.data()),
            static_cast<std::streamsize>(bytes.size()));
}

snapshot::WrittenSnapshot Write(const fs::path& folder,
                                const snapshot::SnapshotContent& content,
                                snapshot::WorkerPool* pool) {
  fs::create_directories(folder);
  auto written = snapshot::WriteSnapshot(folder.string(), content,
                                         {.pool = pool, .durable = false});
  if (!written.ok()) Fail(written.status().ToString());
  return *std::move(written);
}

void WriteGood(const fs::path& root, snapshot::WorkerPool* pool) {
  const auto sections = GoldenSections();
  const std::vector<base::PageRange> all = {{0, kGoldenPages * kPage}};
  const std::vector<base::PageRange> hot = {{40 * kPage, 4 * kPage},
                                            {9 * kPage, kPage}};
  const Bytes alone = GoldenAlone();
  Write(root / "alone",
        {.sections = sections, .memory = alone, .changed = all, .hot = hot},
        pool);
  const Bytes image = GoldenImage();
  const Bytes before = GoldenChildBefore();
  const Bytes child = GoldenChild();
  const auto first = Write(root / "before",
                           {.memory = before,
                            .changed = all,
                            .parent = kGoldenParent,
                            .parent_memory = image},
                           pool);
  const std::vector<base::PageRange> changed = {{20 * kPage, kPage},
                                                {40 * kPage, 4 * kPage}};
  Write(
      root / "child",
      {.sections = sections,
       .memory = child,
       .changed = changed,
       .parent = kGoldenParent,
       .parent_memory = image,
       .base = snapshot::BaseSnapshot{.index = &first.index,
                                      .directory = (root / "before").string()}},
      pool);
  fs::remove_all(root / "before");
}

void Seal(Bytes* file, size_t header_bytes) {
  const size_t at = header_bytes - sizeof(uint32_t);
  base::StoreLe(file->data() + at, base::Crc32c(std::span(*file).first(at)));
}

// A copy of `good` in which one file was changed.
void WriteBad(const fs::path& good, const fs::path& bad,
              const std::string& name,
              const std::function<void(Bytes*)>& change) {
  fs::create_directories(bad.parent_path());
  fs::copy(good, bad);
  Bytes bytes = Load(bad / name);
  change(&bytes);
  Store(bad / name, bytes);
}

void WriteAllBad(const fs::path& good, const fs::path& other,
                 const fs::path& root) {
  const std::string memory(snapshot::kMemoryFileName);
  auto reader = snapshot::SnapshotReader::Open(good.string());
  if (!reader.ok()) Fail(reader.status().ToString());
  const snapshot::PageIndex index = (*reader)->index();
  const std::string chunks = index.files.front().name;
  const auto flip = [](size_t from_end) {
    return
        [from_end](Bytes* bytes) { (*bytes)[bytes->size() - from_end] ^= 4; };
  };
  WriteBad(good, root / "DATA_LOSS-magic", memory,
           [](Bytes* bytes) { (*bytes)[0] ^= 1; });
  WriteBad(good, root / "DATA_LOSS-header", memory,
           [](Bytes* bytes) { (*bytes)[57] ^= 1; });
  WriteBad(good, root / "DATA_LOSS-section-table", memory,
           [](Bytes* bytes) { (*bytes)[snapshot::kHeaderBytes] ^= 1; });
  WriteBad(good, root / "DATA_LOSS-section", memory, [](Bytes* bytes) {
    (*bytes)[snapshot::kHeaderBytes + 2 * state::kSectionHeaderBytes] ^= 1;
  });
  WriteBad(good, root / "DATA_LOSS-index", memory, flip(1));
  WriteBad(good, root / "DATA_LOSS-cut", memory,
           [](Bytes* bytes) { bytes->resize(bytes->size() - 1); });
  WriteBad(good, root / "DATA_LOSS-frame", chunks, flip(1));
  WriteBad(good, root / "DATA_LOSS-chunks-cut", chunks,
           [](Bytes* bytes) { bytes->resize(bytes->size() - 1); });
  WriteBad(good, root / "DATA_LOSS-chunks-missing", memory, [](Bytes*) {});
  fs::remove(root / "DATA_LOSS-chunks-missing" / chunks);
  WriteBad(good, root / "DATA_LOSS-chunks-of-another", chunks,
           [](Bytes* bytes) {
             (*bytes)[16] ^= 1;  // The id.
             Seal(bytes, snapshot::kChunkHeaderBytes);
           });
  WriteBad(good, root / "DATA_LOSS-frame-too-short", memory, [&](Bytes* bytes) {
    snapshot::PageIndex lies = index;
    lies.frames.back().pages += 1;  // All checksums are right.
    auto header = snapshot::DecodeHeader(
        std::span(*bytes).first<snapshot::kHeaderBytes>(), bytes->size());
    if (!header.ok()) Fail(header.status().ToString());
    *bytes = snapshot::EncodeMemoryFile(*header, GoldenSections(), lies);
  });
  WriteBad(good, root / "UNIMPLEMENTED-newer", memory, [](Bytes* bytes) {
    base::StoreLe<uint32_t>(bytes->data() + 8, 1000);
    base::StoreLe<uint32_t>(bytes->data() + 12, 1000);
    Seal(bytes, snapshot::kHeaderBytes);
  });
  WriteBad(good, root / "UNIMPLEMENTED-chunks-newer", chunks, [](Bytes* bytes) {
    base::StoreLe<uint32_t>(bytes->data() + 8, 1000);
    base::StoreLe<uint32_t>(bytes->data() + 12, 1000);
    Seal(bytes, snapshot::kChunkHeaderBytes);
  });
  WriteBad(good, root / "UNIMPLEMENTED-flag", memory, [](Bytes* bytes) {
    (*bytes)[48] |= 0x80;
    Seal(bytes, snapshot::kHeaderBytes);
  });
  WriteBad(other, root / "DATA_LOSS-parent-without-flag", memory,
           [](Bytes* bytes) {
             (*bytes)[48] = 0;
             Seal(bytes, snapshot::kHeaderBytes);
           });
}

}  // namespace
}  // namespace catnap::test

int main(int argc, char** argv) {
  using catnap::test::Fail;
  if (argc != 2) Fail("usage: snapshot_goldens FOLDER");
  const std::filesystem::path root = argv[1];
  const auto pool = catnap::snapshot::WorkerPool::Create(1);
  if (!pool.ok()) Fail(pool.status().ToString());
  std::filesystem::remove_all(root / "v1");
  std::filesystem::remove_all(root / "bad");
  catnap::test::WriteGood(root / "v1", pool->get());
  catnap::test::WriteAllBad(root / "v1" / "alone", root / "v1" / "child",
                            root / "bad");
  return 0;
}
