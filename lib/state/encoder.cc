#include "state/encoder.h"

#include <cstring>
#include <exception>

#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::state {

uint8_t* StateEncoder::Grow(size_t size) {
  if (failure_ != Failure::kNone) return nullptr;
  const size_t before = out_->size();
  try {
    out_->resize(before + size);
  } catch (const std::exception&) {  // bad_alloc, or above max_size().
    Fail(Failure::kNoMemory, 0);
    return nullptr;
  }
  return out_->data() + before;
}

void StateEncoder::Fail(Failure failure, uint32_t id) {
  if (failure_ != Failure::kNone) return;
  failure_ = failure;
  failed_id_ = id;
}

bool StateEncoder::PutVarint(uint64_t value) {
  uint8_t bytes[kMaxVarintBytes];
  size_t size = 0;
  for (; value >= 0x80; value >>= 7) {
    bytes[size++] = static_cast<uint8_t>(value | 0x80);
  }
  bytes[size++] = static_cast<uint8_t>(value);
  uint8_t* to = Grow(size);
  if (to == nullptr) return false;
  std::memcpy(to, bytes, size);
  return true;
}

bool StateEncoder::PutKey(uint32_t id, WireType type) {
  if (id == 0 || id > kMaxFieldId) Fail(Failure::kBadId, id);
  return PutVarint(uint64_t{id} << kWireTypeBits | static_cast<uint8_t>(type));
}

void StateEncoder::Unsigned(uint32_t id, uint64_t value) {
  if (PutKey(id, WireType::kVarint)) PutVarint(value);
}

void StateEncoder::Signed(uint32_t id, int64_t value) {
  // 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
  const auto bits = static_cast<uint64_t>(value);
  Unsigned(id, (bits << 1) ^ (value < 0 ? ~uint64_t{0} : 0));
}

void StateEncoder::Fixed32(uint32_t id, uint32_t value) {
  if (!PutKey(id, WireType::kFixed32)) return;
  if (uint8_t* to = Grow(sizeof(value))) base::StoreLe(to, value);
}

void StateEncoder::Fixed64(uint32_t id, uint64_t value) {
  if (!PutKey(id, WireType::kFixed64)) return;
  if (uint8_t* to = Grow(sizeof(value))) base::StoreLe(to, value);
}

void StateEncoder::Bytes(uint32_t id, std::span<const uint8_t> bytes) {
  if (bytes.size() > kMaxFieldBytes) Fail(Failure::kTooLong, id);
  if (!PutKey(id, WireType::kBytes) || !PutVarint(bytes.size())) return;
  uint8_t* to = Grow(bytes.size());
  if (to != nullptr && !bytes.empty()) {
    std::memcpy(to, bytes.data(), bytes.size());
  }
}

void StateEncoder::Text(uint32_t id, std::string_view text) {
  Bytes(id, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

StateEncoder::Nested StateEncoder::Message(uint32_t id) {
  if (depth_ == kMaxDepth) Fail(Failure::kTooDeep, id);
  ++depth_;
  // The length is not known yet: EndMessage() fills it in.
  if (PutKey(id, WireType::kMessage)) Grow(kMessageLengthBytes);
  return Nested(this, out_->size());
}

void StateEncoder::EndMessage(size_t start) {
  --depth_;
  const size_t length = out_->size() - start;
  if (length > kMaxFieldBytes) Fail(Failure::kTooLong, 0);
  if (failure_ != Failure::kNone) return;
  base::StoreLe(out_->data() + start - kMessageLengthBytes,
                static_cast<uint32_t>(length));
}

absl::Status StateEncoder::status() const {
  switch (failure_) {
    case Failure::kNone:
      break;
    case Failure::kNoMemory:
      return Error(absl::StatusCode::kResourceExhausted,
                   "no memory to encode more than {} bytes", out_->size());
    case Failure::kTooLong:
      return Error(absl::StatusCode::kResourceExhausted,
                   "field {} is too long, must be at most {} bytes", failed_id_,
                   kMaxFieldBytes);
    case Failure::kBadId:
      return Error(absl::StatusCode::kInternal,
                   "field id is {}, must be 1 to {}", failed_id_, kMaxFieldId);
    case Failure::kTooDeep:
      return Error(absl::StatusCode::kInternal,
                   "field {} is nested deeper than {} messages", failed_id_,
                   kMaxDepth);
  }
  if (depth_ != 0) {
    return Error(absl::StatusCode::kInternal, "{} messages are still open",
                 depth_);
  }
  return absl::OkStatus();
}

}  // namespace catnap::state
