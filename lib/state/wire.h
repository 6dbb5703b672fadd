#ifndef CATNAP_LIB_STATE_WIRE_H_
#define CATNAP_LIB_STATE_WIRE_H_

#include <cstddef>
#include <cstdint>

namespace catnap::state {

// How a field's value is written; FORMAT.md has the bytes.
enum class WireType : uint8_t {
  kVarint = 0,   // An integer, 1 to 10 bytes.
  kFixed32 = 1,  // An integer, 4 bytes.
  kFixed64 = 2,  // An integer, 8 bytes.
  kBytes = 3,    // A length and so many bytes.
  kMessage = 4,  // A length and so many bytes, which are fields again.
};

inline constexpr int kWireTypeBits = 3;
inline constexpr uint32_t kMaxFieldId = 0xffff;  // Ids start at 1.
// Messages inside messages. A decoder that walks them may recurse.
inline constexpr int kMaxDepth = 16;
// Of one byte string or nested message.
inline constexpr size_t kMaxFieldBytes = size_t{1} << 30;
inline constexpr size_t kMessageLengthBytes = 4;
inline constexpr size_t kMaxVarintBytes = 10;

static_assert(static_cast<int>(WireType::kVarint) == 0 &&
                  static_cast<int>(WireType::kFixed32) == 1 &&
                  static_cast<int>(WireType::kFixed64) == 2 &&
                  static_cast<int>(WireType::kBytes) == 3 &&
                  static_cast<int>(WireType::kMessage) == 4 &&
                  kWireTypeBits == 3 && kMessageLengthBytes == 4,
              "on disk and on the wire: read lib/state/FORMAT.md first");
static_assert(kMaxFieldBytes <= UINT32_MAX, "message lengths are 32 bits");

}  // namespace catnap::state

#endif  // CATNAP_LIB_STATE_WIRE_H_
