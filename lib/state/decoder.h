#ifndef CATNAP_LIB_STATE_DECODER_H_
#define CATNAP_LIB_STATE_DECODER_H_

#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "state/wire.h"

namespace catnap::state {

// Walks over the fields that a StateEncoder wrote. The bytes may be hostile.
//
//   while (in.Next()) {
//     switch (in.id()) {
//       case kDivisor: divisor = in.U16(); break;
//       case kFifo:    fifo = in.Bytes(16); break;
//       case kQueue:   CATNAP_RETURN_IF_ERROR(ReadQueue(in.Message())); break;
//     }  // Other ids are from a newer writer, and are skipped.
//   }
//   CATNAP_RETURN_IF_ERROR(in.status());
//
// A field that is missing leaves the reader's default; of a field that comes
// twice the reader sees both, so the last one stands, or they are a list.
//
// After the first error Next() is false, values are 0 or empty, and status()
// keeps it; so one check at the end is enough, before the values are used.
// Allocates nothing (but the text of an error), throws nothing, and views into
// the input are all it hands out: they live as long as the input. What it
// costs is linear in the input. Thread-compatible.
class StateDecoder {
 public:
  // Borrows `bytes`, which must not change meanwhile: copy what a guest can
  // still write to.
  explicit StateDecoder(std::span<const uint8_t> bytes)
      : StateDecoder(bytes, 0) {}

  // Goes to the next field. False at the end, and after an error.
  bool Next();

  // Of the field that Next() went to.
  uint32_t id() const { return id_; }
  WireType type() const { return type_; }

  // Integers, however they were written. One that does not fit is an error.
  uint8_t U8() { return static_cast<uint8_t>(Integer(UINT8_MAX)); }
  uint16_t U16() { return static_cast<uint16_t>(Integer(UINT16_MAX)); }
  uint32_t U32() { return static_cast<uint32_t>(Integer(UINT32_MAX)); }
  uint64_t U64() { return Integer(UINT64_MAX); }
  bool Bool() { return Integer(1) != 0; }
  // What StateEncoder::Signed() wrote.
  int64_t Signed();

  // Byte strings. One of more than `max` bytes is an error.
  std::span<const uint8_t> Bytes(size_t max = kMaxFieldBytes);
  std::string_view Text(size_t max = kMaxFieldBytes);
  // Copies a byte string that must be exactly as long as `into`; on an error
  // `into` stays as it is.
  void CopyBytes(std::span<uint8_t> into);

  // The fields of a nested message, with a status() of their own. After an
  // error here it is empty.
  StateDecoder Message();

  // Errors: DATA_LOSS, naming the field and its place.
  absl::Status status() const;
  // status().ok(), for programs that do not link the statuses' text.
  bool ok() const { return error_ == nullptr; }

 private:
  StateDecoder(std::span<const uint8_t> bytes, int depth)
      : bytes_(bytes), depth_(depth) {}

  uint64_t Integer(uint64_t max);
  // Each reads at next_ and goes behind it; false after an error.
  bool ReadVarint(uint64_t* value);
  bool ReadFixed(size_t size);
  bool ReadSpan(uint64_t length);
  // Always false.
  bool Fail(const char* what);

  std::span<const uint8_t> bytes_;
  size_t next_ = 0;   // Where the next field starts.
  size_t start_ = 0;  // Where this one does.
  int depth_ = 0;
  uint32_t id_ = 0;  // 0: at no field.
  WireType type_ = WireType::kVarint;
  uint64_t integer_ = 0;           // Of this field, when it is one.
  std::span<const uint8_t> span_;  // Of this field, when it is no integer.
  const char* error_ = nullptr;    // Static text.
};

}  // namespace catnap::state

#endif  // CATNAP_LIB_STATE_DECODER_H_
