#include "support/tiny_guest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>

#include "arch/x86_64/layout.h"
#include "base/byte_order.h"
#include "base/status.h"

namespace catnap::test {
namespace {

constexpr uint64_t kPml4 = 0x1'0000;
constexpr uint64_t kPdpt = 0x1'1000;
constexpr uint64_t kDirectories = 0x1'2000;  // Eight, 1 GiB each.
constexpr uint64_t kDirectoryCount = 8;
constexpr uint64_t kPresentWritable = 0x3;
constexpr uint64_t kLargePage = 0x80;

absl::Status WriteAt(int fd, uint64_t offset, const void* data, size_t size) {
  if (::pwrite(fd, data, size, static_cast<off_t>(offset)) !=
      static_cast<ssize_t>(size)) {
    return ErrnoError(errno, "write {} bytes of a template", size);
  }
  return absl::OkStatus();
}

absl::Status WritePageTables(int fd) {
  std::array<uint64_t, 512> table{};
  table[0] = kPdpt | kPresentWritable;
  CATNAP_RETURN_IF_ERROR(WriteAt(fd, kPml4, table.data(), sizeof(table)));
  table.fill(0);
  for (uint64_t i = 0; i < kDirectoryCount; ++i) {
    table[i] = (kDirectories + i * 4096) | kPresentWritable;
  }
  CATNAP_RETURN_IF_ERROR(WriteAt(fd, kPdpt, table.data(), sizeof(table)));
  for (uint64_t i = 0; i < kDirectoryCount; ++i) {
    for (uint64_t j = 0; j < table.size(); ++j) {
      table[j] = (i << 30 | j << 21) | kPresentWritable | kLargePage;
    }
    CATNAP_RETURN_IF_ERROR(
        WriteAt(fd, kDirectories + i * 4096, table.data(), sizeof(table)));
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t Assembler::here() const { return kTinyCode + code_.size(); }

Assembler& Assembler::Bytes(std::initializer_list<uint8_t> bytes) {
  code_.insert(code_.end(), bytes);
  return *this;
}

Assembler& Assembler::Imm32(uint32_t value) {
  for (int i = 0; i < 4; ++i) {
    code_.push_back(static_cast<uint8_t>(value >> (8 * i)));
  }
  return *this;
}

Assembler& Assembler::Rel32(uint64_t target) {
  return Imm32(static_cast<uint32_t>(target - (here() + 4)));
}

Assembler& Assembler::MovEax(uint32_t value) {
  return Bytes({0xb8}).Imm32(value);
}
Assembler& Assembler::MovEcx(uint32_t value) {
  return Bytes({0xb9}).Imm32(value);
}
Assembler& Assembler::MovEdx(uint32_t value) {
  return Bytes({0xba}).Imm32(value);
}
Assembler& Assembler::MovRdi(uint64_t value) {
  return Bytes({0x48, 0xbf})
      .Imm32(static_cast<uint32_t>(value))
      .Imm32(static_cast<uint32_t>(value >> 32));
}
Assembler& Assembler::MovRsi(uint64_t value) {
  return Bytes({0x48, 0xbe})
      .Imm32(static_cast<uint32_t>(value))
      .Imm32(static_cast<uint32_t>(value >> 32));
}
Assembler& Assembler::OutAl() { return Bytes({0xee}); }
Assembler& Assembler::OutAx() { return Bytes({0x66, 0xef}); }
Assembler& Assembler::OutEax() { return Bytes({0xef}); }
Assembler& Assembler::InEax() { return Bytes({0xed}); }
Assembler& Assembler::Store32() { return Bytes({0x89, 0x07}); }
Assembler& Assembler::Load32() { return Bytes({0x8b, 0x07}); }
Assembler& Assembler::StoreRsi32() { return Bytes({0x89, 0x06}); }
Assembler& Assembler::IncEax() { return Bytes({0xff, 0xc0}); }
Assembler& Assembler::CompareEax(uint32_t value) {
  return Bytes({0x3d}).Imm32(value);
}
Assembler& Assembler::JumpIfNotEqual(uint64_t target) {
  return Bytes({0x0f, 0x85}).Rel32(target);
}
Assembler& Assembler::DecEcxJumpIfNotZero(uint64_t target) {
  return Bytes({0xff, 0xc9, 0x0f, 0x85}).Rel32(target);
}
Assembler& Assembler::Jump(uint64_t target) {
  return Bytes({0xe9}).Rel32(target);
}
Assembler& Assembler::Cli() { return Bytes({0xfa}); }
Assembler& Assembler::Halt() { return Bytes({0xf4}); }
Assembler& Assembler::LoadEmptyIdtAndFault() {
  // The IDT is empty from the start: an undefined instruction is enough.
  return Bytes({0x0f, 0x0b});
}
Assembler& Assembler::PowerOff() {
  return MovEdx(arch::kSleepControlPort)
      .MovEax(arch::kSleepEnable | arch::kSleepTypeS5 << 2)
      .OutAl()
      .Halt();
}
Assembler& Assembler::Reset() {
  return MovEdx(arch::kResetPort).MovEax(arch::kResetValue).OutAl().Halt();
}

absl::StatusOr<TinyGuest> MakeTinyGuest(const Assembler& code,
                                        uint64_t memory_bytes) {
  TinyGuest guest;
  CATNAP_ASSIGN_OR_RETURN(guest.memfd,
                          base::CreateMemFd("tiny-guest", memory_bytes));
  CATNAP_RETURN_IF_ERROR(WritePageTables(guest.memfd.get()));
  CATNAP_RETURN_IF_ERROR(WriteAt(guest.memfd.get(), kTinyCode,
                                 code.code().data(), code.code().size()));
  constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;
  if (::fcntl(guest.memfd.get(), F_ADD_SEALS, kSeals) != 0) {
    return ErrnoError(errno, "seal a template");
  }
  guest.state.rip = kTinyCode;
  guest.state.cr3 = kPml4;
  return guest;
}

}  // namespace catnap::test
