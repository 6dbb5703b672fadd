#include "support/virtio_driver.h"

#include <array>
#include <cstdlib>
#include <span>
#include <utility>

#include "base/byte_order.h"

namespace catnap::test {

using virtio::MmioRegister;

namespace {

// Places within a queue's stride: a size of up to 256 fits.
constexpr uint64_t kAvailableOffset = 0x1000;
constexpr uint64_t kUsedOffset = 0x1400;
constexpr uint64_t kIndirectOffset = 0x2000;
constexpr uint64_t kIndirectStride = 0x100;
constexpr uint64_t kIndirectSlots = 32;

// Tests and fuzz targets both use this: a failure here is one of the test.
void Must(bool good) {
  if (!good) std::abort();
}

std::unique_ptr<memory::GuestMemory> MakeRam() {
  auto ram = memory::GuestMemory::Reserve({{{0}, VirtioDriver::kRamBytes, 0}});
  Must(ram.ok());
  Must((*ram)->MapAnonymous().ok());
  return *std::move(ram);
}

}  // namespace

VirtioDriver::VirtioDriver(const Factory& factory) : memory_(MakeRam()) {
  auto pages = device::RegisterPages::Create(1);
  Must(pages.ok());
  pages_.emplace(*std::move(pages));
  device_ = factory(memory_.get());
  virtio::MmioTransport::Hooks hooks;
  hooks.kick_at = [this](auto when) { kick_at_ = when; };
  hooks.on_failure = [this](const absl::Status&) { ++failures_; };
  transport_ = std::make_unique<virtio::MmioTransport>(
      device_.get(), pages_->page(0), &irq_, std::move(hooks));
  rings_.resize(device_->traits().queue_sizes.size());
}

VirtioDriver::VirtioDriver(const Factory& factory, const VirtioDriver& other)
    : VirtioDriver(factory) {
  const auto from = other.memory_->Slice({0}, kRamBytes);
  Must(from.ok() && memory_->Write({0}, *from).ok());
  rings_ = other.rings_;
}

VirtioDriver::~VirtioDriver() { transport_.reset(); }

uint32_t VirtioDriver::Read(MmioRegister which) const {
  std::array<uint8_t, 4> bytes{};
  transport_->Read(static_cast<uint64_t>(which), bytes);
  return base::LoadLe<uint32_t>(bytes.data());
}

void VirtioDriver::Write(MmioRegister which, uint32_t value) {
  std::array<uint8_t, 4> bytes{};
  base::StoreLe(bytes.data(), value);
  transport_->Write(static_cast<uint64_t>(which), bytes);
}

uint64_t VirtioDriver::OfferedFeatures() {
  Write(MmioRegister::kDeviceFeaturesSelect, 1);
  const uint64_t high = Read(MmioRegister::kDeviceFeatures);
  Write(MmioRegister::kDeviceFeaturesSelect, 0);
  return (high << 32) | Read(MmioRegister::kDeviceFeatures);
}

bool VirtioDriver::Negotiate(uint64_t features) {
  Write(MmioRegister::kStatus, virtio::kStatusAcknowledge);
  Write(MmioRegister::kStatus,
        virtio::kStatusAcknowledge | virtio::kStatusDriver);
  Write(MmioRegister::kDriverFeaturesSelect, 0);
  Write(MmioRegister::kDriverFeatures, static_cast<uint32_t>(features));
  Write(MmioRegister::kDriverFeaturesSelect, 1);
  Write(MmioRegister::kDriverFeatures, static_cast<uint32_t>(features >> 32));
  Write(MmioRegister::kStatus, status() | virtio::kStatusFeaturesOk);
  return (status() & virtio::kStatusFeaturesOk) != 0;
}

uint64_t VirtioDriver::descriptors(uint32_t queue) const {
  return kQueueArea + queue * kQueueStride;
}
uint64_t VirtioDriver::available(uint32_t queue) const {
  return descriptors(queue) + kAvailableOffset;
}
uint64_t VirtioDriver::used(uint32_t queue) const {
  return descriptors(queue) + kUsedOffset;
}
uint64_t VirtioDriver::indirect_table(uint32_t queue, uint16_t head) const {
  return descriptors(queue) + kIndirectOffset +
         (head % kIndirectSlots) * kIndirectStride;
}

void VirtioDriver::SetUpQueue(uint32_t index, uint16_t size) {
  rings_[index] = {.size = size};
  const std::vector<uint8_t> zeros(kQueueStride, 0);
  Must(memory_->Write({descriptors(index)}, zeros).ok());
  Write(MmioRegister::kQueueSelect, index);
  Write(MmioRegister::kQueueSize, size);
  Write(MmioRegister::kQueueDescriptorsLow,
        static_cast<uint32_t>(descriptors(index)));
  Write(MmioRegister::kQueueDescriptorsHigh, 0);
  Write(MmioRegister::kQueueDriverLow, static_cast<uint32_t>(available(index)));
  Write(MmioRegister::kQueueDriverHigh, 0);
  Write(MmioRegister::kQueueDeviceLow, static_cast<uint32_t>(used(index)));
  Write(MmioRegister::kQueueDeviceHigh, 0);
  Write(MmioRegister::kQueueReady, 1);
}

void VirtioDriver::DriverOk() {
  Write(MmioRegister::kStatus, status() | virtio::kStatusDriverOk);
}

bool VirtioDriver::Start(uint16_t size, uint64_t without) {
  if (!Negotiate(OfferedFeatures() & ~without)) return false;
  for (uint32_t i = 0; i < rings_.size(); ++i) SetUpQueue(i, size);
  DriverOk();
  return (status() & (virtio::kStatusDriverOk | virtio::kStatusNeedsReset)) ==
         virtio::kStatusDriverOk;
}

void VirtioDriver::Put16(uint64_t gpa, uint16_t value) {
  Must(memory_->Store<uint16_t>({gpa}, value).ok());
}

uint16_t VirtioDriver::Get16(uint64_t gpa) const {
  const auto value = memory_->Load<uint16_t>({gpa});
  Must(value.ok());
  return *value;
}

void VirtioDriver::PutDescriptor(uint64_t gpa, RawDescriptor descriptor) {
  std::array<uint8_t, 16> bytes{};
  base::StoreLe(&bytes[0], descriptor.gpa);
  base::StoreLe(&bytes[8], descriptor.length);
  base::StoreLe(&bytes[12], descriptor.flags);
  base::StoreLe(&bytes[14], descriptor.next);
  Must(memory_->Write({gpa}, bytes).ok());
}

void VirtioDriver::SetDescriptor(uint32_t queue, uint16_t index,
                                 RawDescriptor descriptor) {
  PutDescriptor(descriptors(queue) + uint64_t{16} * index, descriptor);
}

void VirtioDriver::Add(uint32_t queue, uint16_t head,
                       const std::vector<Piece>& pieces, bool indirect) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    const bool last = i + 1 == pieces.size();
    const auto at = static_cast<uint16_t>(indirect ? i : head + i);
    const RawDescriptor descriptor{
        .gpa = pieces[i].gpa,
        .length = pieces[i].length,
        .flags = static_cast<uint16_t>((last ? 0 : kNextFlag) |
                                       (pieces[i].writable ? kWriteFlag : 0)),
        .next = static_cast<uint16_t>(last ? 0 : at + 1)};
    if (indirect) {
      PutDescriptor(indirect_table(queue, head) + 16 * i, descriptor);
    } else {
      SetDescriptor(queue, at, descriptor);
    }
  }
  if (indirect) {
    SetDescriptor(queue, head,
                  {.gpa = indirect_table(queue, head),
                   .length = static_cast<uint32_t>(16 * pieces.size()),
                   .flags = kIndirectFlag});
  }
  MakeAvailable(queue, head);
}

void VirtioDriver::MakeAvailable(uint32_t queue, uint16_t head) {
  Ring& ring = rings_[queue];
  Put16(available(queue) + 4 + uint64_t{2} * (ring.available % ring.size),
        head);
  SetAvailableIndex(queue, static_cast<uint16_t>(ring.available + 1));
}

void VirtioDriver::SetAvailableIndex(uint32_t queue, uint16_t index) {
  rings_[queue].available = index;
  Put16(available(queue) + 2, index);
}

void VirtioDriver::SetAvailableFlags(uint32_t queue, uint16_t flags) {
  Put16(available(queue), flags);
}

void VirtioDriver::SetUsedEvent(uint32_t queue, uint16_t event) {
  Put16(available(queue) + 4 + uint64_t{2} * rings_[queue].size, event);
}

uint16_t VirtioDriver::AvailableEvent(uint32_t queue) const {
  return Get16(used(queue) + 4 + uint64_t{8} * rings_[queue].size);
}

uint16_t VirtioDriver::UsedFlags(uint32_t queue) const {
  return Get16(used(queue));
}

std::vector<UsedBuffer> VirtioDriver::TakeUsed(uint32_t queue) {
  Ring& ring = rings_[queue];
  std::vector<UsedBuffer> result;
  const uint16_t end = Get16(used(queue) + 2);
  for (; ring.used != end; ++ring.used) {
    const uint64_t at = used(queue) + 4 + uint64_t{8} * (ring.used % ring.size);
    const auto head = memory_->Load<uint32_t>({at});
    const auto written = memory_->Load<uint32_t>({at + 4});
    Must(head.ok() && written.ok());
    result.push_back({.head = *head, .written = *written});
  }
  return result;
}

void VirtioDriver::Fill(uint64_t gpa, const std::string& bytes) {
  Must(memory_
           ->Write({gpa},
                   std::span(reinterpret_cast<const uint8_t*>(bytes.data()),
                             bytes.size()))
           .ok());
}

std::string VirtioDriver::Bytes(uint64_t gpa, size_t length) const {
  const auto slice = memory_->Slice({gpa}, length);
  Must(slice.ok());
  return std::string(reinterpret_cast<const char*>(slice->data()), length);
}

}  // namespace catnap::test
