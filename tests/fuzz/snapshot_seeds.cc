#include <array>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "codec/zstd_codec.h"
#include "fuzz/seeds.h"
#include "snapshot/memory_file.h"

namespace catnap::fuzz {
namespace {

// Four pages as one frame. zstd's raw block makes the same bytes with every
// version of the library, as a compressed one need not.
Bytes Frame(uint32_t pages) {
  const uint32_t size = pages * static_cast<uint32_t>(base::kPageBytes);
  Bytes frame = {0x28, 0xb5, 0x2f, 0xfd, 0xa0};
  Put(&frame, size);
  // One block of a byte that repeats: last, RLE.
  const uint32_t block = 1 | (1 << 1) | (size << 3);
  frame.push_back(static_cast<uint8_t>(block));
  frame.push_back(static_cast<uint8_t>(block >> 8));
  frame.push_back(static_cast<uint8_t>(block >> 16));
  frame.push_back('x');
  return frame;
}

struct Directory {
  Bytes chunks;
  snapshot::PageIndex index;
};

// 16 pages: zero, two frames of four with one place unused, zero.
Directory SmallDirectory(bool has_parent) {
  Directory directory;
  std::array<uint8_t, snapshot::kChunkHeaderBytes> header{};
  const snapshot::Id id = {1, 2, 3, 4};
  snapshot::EncodeChunkHeader(id, header);
  directory.chunks.assign(header.begin(), header.end());
  snapshot::PageIndex& index = directory.index;
  index.ram_pages = 16;
  index.has_parent = has_parent;
  const Bytes frame = Frame(4);
  for (uint32_t i = 0; i < 2; ++i) {
    index.frames.push_back({.file = 0,
                            .bytes = static_cast<uint32_t>(frame.size()),
                            .offset = directory.chunks.size(),
                            .crc32c = base::Crc32c(frame),
                            .pages = 4,
                            .first_slot = 4 * i});
    directory.chunks.insert(directory.chunks.end(), frame.begin(), frame.end());
  }
  index.files.push_back({.name = "0.chunks",
                         .id = id,
                         .file_bytes = directory.chunks.size(),
                         .hot_bytes = index.frames[1].offset});
  using snapshot::PageKind;
  index.runs = {{.page = 0, .pages = 3, .kind = PageKind::kZero, .slot = 0},
                {.page = 3, .pages = 5, .kind = PageKind::kStored, .slot = 0},
                {.page = 8,
                 .pages = 6,
                 .kind = has_parent ? PageKind::kParent : PageKind::kZero,
                 .slot = 0},
                {.page = 14, .pages = 2, .kind = PageKind::kStored, .slot = 6}};
  return directory;
}

Bytes IndexInput(const snapshot::PageIndex& index) {
  Bytes bytes;
  Put(&bytes, static_cast<uint16_t>(index.ram_pages - 1));
  Put(&bytes, static_cast<uint8_t>(index.has_parent ? 1 : 0));
  const auto encoded = snapshot::EncodePageIndex(index);
  bytes.insert(bytes.end(), encoded.begin(), encoded.end());
  return bytes;
}

Bytes ReaderInput(const Directory& directory, bool with_sections) {
  Bytes bytes;
  Put(&bytes, uint8_t{1});
  Put(&bytes, static_cast<uint16_t>(directory.chunks.size()));
  bytes.insert(bytes.end(), directory.chunks.begin(), directory.chunks.end());
  std::vector<state::SavedSection> sections;
  if (with_sections) {
    sections.push_back({.id = state::SectionId::kMachine,
                        .version = 1,
                        .critical = true,
                        .bytes = {8, 1}});
    sections.push_back({.id = state::SectionId::kVcpu, .bytes = {}});
  }
  snapshot::Header header;
  header.id = {9};
  header.has_parent = directory.index.has_parent;
  if (header.has_parent) header.parent = {8};
  header.ram_bytes = directory.index.ram_pages * base::kPageBytes;
  const auto file =
      snapshot::EncodeMemoryFile(header, sections, directory.index);
  bytes.insert(bytes.end(), file.begin(), file.end());
  return bytes;
}

}  // namespace

std::vector<Seed> SnapshotIndexSeeds() {
  snapshot::PageIndex empty;
  empty.ram_pages = 300;
  empty.runs = {
      {.page = 0, .pages = 300, .kind = snapshot::PageKind::kZero, .slot = 0}};
  Directory two = SmallDirectory(true);
  snapshot::ChunkFile other = two.index.files[0];
  other.name = "1.chunks";
  other.id = {5};
  two.index.files.push_back(other);
  two.index.frames[1].file = 1;
  return {{"empty", IndexInput(empty)},
          {"alone", IndexInput(SmallDirectory(false).index)},
          {"child", IndexInput(SmallDirectory(true).index)},
          {"two_files", IndexInput(two.index)}};
}

std::vector<Seed> SnapshotReaderSeeds() {
  Directory bad_sum = SmallDirectory(false);
  bad_sum.index.frames[1].crc32c ^= 1;
  Directory bad_frame = SmallDirectory(false);
  bad_frame.chunks.back() = 'y';
  Directory short_frame = SmallDirectory(false);
  short_frame.index.frames[1].pages = 5;  // The frame holds four.
  Directory newer = SmallDirectory(false);
  newer.chunks[12] = 2;
  return {{"alone", ReaderInput(SmallDirectory(false), true)},
          {"child", ReaderInput(SmallDirectory(true), false)},
          {"bad_sum", ReaderInput(bad_sum, true)},
          {"bad_frame", ReaderInput(bad_frame, true)},
          {"short_frame", ReaderInput(short_frame, true)},
          {"newer", ReaderInput(newer, true)}};
}

}  // namespace catnap::fuzz
