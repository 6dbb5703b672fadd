#ifndef CATNAP_TESTS_SUPPORT_TINY_GUEST_H_
#define CATNAP_TESTS_SUPPORT_TINY_GUEST_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "arch/x86_64/initial_state.h"
#include "base/unique_fd.h"

namespace catnap::test {

// Guests of a few instructions in 64-bit mode at CPL 0. They run on any KVM,
// also one that cannot run Linux.

// Writes machine code, an instruction a call. Only what the tests need.
class Assembler {
 public:
  // Where the next instruction goes, for Jump().
  uint64_t here() const;

  Assembler& MovEax(uint32_t value);
  Assembler& MovEcx(uint32_t value);
  Assembler& MovEdx(uint32_t value);
  Assembler& MovRdi(uint64_t value);
  Assembler& MovRsi(uint64_t value);
  Assembler& OutAl();       // out dx, al
  Assembler& OutAx();       // out dx, ax
  Assembler& OutEax();      // out dx, eax
  Assembler& InEax();       // in eax, dx
  Assembler& Store32();     // mov [rdi], eax
  Assembler& Load32();      // mov eax, [rdi]
  Assembler& StoreRsi32();  // mov [rsi], eax
  Assembler& IncEax();
  Assembler& CompareEax(uint32_t value);
  Assembler& JumpIfNotEqual(uint64_t target);
  Assembler& DecEcxJumpIfNotZero(uint64_t target);
  Assembler& Jump(uint64_t target);
  Assembler& Cli();
  Assembler& Halt();
  Assembler& LoadEmptyIdtAndFault();  // triple fault
  Assembler& Bytes(std::initializer_list<uint8_t> bytes);
  // Ends the machine: power off, or reset.
  Assembler& PowerOff();
  Assembler& Reset();

  const std::vector<uint8_t>& code() const { return code_; }

 private:
  Assembler& Imm32(uint32_t value);
  Assembler& Rel32(uint64_t target);
  std::vector<uint8_t> code_;
};

struct TinyGuest {
  base::UniqueFd memfd;  // Sealed; the guest's memory.
  arch::InitialState state;
};

inline constexpr uint64_t kTinyCode = 0x10'0000;

// A template of `memory_bytes` with `code` at kTinyCode and page tables that
// map the first 8 GiB one to one. Only touched pages take memory.
absl::StatusOr<TinyGuest> MakeTinyGuest(const Assembler& code,
                                        uint64_t memory_bytes);

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_TINY_GUEST_H_
