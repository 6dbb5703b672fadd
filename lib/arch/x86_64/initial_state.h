#ifndef CATNAP_LIB_ARCH_X86_64_INITIAL_STATE_H_
#define CATNAP_LIB_ARCH_X86_64_INITIAL_STATE_H_

#include <cstdint>

namespace catnap::arch {

// Where the first vCPU starts: 64-bit mode, paging on, interrupts off, as the
// Linux 64-bit boot protocol asks (Documentation/arch/x86/boot.rst).
struct InitialState {
  uint64_t rip = 0;
  uint64_t rsi = 0;  // The zero page.
  uint64_t rsp = 0;
  uint64_t cr3 = 0;       // Page tables that map `rip` one to one.
  uint64_t gdt_base = 0;  // Flat segments at the two selectors below.
  uint16_t gdt_limit = 0;
  uint16_t code_selector = 0x10;  // __BOOT_CS
  uint16_t data_selector = 0x18;  // __BOOT_DS
};

}  // namespace catnap::arch

#endif  // CATNAP_LIB_ARCH_X86_64_INITIAL_STATE_H_
