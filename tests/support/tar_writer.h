#ifndef CATNAP_TESTS_SUPPORT_TAR_WRITER_H_
#define CATNAP_TESTS_SUPPORT_TAR_WRITER_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace catnap::test {

// A member of an archive, as its header says it: nothing is checked.
struct TarMember {
  std::string name;
  char type = '0';  // 1 hard link, 2 symbolic, 3 char, 4 block, 5 dir, 6 FIFO
  std::string content{};
  std::string link{};
  uint32_t mode = 0644;
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t mtime = 1'000'000'000;
  uint32_t major = 0;
  uint32_t minor = 0;
  std::optional<uint64_t> size{};  // Instead of the content's.
  // Records of a pax header before it.
  std::vector<std::pair<std::string, std::string>> pax{};
};

// Writes tar archives by hand, so that also bad ones can be written.
class TarWriter {
 public:
  static constexpr size_t kBlock = 512;

  TarWriter& Add(const TarMember& member) {
    if (!member.pax.empty()) {
      std::string records;
      for (const auto& [key, value] : member.pax) {
        records += Record(key, value);
      }
      Put({.name = "PaxHeader", .type = 'x', .content = records});
    }
    Put(member);
    return *this;
  }

  // Of GNU tar: the next member's name, or its link's when `type` is 'K'.
  TarWriter& AddLongName(const std::string& name, char type = 'L') {
    Put({.name = "././@LongLink",
         .type = type,
         .content = name + std::string(1, '\0')});
    return *this;
  }

  // What was written so far, without an end.
  const std::string& bytes() const { return bytes_; }
  // And with one.
  std::string Finish() const { return bytes_ + std::string(2 * kBlock, '\0'); }

 private:
  // "length key=value\n", where the length counts itself.
  static std::string Record(const std::string& key, const std::string& value) {
    const std::string rest = " " + key + "=" + value + "\n";
    size_t length = rest.size();
    while (std::to_string(length).size() + rest.size() != length) {
      length = std::to_string(length).size() + rest.size();
    }
    return std::to_string(length) + rest;
  }

  static void Octal(char* at, size_t width, uint64_t value) {
    for (size_t i = width - 1; i-- > 0; value >>= 3) {
      at[i] = static_cast<char>('0' + (value & 7));
    }
  }

  void Put(const TarMember& member) {
    std::array<char, kBlock> header{};
    const auto text = [&header](size_t at, size_t width, const std::string& s) {
      std::memcpy(&header[at], s.data(), std::min(width, s.size()));
    };
    text(0, 100, member.name);
    Octal(&header[100], 8, member.mode);
    Octal(&header[108], 8, member.uid);
    Octal(&header[116], 8, member.gid);
    Octal(&header[124], 12, member.size.value_or(member.content.size()));
    Octal(&header[136], 12, static_cast<uint64_t>(member.mtime));
    header[156] = member.type;
    text(157, 100, member.link);
    text(257, 8, std::string("ustar\00000", 8));
    Octal(&header[329], 8, member.major);
    Octal(&header[337], 8, member.minor);
    std::fill_n(&header[148], 8, ' ');
    uint32_t sum = 0;
    for (const char c : header) sum += static_cast<unsigned char>(c);
    Octal(&header[148], 7, sum);
    bytes_.append(header.data(), header.size());
    bytes_ += member.content;
    bytes_.resize((bytes_.size() + kBlock - 1) / kBlock * kBlock);
  }

  std::string bytes_;
};

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_TAR_WRITER_H_
