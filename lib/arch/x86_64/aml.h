#ifndef CATNAP_LIB_ARCH_X86_64_AML_H_
#define CATNAP_LIB_ARCH_X86_64_AML_H_

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

// ACPI Machine Language, as much of it as our DSDT needs: each function
// returns the bytes of one term, and takes the terms inside it in order.
// Section numbers are those of ACPI 6.4.
//
// Thread-safe: pure functions. Names and identifiers come from our own code;
// that they are well formed is asserted.
namespace catnap::arch::aml {

using Bytes = std::vector<uint8_t>;

// The terms one behind the other.
Bytes Join(std::initializer_list<Bytes> terms);

// --- Data (20.2.3) ---
Bytes Integer(uint64_t value);  // In the shortest form.
Bytes String(std::string_view text);
// The compressed form of an id such as "PNP0501": three capital letters, four
// capital hexadecimal digits.
Bytes EisaId(std::string_view id);
Bytes Package(std::initializer_list<Bytes> elements);

// --- Names (20.2.2) ---
// A name of up to four characters, with "\" before it when it starts at the
// root: "\_SB", "COM1".
Bytes NamePath(std::string_view path);

// --- Named objects and scopes (20.2.5) ---
Bytes Name(std::string_view name, const Bytes& value);
Bytes Scope(std::string_view path, std::initializer_list<Bytes> terms);
Bytes Device(std::string_view name, std::initializer_list<Bytes> terms);
Bytes SerializedMethod(std::string_view name, uint8_t arguments,
                       std::initializer_list<Bytes> terms);
// One 32-bit register at an I/O port: an operation region and the field
// `field` that is all of it.
Bytes PortRegister32(std::string_view region, std::string_view field,
                     uint16_t port);

// --- Statements and expressions (20.2.5.3, 20.2.5.4) ---
Bytes Argument(uint8_t index);
Bytes Local(uint8_t index);
Bytes Store(const Bytes& value, const Bytes& target);
Bytes Equal(const Bytes& a, const Bytes& b);
Bytes BitAnd(const Bytes& a, const Bytes& b);
Bytes If(const Bytes& condition, std::initializer_list<Bytes> terms);
Bytes Notify(const Bytes& object, uint64_t value);

// --- Resource descriptors (6.4) ---
// The buffer that a _CRS holds.
Bytes ResourceTemplate(std::initializer_list<Bytes> descriptors);
Bytes IoPorts(uint16_t base, uint8_t count);
Bytes Memory32Fixed(uint32_t base, uint32_t size);  // Read and write.
// An interrupt that is edge-triggered, active high and not shared.
Bytes EdgeInterrupt(uint32_t gsi);

}  // namespace catnap::arch::aml

#endif  // CATNAP_LIB_ARCH_X86_64_AML_H_
