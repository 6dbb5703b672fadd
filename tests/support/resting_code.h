#ifndef CATNAP_TESTS_SUPPORT_RESTING_CODE_H_
#define CATNAP_TESTS_SUPPORT_RESTING_CODE_H_

#include <cstdint>

#include "support/tiny_guest.h"

// Code of a guest that halts and is woken by the first device's interrupt.
namespace catnap::test {

// Adds one to the 32 bits at `counter` and goes back.
void AppendInterruptHandler(Assembler* code, uint64_t counter);

// Leads that interrupt to `handler`, sets `counter` to 1 and halts for ever.
// Uses the 16 KiB of memory at `tables`.
void AppendRest(Assembler* code, uint64_t handler, uint64_t counter,
                uint32_t tables);

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_RESTING_CODE_H_
