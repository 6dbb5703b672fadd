#include "support/acpi_parser.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/byte_order.h"
#include "base/checked.h"
#include "base/status.h"

namespace catnap::testing {
namespace {

using Span = std::span<const uint8_t>;

constexpr size_t kHeaderBytes = 36;

template <typename... Args>
absl::Status Bad(fmt::format_string<Args...> format, Args&&... args) {
  return Error(absl::StatusCode::kDataLoss, format,
               std::forward<Args>(args)...);
}

uint8_t Sum(Span bytes) {
  return static_cast<uint8_t>(std::accumulate(bytes.begin(), bytes.end(), 0u));
}

std::string Text(Span bytes) { return {bytes.begin(), bytes.end()}; }

class TableFinder {
 public:
  TableFinder(Span image, uint64_t base) : image_(image), base_(base) {}

  absl::Status Run() {
    CATNAP_ASSIGN_OR_RETURN(const Span rsdp, At(base_, 36));
    if (Text(rsdp.first(8)) != "RSD PTR " || rsdp[15] != 2 ||
        base::LoadLe<uint32_t>(&rsdp[20]) != 36) {
      return Bad("RSDP signature, revision or length");
    }
    if (Sum(rsdp.first(20)) != 0 || Sum(rsdp) != 0) {
      return Bad("RSDP checksums {} and {}", Sum(rsdp.first(20)), Sum(rsdp));
    }
    CATNAP_RETURN_IF_ERROR(Add({"RSDP", base_, rsdp}));
    CATNAP_ASSIGN_OR_RETURN(const Span xsdt,
                            AddTable(base::LoadLe<uint64_t>(&rsdp[24])));
    if (Text(xsdt.first(4)) != "XSDT" || (xsdt.size() - kHeaderBytes) % 8) {
      return Bad("XSDT signature or length {}", xsdt.size());
    }
    for (size_t at = kHeaderBytes; at < xsdt.size(); at += 8) {
      CATNAP_ASSIGN_OR_RETURN(const Span table,
                              AddTable(base::LoadLe<uint64_t>(&xsdt[at])));
      if (Text(table.first(4)) != "FACP") continue;
      if (table.size() != 276) return Bad("FADT of {} bytes", table.size());
      const auto dsdt = base::LoadLe<uint64_t>(&table[140]);
      if (base::LoadLe<uint32_t>(&table[40]) != dsdt) {
        return Bad("FADT: DSDT and X_DSDT differ");
      }
      CATNAP_RETURN_IF_ERROR(AddTable(dsdt).status());
    }
    return absl::OkStatus();
  }

  std::vector<ParsedTable> Take() { return std::move(tables_); }

 private:
  absl::StatusOr<Span> At(uint64_t address, uint64_t size) {
    if (address < base_ ||
        !base::InRange<uint64_t>(address - base_, size, image_.size())) {
      return Bad("{} bytes at {:#x} are not in the image", size, address);
    }
    return image_.subspan(address - base_, size);
  }

  absl::StatusOr<Span> AddTable(uint64_t address) {
    CATNAP_ASSIGN_OR_RETURN(const Span header, At(address, kHeaderBytes));
    const auto size = base::LoadLe<uint32_t>(&header[4]);
    if (size < kHeaderBytes) return Bad("table of {} bytes", size);
    CATNAP_ASSIGN_OR_RETURN(const Span table, At(address, size));
    if (Sum(table) != 0) return Bad("checksum at {:#x}", address);
    CATNAP_RETURN_IF_ERROR(Add({Text(table.first(4)), address, table}));
    return table;
  }

  absl::Status Add(ParsedTable table) {
    for (const ParsedTable& other : tables_) {
      if (table.address < other.address + other.bytes.size() &&
          other.address < table.address + table.bytes.size()) {
        return Bad("{} overlaps {}", table.signature, other.signature);
      }
    }
    tables_.push_back(std::move(table));
    return absl::OkStatus();
  }

  const Span image_;
  const uint64_t base_;
  std::vector<ParsedTable> tables_;
};

// A cursor over AML. Each Take call checks that the bytes are there.
class AmlCursor {
 public:
  explicit AmlCursor(Span bytes) : bytes_(bytes) {}

  bool empty() const { return bytes_.empty(); }

  absl::StatusOr<Span> Take(size_t size) {
    if (size > bytes_.size()) {
      return Bad("AML wants {} bytes, {} are left", size, bytes_.size());
    }
    const Span taken = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return taken;
  }

  absl::StatusOr<uint8_t> TakeByte() {
    CATNAP_ASSIGN_OR_RETURN(const Span byte, Take(1));
    return byte[0];
  }

  // A PkgLength and the bytes that it covers.
  absl::StatusOr<AmlCursor> TakePackage() {
    CATNAP_ASSIGN_OR_RETURN(const uint8_t lead, TakeByte());
    const size_t extra = lead >> 6;
    size_t length = extra == 0 ? lead & 0x3f : lead & 0xf;
    CATNAP_ASSIGN_OR_RETURN(const Span more, Take(extra));
    for (size_t i = 0; i < extra; ++i) {
      length |= size_t{more[i]} << (4 + 8 * i);
    }
    if (length < 1 + extra) return Bad("PkgLength {}", length);
    CATNAP_ASSIGN_OR_RETURN(const Span body, Take(length - 1 - extra));
    return AmlCursor(body);
  }

  // One name segment, without the root character before it.
  absl::StatusOr<std::string> TakeName() {
    if (!bytes_.empty() && bytes_[0] == '\\') bytes_ = bytes_.subspan(1);
    CATNAP_ASSIGN_OR_RETURN(const Span name, Take(4));
    for (size_t i = 0; i < name.size(); ++i) {
      const uint8_t c = name[i];
      const bool digit = c >= '0' && c <= '9';
      if (!((c >= 'A' && c <= 'Z') || c == '_' || (digit && i > 0))) {
        return Bad("name with {:#x}", c);
      }
    }
    return Text(name);
  }

  // An integer, a string, a buffer or a package: its bytes.
  absl::StatusOr<Span> TakeData() {
    const Span before = bytes_;
    CATNAP_ASSIGN_OR_RETURN(const uint8_t op, TakeByte());
    switch (op) {
      case 0x00:
      case 0x01:
        break;
      case 0x0a:
        CATNAP_RETURN_IF_ERROR(Take(1).status());
        break;
      case 0x0b:
        CATNAP_RETURN_IF_ERROR(Take(2).status());
        break;
      case 0x0c:
        CATNAP_RETURN_IF_ERROR(Take(4).status());
        break;
      case 0x0e:
        CATNAP_RETURN_IF_ERROR(Take(8).status());
        break;
      case 0x0d: {
        const auto end = std::find(bytes_.begin(), bytes_.end(), 0);
        if (end == bytes_.end()) return Bad("string without an end");
        bytes_ = bytes_.subspan(static_cast<size_t>(end - bytes_.begin()) + 1);
        break;
      }
      case 0x11:
      case 0x12:
        CATNAP_RETURN_IF_ERROR(TakePackage().status());
        break;
      default:
        return Bad("data object {:#x}", op);
    }
    return before.first(before.size() - bytes_.size());
  }

  Span rest() const { return bytes_; }

 private:
  Span bytes_;
};

class AmlWalker {
 public:
  // Depth is bounded by the AML's own: each level takes bytes of its parent.
  absl::Status Walk(AmlCursor cursor, const std::string& prefix) {
    while (!cursor.empty()) {
      CATNAP_RETURN_IF_ERROR(Term(cursor, prefix));
    }
    return absl::OkStatus();
  }

  AmlNamespace Take() { return std::move(names_); }

 private:
  absl::Status Term(AmlCursor& cursor, const std::string& prefix) {
    CATNAP_ASSIGN_OR_RETURN(uint8_t op, cursor.TakeByte());
    switch (op) {
      case 0x08: {  // Name
        CATNAP_ASSIGN_OR_RETURN(const std::string name, cursor.TakeName());
        CATNAP_ASSIGN_OR_RETURN(const Span value, cursor.TakeData());
        return Add(prefix + name, value);
      }
      case 0x10:  // Scope
        return Container(cursor, prefix);
      case 0x14: {  // Method
        CATNAP_ASSIGN_OR_RETURN(AmlCursor body, cursor.TakePackage());
        CATNAP_ASSIGN_OR_RETURN(const std::string name, body.TakeName());
        return Add(prefix + name, body.rest());
      }
      case 0x5b:
        break;
      default:
        return Bad("term {:#x}", op);
    }
    CATNAP_ASSIGN_OR_RETURN(op, cursor.TakeByte());
    switch (op) {
      case 0x80: {  // OperationRegion
        CATNAP_ASSIGN_OR_RETURN(const std::string name, cursor.TakeName());
        CATNAP_RETURN_IF_ERROR(cursor.TakeByte().status());
        CATNAP_ASSIGN_OR_RETURN(const Span offset, cursor.TakeData());
        CATNAP_RETURN_IF_ERROR(cursor.TakeData().status());
        return Add(prefix + name, offset);
      }
      case 0x81: {  // Field
        CATNAP_ASSIGN_OR_RETURN(AmlCursor body, cursor.TakePackage());
        CATNAP_RETURN_IF_ERROR(body.TakeName().status());
        CATNAP_RETURN_IF_ERROR(body.TakeByte().status());
        CATNAP_ASSIGN_OR_RETURN(const std::string name, body.TakeName());
        return Add(prefix + name, body.rest());
      }
      case 0x82:  // Device
        return Container(cursor, prefix);
      default:
        return Bad("extended term {:#x}", op);
    }
  }

  absl::Status Container(AmlCursor& cursor, const std::string& prefix) {
    CATNAP_ASSIGN_OR_RETURN(AmlCursor body, cursor.TakePackage());
    CATNAP_ASSIGN_OR_RETURN(const std::string name, body.TakeName());
    CATNAP_RETURN_IF_ERROR(Add(prefix + name, body.rest()));
    return Walk(body, prefix + name + ".");
  }

  absl::Status Add(const std::string& path, Span value) {
    if (!names_.emplace(path, std::vector(value.begin(), value.end())).second) {
      return Bad("{} is there twice", path);
    }
    return absl::OkStatus();
  }

  AmlNamespace names_;
};

}  // namespace

absl::StatusOr<std::vector<ParsedTable>> ParseAcpi(
    std::span<const uint8_t> image, uint64_t base) {
  TableFinder finder(image, base);
  CATNAP_RETURN_IF_ERROR(finder.Run());
  return finder.Take();
}

std::span<const uint8_t> FindTable(const std::vector<ParsedTable>& tables,
                                   const std::string& signature) {
  for (const ParsedTable& table : tables) {
    if (table.signature == signature) return table.bytes;
  }
  return {};
}

absl::StatusOr<AmlNamespace> ParseDsdt(std::span<const uint8_t> dsdt) {
  if (dsdt.size() < kHeaderBytes) return Bad("DSDT of {} bytes", dsdt.size());
  AmlWalker walker;
  CATNAP_RETURN_IF_ERROR(
      walker.Walk(AmlCursor(dsdt.subspan(kHeaderBytes)), ""));
  return walker.Take();
}

}  // namespace catnap::testing
