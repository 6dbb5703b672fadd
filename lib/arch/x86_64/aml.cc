#include "arch/x86_64/aml.h"

#include <array>
#include <cassert>
#include <cstddef>

namespace catnap::arch::aml {
namespace {

// Opcodes: ACPI 6.4, 20.3.
constexpr uint8_t kZeroOp = 0x00;
constexpr uint8_t kOneOp = 0x01;
constexpr uint8_t kNameOp = 0x08;
constexpr uint8_t kBytePrefix = 0x0a;
constexpr uint8_t kWordPrefix = 0x0b;
constexpr uint8_t kDWordPrefix = 0x0c;
constexpr uint8_t kStringPrefix = 0x0d;
constexpr uint8_t kQWordPrefix = 0x0e;
constexpr uint8_t kScopeOp = 0x10;
constexpr uint8_t kBufferOp = 0x11;
constexpr uint8_t kPackageOp = 0x12;
constexpr uint8_t kMethodOp = 0x14;
constexpr uint8_t kExtOpPrefix = 0x5b;
constexpr uint8_t kRootChar = 0x5c;
constexpr uint8_t kLocal0Op = 0x60;
constexpr uint8_t kArg0Op = 0x68;
constexpr uint8_t kStoreOp = 0x70;
constexpr uint8_t kAndOp = 0x7b;
constexpr uint8_t kNotifyOp = 0x86;
constexpr uint8_t kLEqualOp = 0x93;
constexpr uint8_t kIfOp = 0xa0;
// Behind kExtOpPrefix.
constexpr uint8_t kExtRegionOp = 0x80;
constexpr uint8_t kExtFieldOp = 0x81;
constexpr uint8_t kExtDeviceOp = 0x82;

constexpr uint8_t kSerialized = 1u << 3;  // MethodFlags
constexpr uint8_t kSystemIo = 0x01;       // RegionSpace
// FieldFlags: DWordAcc, NoLock, WriteAsZeros.
constexpr uint8_t kFieldFlags = 0x03 | (2u << 5);

void Append(Bytes& to, const Bytes& from) {
  to.insert(to.end(), from.begin(), from.end());
}

void AppendLe(Bytes& to, uint64_t value, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) {
    to.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
}

// PkgLength (20.2.4) counts itself: one to four bytes, of which the first
// holds how many follow in its top two bits, and six or four bits of length.
void AppendPackageLength(Bytes& to, size_t body) {
  if (body + 1 < 0x40) {
    to.push_back(static_cast<uint8_t>(body + 1));
    return;
  }
  size_t extra = 1;
  while ((body + 1 + extra) >> (4 + 8 * extra) != 0) ++extra;
  assert(extra <= 3);
  const size_t length = body + 1 + extra;
  to.push_back(static_cast<uint8_t>((extra << 6) | (length & 0xf)));
  AppendLe(to, length >> 4, extra);
}

Bytes WithLength(std::initializer_list<uint8_t> opcode, const Bytes& body) {
  Bytes out(opcode);
  AppendPackageLength(out, body.size());
  Append(out, body);
  return out;
}

Bytes WithLength(std::initializer_list<uint8_t> opcode, Bytes head,
                 std::initializer_list<Bytes> terms) {
  for (const Bytes& term : terms) Append(head, term);
  return WithLength(opcode, head);
}

}  // namespace

Bytes Join(std::initializer_list<Bytes> terms) {
  Bytes out;
  for (const Bytes& term : terms) Append(out, term);
  return out;
}

Bytes Integer(uint64_t value) {
  if (value == 0) return {kZeroOp};
  if (value == 1) return {kOneOp};
  Bytes out;
  if (value <= 0xff) {
    out.push_back(kBytePrefix);
    AppendLe(out, value, 1);
  } else if (value <= 0xffff) {
    out.push_back(kWordPrefix);
    AppendLe(out, value, 2);
  } else if (value <= 0xffff'ffff) {
    out.push_back(kDWordPrefix);
    AppendLe(out, value, 4);
  } else {
    out.push_back(kQWordPrefix);
    AppendLe(out, value, 8);
  }
  return out;
}

Bytes String(std::string_view text) {
  Bytes out{kStringPrefix};
  out.insert(out.end(), text.begin(), text.end());
  out.push_back(0);
  return out;
}

Bytes EisaId(std::string_view id) {
  assert(id.size() == 7);
  uint32_t value = 0;
  for (size_t i = 0; i < 3; ++i) {
    assert(id[i] >= 'A' && id[i] <= 'Z');
    value = (value << 5) | static_cast<uint32_t>(id[i] - 'A' + 1);
  }
  for (size_t i = 3; i < 7; ++i) {
    const char c = id[i];
    assert((c >= '0' && c <= '9') || (c >= 'A' && c <= 'F'));
    value =
        (value << 4) | static_cast<uint32_t>(c <= '9' ? c - '0' : c - 'A' + 10);
  }
  // The id is big-endian (19.3.4), AML integers are little-endian.
  return Integer(__builtin_bswap32(value));
}

Bytes Package(std::initializer_list<Bytes> elements) {
  return WithLength({kPackageOp}, {static_cast<uint8_t>(elements.size())},
                    elements);
}

Bytes NamePath(std::string_view path) {
  Bytes out;
  if (!path.empty() && path.front() == '\\') {
    out.push_back(kRootChar);
    path.remove_prefix(1);
  }
  assert(!path.empty() && path.size() <= 4);
  out.insert(out.end(), path.begin(), path.end());
  out.insert(out.end(), 4 - path.size(), '_');
  return out;
}

Bytes Name(std::string_view name, const Bytes& value) {
  return Join({{kNameOp}, NamePath(name), value});
}

Bytes Scope(std::string_view path, std::initializer_list<Bytes> terms) {
  return WithLength({kScopeOp}, NamePath(path), terms);
}

Bytes Device(std::string_view name, std::initializer_list<Bytes> terms) {
  return WithLength({kExtOpPrefix, kExtDeviceOp}, NamePath(name), terms);
}

Bytes SerializedMethod(std::string_view name, uint8_t arguments,
                       std::initializer_list<Bytes> terms) {
  assert(arguments <= 7);
  Bytes head = NamePath(name);
  head.push_back(static_cast<uint8_t>(arguments | kSerialized));
  return WithLength({kMethodOp}, head, terms);
}

Bytes PortRegister32(std::string_view region, std::string_view field,
                     uint16_t port) {
  Bytes fields = NamePath(region);
  fields.push_back(kFieldFlags);
  Append(fields, NamePath(field));
  // A field's width in bits is encoded as a PkgLength, without itself.
  fields.push_back(32);
  return Join({{kExtOpPrefix, kExtRegionOp},
               NamePath(region),
               {kSystemIo},
               Integer(port),
               Integer(4),
               WithLength({kExtOpPrefix, kExtFieldOp}, fields)});
}

Bytes Argument(uint8_t index) {
  assert(index <= 6);
  return {static_cast<uint8_t>(kArg0Op + index)};
}

Bytes Local(uint8_t index) {
  assert(index <= 7);
  return {static_cast<uint8_t>(kLocal0Op + index)};
}

Bytes Store(const Bytes& value, const Bytes& target) {
  return Join({{kStoreOp}, value, target});
}

Bytes Equal(const Bytes& a, const Bytes& b) {
  return Join({{kLEqualOp}, a, b});
}

Bytes BitAnd(const Bytes& a, const Bytes& b) {
  // The third operand is where to store the result: nowhere.
  return Join({{kAndOp}, a, b, {kZeroOp}});
}

Bytes If(const Bytes& condition, std::initializer_list<Bytes> terms) {
  return WithLength({kIfOp}, condition, terms);
}

Bytes Notify(const Bytes& object, uint64_t value) {
  return Join({{kNotifyOp}, object, Integer(value)});
}

Bytes ResourceTemplate(std::initializer_list<Bytes> descriptors) {
  // The end tag's checksum may be 0: "treat as if it were right" (6.4.2.9).
  static constexpr std::array<uint8_t, 2> kEndTag{0x79, 0x00};
  Bytes data = Join(descriptors);
  data.insert(data.end(), kEndTag.begin(), kEndTag.end());
  return WithLength({kBufferOp}, Join({Integer(data.size()), data}));
}

Bytes IoPorts(uint16_t base, uint8_t count) {
  static constexpr uint8_t kDecode16 = 1;
  Bytes out{0x47, kDecode16};
  AppendLe(out, base, 2);  // Lowest and highest base.
  AppendLe(out, base, 2);
  out.push_back(1);  // Alignment.
  out.push_back(count);
  return out;
}

Bytes Memory32Fixed(uint32_t base, uint32_t size) {
  static constexpr uint8_t kReadWrite = 1;
  Bytes out{0x86, 9, 0, kReadWrite};
  AppendLe(out, base, 4);
  AppendLe(out, size, 4);
  return out;
}

Bytes EdgeInterrupt(uint32_t gsi) {
  static constexpr uint8_t kConsumer = 1u << 0;
  static constexpr uint8_t kEdge = 1u << 1;
  Bytes out{0x89, 6, 0, kConsumer | kEdge, 1};
  AppendLe(out, gsi, 4);
  return out;
}

}  // namespace catnap::arch::aml
