#include "state/decoder.h"

#include <cstring>

#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::state {

bool StateDecoder::Fail(const char* what) {
  if (error_ == nullptr) error_ = what;
  integer_ = 0;
  span_ = {};
  return false;
}

bool StateDecoder::ReadVarint(uint64_t* value) {
  uint64_t result = 0;
  for (size_t i = 0; i < kMaxVarintBytes; ++i) {
    if (next_ == bytes_.size()) return Fail("ends inside an integer");
    const uint8_t byte = bytes_[next_++];
    // The tenth byte holds bit 63 only.
    if (i == kMaxVarintBytes - 1 && byte > 1) break;
    result |= static_cast<uint64_t>(byte & 0x7f) << (7 * i);
    if (byte < 0x80) {
      // One value has one form, so that equal states are equal bytes.
      if (byte == 0 && i > 0) return Fail("integer has bytes too many");
      *value = result;
      return true;
    }
  }
  return Fail("integer exceeds 64 bits");
}

bool StateDecoder::ReadFixed(size_t size) {
  if (size > bytes_.size() - next_) return Fail("ends inside an integer");
  const uint8_t* at = bytes_.data() + next_;
  integer_ = size == sizeof(uint32_t) ? base::LoadLe<uint32_t>(at)
                                      : base::LoadLe<uint64_t>(at);
  next_ += size;
  return true;
}

bool StateDecoder::ReadSpan(uint64_t length) {
  if (length > kMaxFieldBytes) return Fail("is longer than a field may be");
  if (length > bytes_.size() - next_) return Fail("is longer than the input");
  span_ = bytes_.subspan(next_, static_cast<size_t>(length));
  next_ += static_cast<size_t>(length);
  return true;
}

bool StateDecoder::Next() {
  if (error_ != nullptr || next_ == bytes_.size()) return false;
  start_ = next_;
  id_ = 0;
  integer_ = 0;
  span_ = {};
  uint64_t key = 0;
  if (!ReadVarint(&key)) return false;
  const uint64_t id = key >> kWireTypeBits;
  if (id == 0 || id > kMaxFieldId) return Fail("has an id out of range");
  id_ = static_cast<uint32_t>(id);
  type_ = static_cast<WireType>(key & ((1 << kWireTypeBits) - 1));
  switch (type_) {
    case WireType::kVarint:
      return ReadVarint(&integer_);
    case WireType::kFixed32:
      return ReadFixed(sizeof(uint32_t));
    case WireType::kFixed64:
      return ReadFixed(sizeof(uint64_t));
    case WireType::kBytes: {
      uint64_t length = 0;
      return ReadVarint(&length) && ReadSpan(length);
    }
    case WireType::kMessage: {
      if (!ReadFixed(kMessageLengthBytes)) return false;
      return ReadSpan(integer_);
    }
  }
  return Fail("has an unknown wire type");
}

uint64_t StateDecoder::Integer(uint64_t max) {
  const bool is_integer = type_ == WireType::kVarint ||
                          type_ == WireType::kFixed32 ||
                          type_ == WireType::kFixed64;
  if (!is_integer) Fail("is not an integer");
  if (integer_ > max) Fail("is too large");
  return integer_;
}

int64_t StateDecoder::Signed() {
  if (type_ != WireType::kVarint) Fail("is not a signed integer");
  const uint64_t magnitude = integer_ >> 1;
  return static_cast<int64_t>((integer_ & 1) != 0 ? ~magnitude : magnitude);
}

std::span<const uint8_t> StateDecoder::Bytes(size_t max) {
  if (type_ != WireType::kBytes) Fail("is not a byte string");
  if (span_.size() > max) Fail("is too long");
  return span_;
}

std::string_view StateDecoder::Text(size_t max) {
  const auto bytes = Bytes(max);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void StateDecoder::CopyBytes(std::span<uint8_t> into) {
  const auto bytes = Bytes();
  if (error_ == nullptr && bytes.size() != into.size()) {
    Fail("has the wrong length");
  }
  if (error_ != nullptr || into.empty()) return;
  std::memcpy(into.data(), bytes.data(), into.size());
}

StateDecoder StateDecoder::Message() {
  if (type_ != WireType::kMessage) Fail("is not a message");
  if (depth_ == kMaxDepth) Fail("is nested too deep");
  // An empty span after a failure.
  return StateDecoder(span_, depth_ + 1);
}

absl::Status StateDecoder::status() const {
  if (error_ == nullptr) return absl::OkStatus();
  return Error(absl::StatusCode::kDataLoss, "field {} at byte {} of {}: {}",
               id_, start_, bytes_.size(), error_);
}

}  // namespace catnap::state
