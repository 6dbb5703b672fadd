#include "net/dns_message.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "net/policy.h"
#include "net/wire.h"

namespace catnap::net {
namespace {

using Bytes = std::span<const uint8_t>;

constexpr size_t kHeaderBytes = 12;
constexpr size_t kMaxWireName = 255;
constexpr int kMaxPointers = 32;  // In one name.
constexpr int kMaxAliases = 16;
constexpr size_t kMaxRecords = 256;

constexpr uint16_t kFlagResponse = 0x8000;
constexpr uint16_t kOpcodeMask = 0x7800;
constexpr uint16_t kFlagTruncated = 0x0200;
constexpr uint16_t kFlagRecursionDesired = 0x0100;
constexpr uint16_t kFlagRecursionAvailable = 0x0080;

constexpr uint16_t kTypeA = 1;
constexpr uint16_t kTypeCname = 5;
constexpr uint16_t kTypeAaaa = 28;
constexpr uint16_t kTypeOpt = 41;
constexpr uint16_t kClassIn = 1;

constexpr uint32_t kMostSeconds = 86400;

// A name without compression, letters in lower case: equal names are equal
// strings, whatever bytes their labels hold.
using WireName = std::string;

// Reads the name at `*at` and moves `*at` behind it.
std::optional<WireName> ReadName(Bytes message, size_t* at) {
  WireName name;
  size_t here = *at;
  bool jumped = false;
  for (int pointers = 0;;) {
    if (here >= message.size()) return std::nullopt;
    const uint8_t length = message[here];
    if (length >> 6 == 3) {
      if (here + 1 >= message.size() || ++pointers > kMaxPointers) {
        return std::nullopt;
      }
      const size_t target = Load16(message, here) & 0x3fff;
      if (target >= here) return std::nullopt;  // Back only.
      if (!jumped) *at = here + 2;
      jumped = true;
      here = target;
      continue;
    }
    if (length >> 6 != 0 || length >= message.size() - here ||
        name.size() + length + 1 > kMaxWireName) {
      return std::nullopt;
    }
    name.push_back(static_cast<char>(length));
    for (size_t i = 1; i <= length; ++i) {
      auto c = static_cast<char>(message[here + i]);
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
      name.push_back(c);
    }
    here += size_t{length} + 1;
    if (length == 0) break;
  }
  if (!jumped) *at = here;
  return name;
}

// The text of a name; "" when it is the root or has labels that hosts' names
// do not have.
std::string TextOf(const WireName& name) {
  std::string text;
  for (size_t at = 0; at < name.size() && name[at] != 0;) {
    const auto length = static_cast<size_t>(static_cast<uint8_t>(name[at]));
    const auto label = std::string_view(name).substr(at + 1, length);
    // A dot inside a label would read as two labels.
    if (label.find('.') != std::string_view::npos) return "";
    if (!text.empty()) text += '.';
    text += label;
    at += length + 1;
  }
  return CanonicalName(text);
}

struct Record {
  WireName owner;
  uint16_t type = 0;
  uint16_t klass = 0;
  uint32_t seconds = 0;
  size_t data_at = 0;
  size_t data_bytes = 0;
};

std::optional<Record> ReadRecord(Bytes message, size_t* at) {
  auto owner = ReadName(message, at);
  if (!owner.has_value() || *at > message.size() || message.size() - *at < 10) {
    return std::nullopt;
  }
  Record record;
  record.owner = *std::move(owner);
  record.type = Load16(message, *at);
  record.klass = Load16(message, *at + 2);
  record.seconds = Load32(message, *at + 4);
  record.data_bytes = Load16(message, *at + 8);
  record.data_at = *at + 10;
  if (record.data_bytes > message.size() - record.data_at) return std::nullopt;
  *at = record.data_at + record.data_bytes;
  return record;
}

// The name after `name` in a chain of aliases, and its time to live.
struct Alias {
  WireName from;
  WireName to;
  uint32_t seconds = 0;
};

}  // namespace

std::optional<DnsParse> ParseDnsQuery(std::span<const uint8_t> message) {
  if (message.size() < kHeaderBytes) return std::nullopt;
  const uint16_t flags = Load16(message, 2);
  if ((flags & kFlagResponse) != 0) return std::nullopt;
  DnsParse parse;
  DnsQuery& query = parse.query;
  query.id = Load16(message, 0);
  query.recursion_desired = (flags & kFlagRecursionDesired) != 0;
  if ((flags & kOpcodeMask) != 0) {
    parse.code = DnsCode::kNotImplemented;
    return parse;
  }
  // One question, no records but at most that of EDNS.
  if (Load16(message, 4) != 1 || Load16(message, 6) != 0 ||
      Load16(message, 8) != 0 || Load16(message, 10) > 1) {
    return parse;
  }
  size_t at = kHeaderBytes;
  // Nothing comes before the question that a pointer could go back to.
  const auto name = ReadName(message, &at);
  if (!name.has_value() || at - kHeaderBytes != name->size() ||
      message.size() - at < 4) {
    return parse;
  }
  query.type = Load16(message, at);
  query.klass = Load16(message, at + 2);
  at += 4;
  const Bytes question = message.subspan(kHeaderBytes, at - kHeaderBytes);
  if (Load16(message, 10) == 1) {
    const auto record = ReadRecord(message, &at);
    if (!record.has_value() || record->type != kTypeOpt) return parse;
    query.edns = true;
    query.answer_bytes = std::clamp<uint16_t>(record->klass, 512, kMaxDnsBytes);
  }
  query.question.assign(question.begin(), question.end());
  query.name = TextOf(*name);
  parse.code = DnsCode::kNoError;
  return parse;
}

std::vector<uint8_t> BuildDnsQuery(const DnsQuery& query, uint16_t id) {
  std::vector<uint8_t> message;
  Append16(&message, id);
  Append16(&message, query.recursion_desired ? kFlagRecursionDesired : 0);
  Append16(&message, 1);
  Append32(&message, 0);
  Append16(&message, query.edns ? 1 : 0);
  AppendBytes(&message, query.question);
  if (query.edns) {
    Append8(&message, 0);  // The root.
    Append16(&message, kTypeOpt);
    Append16(&message, query.answer_bytes);
    Append32(&message, 0);
    Append16(&message, 0);
  }
  return message;
}

std::vector<uint8_t> BuildDnsAnswer(const DnsQuery& query, DnsCode code) {
  std::vector<uint8_t> message;
  Append16(&message, query.id);
  Append16(&message, static_cast<uint16_t>(
                         kFlagResponse | kFlagRecursionAvailable |
                         (query.recursion_desired ? kFlagRecursionDesired : 0) |
                         static_cast<uint16_t>(code)));
  Append16(&message, query.question.empty() ? 0 : 1);
  Append32(&message, 0);
  Append16(&message, 0);
  AppendBytes(&message, query.question);
  return message;
}

std::optional<DnsAnswer> ParseDnsAnswer(std::span<const uint8_t> message,
                                        const DnsQuery& query, uint16_t id) {
  if (message.size() < kHeaderBytes || message.size() > kMaxDnsBytes ||
      query.question.empty()) {
    return std::nullopt;
  }
  const uint16_t flags = Load16(message, 2);
  if (Load16(message, 0) != id || (flags & kFlagResponse) == 0 ||
      (flags & kOpcodeMask) != 0 || Load16(message, 4) != 1) {
    return std::nullopt;
  }
  size_t at = kHeaderBytes;
  const auto asked = ReadName(message, &at);
  size_t same = 0;
  const auto wanted = ReadName(query.question, &same);
  if (!asked.has_value() || asked != wanted || message.size() - at < 4 ||
      Load16(message, at) != query.type ||
      Load16(message, at + 2) != query.klass) {
    return std::nullopt;
  }
  at += 4;
  DnsAnswer answer;
  // What is cut off may be malformed; the guest sees that it is cut off.
  if ((flags & kFlagTruncated) != 0 || query.klass != kClassIn) return answer;
  const size_t count = Load16(message, 6);
  if (count > kMaxRecords) return std::nullopt;
  std::vector<Alias> aliases;
  std::vector<Record> addresses;
  for (size_t i = 0; i < count; ++i) {
    auto record = ReadRecord(message, &at);
    if (!record.has_value()) return std::nullopt;
    if (record->klass != kClassIn) continue;
    if (record->type == kTypeCname) {
      size_t target_at = record->data_at;
      auto target = ReadName(message, &target_at);
      if (!target.has_value() ||
          target_at != record->data_at + record->data_bytes) {
        return std::nullopt;
      }
      aliases.push_back({.from = std::move(record->owner),
                         .to = *std::move(target),
                         .seconds = record->seconds});
    } else if ((record->type == kTypeA && record->data_bytes == 4) ||
               (record->type == kTypeAaaa && record->data_bytes == 16)) {
      addresses.push_back(*std::move(record));
    }
  }
  WireName name = *asked;
  uint32_t seconds = kMostSeconds;
  for (int hop = 0; hop <= kMaxAliases; ++hop) {
    for (const Record& record : addresses) {
      if (record.owner != name) continue;
      if (answer.addresses.size() == kMaxAddresses) return answer;
      const Bytes data = message.subspan(record.data_at, record.data_bytes);
      answer.addresses.push_back(
          {.address = record.type == kTypeA ? IpAddress::V4(data)
                                            : IpAddress::V6(data),
           .time_to_live =
               std::chrono::seconds(std::min(seconds, record.seconds))});
    }
    const auto next =
        std::find_if(aliases.begin(), aliases.end(),
                     [&](const Alias& alias) { return alias.from == name; });
    if (next == aliases.end()) break;
    seconds = std::min(seconds, next->seconds);
    name = std::exchange(next->to, {});
    // Each alias leads on once, so that a ring of them ends.
    next->from.clear();
  }
  return answer;
}

}  // namespace catnap::net
