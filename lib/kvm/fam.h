#ifndef CATNAP_LIB_KVM_FAM_H_
#define CATNAP_LIB_KVM_FAM_H_

#include <linux/kvm.h>
#include <sys/ioctl.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

// KVM structures that end in a flexible array.
//
// Some versions of <linux/kvm.h> declare these arrays so that, in C++, the
// structure has another size than in C; the ioctl numbers built from it are
// then wrong and the kernel answers EINVAL or ENOTTY. So the numbers are built
// here from the size in C, and the buffers are laid out by hand: a header of
// that size, then the entries.
namespace catnap::kvm {

using IoctlNumber = unsigned long;  // NOLINT(google-runtime-int): ioctl's type

inline constexpr size_t kCpuidHeaderBytes = 8;    // nent, padding
inline constexpr size_t kMsrsHeaderBytes = 8;     // nmsrs, pad
inline constexpr size_t kMsrListHeaderBytes = 4;  // nmsrs
inline constexpr size_t kRoutingHeaderBytes = 8;  // nr, flags
inline constexpr size_t kSignalHeaderBytes = 4;   // len

inline constexpr IoctlNumber kGetSupportedCpuid =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, kCpuidHeaderBytes);
inline constexpr IoctlNumber kGetCpuid2 =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x91, kCpuidHeaderBytes);
inline constexpr IoctlNumber kSetCpuid2 =
    _IOC(_IOC_WRITE, KVMIO, 0x90, kCpuidHeaderBytes);
inline constexpr IoctlNumber kGetMsrs =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x88, kMsrsHeaderBytes);
inline constexpr IoctlNumber kSetMsrs =
    _IOC(_IOC_WRITE, KVMIO, 0x89, kMsrsHeaderBytes);
inline constexpr IoctlNumber kGetMsrIndexList =
    _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x02, kMsrListHeaderBytes);
inline constexpr IoctlNumber kSetGsiRouting =
    _IOC(_IOC_WRITE, KVMIO, 0x6a, kRoutingHeaderBytes);
inline constexpr IoctlNumber kSetSignalMask =
    _IOC(_IOC_WRITE, KVMIO, 0x8b, kSignalHeaderBytes);
// struct kvm_xsave ends in a flexible array too; what the kernel copies may be
// more than the number says.
inline constexpr size_t kMinXsaveBytes = 4096;
inline constexpr IoctlNumber kGetXsave =
    _IOC(_IOC_READ, KVMIO, 0xa4, kMinXsaveBytes);
inline constexpr IoctlNumber kSetXsave =
    _IOC(_IOC_WRITE, KVMIO, 0xa5, kMinXsaveBytes);
inline constexpr IoctlNumber kGetXsave2 =
    _IOC(_IOC_READ, KVMIO, 0xcf, kMinXsaveBytes);

// The kernel's ABI as of Linux 2.6.36 and later; it cannot change.
static_assert(kGetSupportedCpuid == 0xc008ae05 && kGetCpuid2 == 0xc008ae91 &&
                  kSetCpuid2 == 0x4008ae90 && kGetXsave == 0x9000aea4 &&
                  kSetXsave == 0x5000aea5 && kGetXsave2 == 0x9000aecf &&
                  kGetMsrs == 0xc008ae88 && kSetMsrs == 0x4008ae89 &&
                  kGetMsrIndexList == 0xc004ae02 &&
                  kSetGsiRouting == 0x4008ae6a && kSetSignalMask == 0x4004ae8b,
              "KVM ioctl numbers");
static_assert(sizeof(kvm_cpuid_entry2) == 40 && sizeof(kvm_msr_entry) == 16 &&
                  sizeof(kvm_irq_routing_entry) == 48,
              "KVM entry sizes");

// A header whose first word counts the entries behind it, as one buffer.
template <typename Entry, size_t kHeaderBytes>
class FamBuffer {
  static_assert(std::is_trivially_copyable_v<Entry>);

 public:
  explicit FamBuffer(const std::vector<Entry>& entries)
      : FamBuffer(entries.size()) {
    if (!entries.empty()) {
      std::memcpy(bytes() + kHeaderBytes, entries.data(),
                  entries.size() * sizeof(Entry));
    }
  }
  // Room for `capacity` zeroed entries.
  explicit FamBuffer(size_t capacity)
      : capacity_(capacity),
        words_((kHeaderBytes + capacity * sizeof(Entry) + 7) / 8) {
    const auto count = static_cast<uint32_t>(capacity);
    std::memcpy(words_.data(), &count, sizeof(count));
  }

  void* data() { return words_.data(); }
  // The entries as the kernel left them; never more than the capacity.
  std::vector<Entry> Entries() const {
    uint32_t count = 0;
    std::memcpy(&count, words_.data(), sizeof(count));
    std::vector<Entry> entries(count < capacity_ ? count : capacity_);
    if (!entries.empty()) {
      std::memcpy(
          entries.data(),
          reinterpret_cast<const uint8_t*>(words_.data()) + kHeaderBytes,
          entries.size() * sizeof(Entry));
    }
    return entries;
  }

 private:
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(words_.data()); }

  size_t capacity_;
  std::vector<uint64_t> words_;  // Aligned for every entry type.
};

using CpuidBuffer = FamBuffer<kvm_cpuid_entry2, kCpuidHeaderBytes>;
using MsrBuffer = FamBuffer<kvm_msr_entry, kMsrsHeaderBytes>;
using MsrListBuffer = FamBuffer<uint32_t, kMsrListHeaderBytes>;
using RoutingBuffer = FamBuffer<kvm_irq_routing_entry, kRoutingHeaderBytes>;

}  // namespace catnap::kvm

#endif  // CATNAP_LIB_KVM_FAM_H_
