#include <vector>

#include "fuzz/fuzz_target.h"
#include "state/decoder.h"
#include "state/encoder.h"

// Any bytes. Values have one form each, so what can be read in full must come
// out byte for byte when it is written again.

namespace catnap::state {
namespace {

// Returns whether all of it could be read.
bool Copy(StateDecoder* in, StateEncoder* out);

bool CopyField(StateDecoder* in, StateEncoder* out) {
  FUZZ_CHECK(in->type() <= WireType::kMessage);
  switch (in->type()) {
    case WireType::kVarint:
      // Signed and unsigned readers see the same bytes.
      FUZZ_CHECK((in->Signed() < 0) == ((in->U64() & 1) != 0));
      out->Unsigned(in->id(), in->U64());
      return true;
    case WireType::kFixed32:
      out->Fixed32(in->id(), in->U32());
      return true;
    case WireType::kFixed64:
      out->Fixed64(in->id(), in->U64());
      return true;
    case WireType::kBytes:
      FUZZ_CHECK(in->Text().size() == in->Bytes().size());
      out->Bytes(in->id(), in->Bytes());
      return true;
    case WireType::kMessage: {
      StateDecoder nested = in->Message();
      if (!in->status().ok()) return false;  // Too deep.
      const auto scope = out->Message(in->id());
      return Copy(&nested, out);
    }
  }
  return false;
}

bool Copy(StateDecoder* in, StateEncoder* out) {
  bool ok = true;
  while (in->Next()) ok = CopyField(in, out) && ok;
  return ok && in->status().ok();
}

// Every getter on every field, whatever its type: the first that does not fit
// ends the walk.
void ReadWildly(StateDecoder in, int which) {
  uint8_t into[6] = {};
  while (in.Next()) {
    switch ((in.id() + static_cast<uint32_t>(which)) % 8) {
      case 0:
        in.U8();
        break;
      case 1:
        in.U16();
        break;
      case 2:
        in.Bool();
        break;
      case 3:
        in.Signed();
        break;
      case 4:
        FUZZ_CHECK(in.Bytes(9).size() <= 9);
        break;
      case 5:
        in.CopyBytes(into);
        break;
      case 6:
        ReadWildly(in.Message(), which + 1);
        break;
      default:
        break;
    }
  }
  if (!in.status().ok()) {
    FUZZ_CHECK(in.U64() == 0 && in.Bytes().empty() && !in.Message().Next());
  }
}

}  // namespace
}  // namespace catnap::state

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using catnap::state::StateDecoder;
  const std::span<const uint8_t> bytes(data, size);
  std::vector<uint8_t> again;
  catnap::state::StateEncoder out(&again);
  StateDecoder in(bytes);
  const bool read_all = catnap::state::Copy(&in, &out);
  FUZZ_CHECK(out.status().ok());
  if (read_all) {
    FUZZ_CHECK(std::vector<uint8_t>(bytes.begin(), bytes.end()) == again);
  }
  for (int which = 0; which < 8; ++which) {
    catnap::state::ReadWildly(StateDecoder(bytes), which);
  }
  return 0;
}
