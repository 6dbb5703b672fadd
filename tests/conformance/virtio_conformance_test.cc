#include <catch2/catch.hpp>
#include <vector>

#include "conformance/virtio_devices.h"
#include "state/decoder.h"
#include "state/encoder.h"

// Each case runs on each device. References are to virtio 1.2.

namespace catnap::test {
namespace {

using virtio::MmioRegister;

constexpr uint64_t kVersion1 = virtio::kFeatureVersion1;

// Runs `body` for each device, in a section of its own.
template <typename Body>
void ForEachDevice(Body body) {
  for (const DeviceUnderTest& device : AllDevices()) {
    SECTION(device.name) { body(device); }
  }
}

// The device takes a good buffer and gives it back.
void CheckWorks(const DeviceUnderTest& device, VirtioDriver* driver) {
  driver->TakeUsed(device.queue);
  driver->Add(device.queue, 0, device.good_buffer);
  driver->Kick();
  const auto used = driver->TakeUsed(device.queue);
  REQUIRE(used.size() == 1);
  CHECK(used[0].head == 0);
}

TEST_CASE("A device says what it is (4.2.2)") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    CHECK(driver.Read(MmioRegister::kMagic) == 0x74726976);
    CHECK(driver.Read(MmioRegister::kVersion) == 2);
    CHECK(driver.Read(MmioRegister::kDeviceId) == device.device_id);
    CHECK(driver.status() == 0);
    CHECK(driver.Read(MmioRegister::kInterruptStatus) == 0);
    // No shared memory region, whatever is asked for.
    driver.Write(MmioRegister::kSharedMemorySelect, 1);
    CHECK(driver.Read(MmioRegister::kSharedMemoryLengthLow) == UINT32_MAX);
    CHECK(driver.Read(MmioRegister::kSharedMemoryLengthHigh) == UINT32_MAX);
    const auto& sizes = driver.device().traits().queue_sizes;
    for (uint32_t i = 0; i < sizes.size() + 2; ++i) {
      driver.Write(MmioRegister::kQueueSelect, i);
      CHECK(driver.Read(MmioRegister::kQueueSizeMax) ==
            (i < sizes.size() ? sizes[i] : 0));
      CHECK(driver.Read(MmioRegister::kQueueReady) == 0);
    }
  });
}

TEST_CASE("Features are agreed on, or the device does not run (2.2, 3.1.1)") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    const uint64_t offered = driver.OfferedFeatures();
    CHECK((offered & kVersion1) != 0);
    CHECK((offered & virtio::kFeatureIndirectDescriptors) != 0);
    CHECK((offered & virtio::kFeatureEventIndex) != 0);
    driver.Write(MmioRegister::kDeviceFeaturesSelect, 2);
    CHECK(driver.Read(MmioRegister::kDeviceFeatures) == 0);

    CHECK_FALSE(driver.Negotiate(offered & ~kVersion1));  // A legacy driver.
    driver.DriverOk();
    CHECK((driver.status() & virtio::kStatusDriverOk) == 0);
    driver.Reset();
    CHECK_FALSE(driver.Negotiate(offered | (uint64_t{1} << 63)));
    driver.Reset();
    CHECK(driver.Negotiate(offered));
    // Nothing can be added later, nor taken away but by a reset.
    driver.Write(MmioRegister::kDriverFeatures, 0xffffffff);
    driver.Write(MmioRegister::kStatus, virtio::kStatusAcknowledge);
    CHECK((driver.status() & virtio::kStatusFeaturesOk) != 0);
    driver.Reset();
    CHECK(driver.status() == 0);
    CHECK(driver.Start());
    CheckWorks(device, &driver);
  });
}

TEST_CASE("A device works with and without each ring feature (2.7)") {
  ForEachDevice([](const DeviceUnderTest& device) {
    for (const uint64_t without :
         {uint64_t{0}, virtio::kFeatureEventIndex,
          virtio::kFeatureIndirectDescriptors,
          virtio::kFeatureEventIndex | virtio::kFeatureIndirectDescriptors}) {
      VirtioDriver driver(device.factory);
      REQUIRE(driver.Start(8, without));
      for (int round = 0; round < 20; ++round) CheckWorks(device, &driver);
      CHECK(driver.failures() == 0);
      CHECK(driver.interrupts() > 0);
    }
  });
}

TEST_CASE("InterruptStatus stays set while the device runs (4.2.2)") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    REQUIRE(driver.Start());
    driver.Write(MmioRegister::kInterruptAck, 1);
    CHECK(driver.Read(MmioRegister::kInterruptStatus) == 1);
    driver.Reset();
    CHECK(driver.Read(MmioRegister::kInterruptStatus) == 0);
  });
}

TEST_CASE("A queue that cannot be is refused, and a reset helps (4.2.2.1)") {
  struct Setting {
    MmioRegister which;
    uint32_t value;
  };
  const std::vector<Setting> bad = {
      {MmioRegister::kQueueSize, 0},
      {MmioRegister::kQueueSize, 3},
      {MmioRegister::kQueueSize, 512},
      {MmioRegister::kQueueSize, 0x10008},
      {MmioRegister::kQueueDescriptorsLow, 0x10001},  // Not aligned.
      {MmioRegister::kQueueDriverLow, 0x10001},
      {MmioRegister::kQueueDeviceLow, 0x10002},
      {MmioRegister::kQueueDescriptorsHigh, 1},  // Not RAM.
      {MmioRegister::kQueueDriverHigh, 0xffffffff},
      {MmioRegister::kQueueDeviceLow, 0xffffc},  // Over the end of RAM.
  };
  ForEachDevice([&bad](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    int failures = 0;
    for (const Setting& setting : bad) {
      REQUIRE(driver.Negotiate(driver.OfferedFeatures()));
      driver.SetUpQueue(device.queue, 8);
      driver.Write(MmioRegister::kQueueReady, 0);
      driver.Write(setting.which, setting.value);
      driver.Write(MmioRegister::kQueueReady, 1);
      CHECK(driver.Read(MmioRegister::kQueueReady) == 1);
      driver.DriverOk();
      CHECK((driver.status() & virtio::kStatusNeedsReset) != 0);
      CHECK(driver.failures() == ++failures);
      driver.Kick();  // Nothing happens.
      driver.Reset();
    }
    CHECK(driver.Start());
    CheckWorks(device, &driver);
  });
}

TEST_CASE("Queues that are not there or not ready are left alone") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    REQUIRE(driver.Negotiate(driver.OfferedFeatures()));
    driver.Write(MmioRegister::kQueueSelect, 99);
    driver.Write(MmioRegister::kQueueSize, 8);
    driver.Write(MmioRegister::kQueueReady, 1);
    CHECK(driver.Read(MmioRegister::kQueueReady) == 0);
    driver.DriverOk();  // Without any queue.
    driver.Kick();
    CHECK(driver.failures() == 0);
    driver.Reset();
    REQUIRE(driver.Start());
    // What is ready does not change any more.
    driver.Write(MmioRegister::kQueueSelect, device.queue);
    driver.Write(MmioRegister::kQueueReady, 0);
    driver.Write(MmioRegister::kQueueSize, 0);
    CHECK(driver.Read(MmioRegister::kQueueReady) == 1);
    CheckWorks(device, &driver);
  });
}

// Ways to break the rules of 2.7 in one queue.
using Malice = void (*)(VirtioDriver*, uint32_t queue);

const std::vector<Malice> kMalices = {
    // More available than the queue has.
    [](VirtioDriver* d, uint32_t q) { d->SetAvailableIndex(q, 9); },
    [](VirtioDriver* d, uint32_t q) { d->SetAvailableIndex(q, 0x8000); },
    // A head that is none.
    [](VirtioDriver* d, uint32_t q) { d->MakeAvailable(q, 8); },
    [](VirtioDriver* d, uint32_t q) { d->MakeAvailable(q, 0xffff); },
    // A loop.
    [](VirtioDriver* d, uint32_t q) {
      d->SetDescriptor(q, 0, {VirtioDriver::kBuffers, 4, kNextFlag, 1});
      d->SetDescriptor(q, 1, {VirtioDriver::kBuffers, 4, kNextFlag, 0});
      d->MakeAvailable(q, 0);
    },
    [](VirtioDriver* d, uint32_t q) {
      d->SetDescriptor(q, 0,
                       {VirtioDriver::kBuffers, 4, kNextFlag | kWriteFlag, 0});
      d->MakeAvailable(q, 0);
    },
    // A next that is none.
    [](VirtioDriver* d, uint32_t q) {
      d->SetDescriptor(q, 0, {VirtioDriver::kBuffers, 4, kNextFlag, 8});
      d->MakeAvailable(q, 0);
    },
    // Buffers outside RAM, and over its end.
    [](VirtioDriver* d, uint32_t q) {
      d->Add(q, 0, {{VirtioDriver::kRamBytes, 4, true}});
    },
    [](VirtioDriver* d, uint32_t q) {
      d->Add(q, 0, {{VirtioDriver::kRamBytes - 4, 8, true}});
    },
    [](VirtioDriver* d, uint32_t q) {
      d->Add(q, 0, {{UINT64_MAX - 3, 8, true}});
    },
    [](VirtioDriver* d, uint32_t q) {
      d->Add(q, 0, {{VirtioDriver::kBuffers, UINT32_MAX, true}});
    },
    // Readable behind writable.
    [](VirtioDriver* d, uint32_t q) {
      d->Add(q, 0,
             {{VirtioDriver::kBuffers, 4, true},
              {VirtioDriver::kBuffers, 4, false}});
    },
    // Indirect tables: empty, no multiple of 16, too long, outside RAM, in one
    // another, and with a next.
    [](VirtioDriver* d, uint32_t q) {
      d->SetDescriptor(q, 0, {VirtioDriver::kBuffers, 0, kIndirectFlag});
      d->MakeAvailable(q, 0);
    },
    [](VirtioDriver* d, uint32_t q) {
      d->SetDescriptor(q, 0, {VirtioDriver::kBuffers, 17, kIndirectFlag});
      d->MakeAvailable(q, 0);
    },
    [](VirtioDriver* d, uint32_t q) {
      d->SetDescriptor(q, 0, {VirtioDriver::kBuffers, 0x80000, kIndirectFlag});
      d->MakeAvailable(q, 0);
    },
    [](VirtioDriver* d, uint32_t q) {
      d->SetDescriptor(q, 0, {VirtioDriver::kRamBytes, 16, kIndirectFlag});
      d->MakeAvailable(q, 0);
    },
    [](VirtioDriver* d, uint32_t q) {
      // Its one descriptor is the queue's first, which is indirect.
      d->SetDescriptor(
          q, 0,
          {VirtioDriver::kQueueArea + q * VirtioDriver::kQueueStride, 16,
           kIndirectFlag});
      d->MakeAvailable(q, 0);
    },
    [](VirtioDriver* d, uint32_t q) {
      d->SetDescriptor(
          q, 0, {VirtioDriver::kBuffers, 16, kIndirectFlag | kNextFlag, 1});
      d->MakeAvailable(q, 0);
    },
};

TEST_CASE("A driver that breaks the rules gets NEEDS_RESET, and only that") {
  ForEachDevice([](const DeviceUnderTest& device) {
    for (const uint32_t queue : device.watched_queues) {
      for (const Malice malice : kMalices) {
        VirtioDriver driver(device.factory);
        REQUIRE(driver.Start());
        malice(&driver, queue);
        const int interrupts = driver.interrupts();
        driver.Kick();
        driver.Kick();
        CHECK((driver.status() & virtio::kStatusNeedsReset) != 0);
        CHECK(driver.failures() == 1);
        CHECK(driver.interrupts() == interrupts + 1);
        CHECK(driver.Read(MmioRegister::kInterruptStatus) == 3);
        driver.Write(MmioRegister::kInterruptAck, 3);
        CHECK(driver.Read(MmioRegister::kInterruptStatus) == 1);
        driver.Reset();
        REQUIRE(driver.Start());
        CheckWorks(device, &driver);
      }
    }
  });
}

TEST_CASE("An indirect descriptor without the feature is refused (2.7.5.3)") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    REQUIRE(driver.Start(8, virtio::kFeatureIndirectDescriptors));
    driver.Add(device.queue, 0, device.good_buffer, /*indirect=*/true);
    driver.Kick();
    CHECK((driver.status() & virtio::kStatusNeedsReset) != 0);
  });
}

TEST_CASE("After a reset nothing of the old queues is touched (2.4)") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    const auto step = static_cast<uint16_t>(device.good_buffer.size());
    for (int round = 0; round < 8; ++round) {
      REQUIRE(driver.Start(32));
      // From none to all of the steps of a request.
      for (int i = 0; i < round; ++i) {
        driver.Add(device.queue, static_cast<uint16_t>(i * step),
                   device.good_buffer);
      }
      if (round % 2 == 1) driver.Kick();
      driver.TakeUsed(device.queue);
      const int interrupts = driver.interrupts();
      driver.Reset();
      driver.Add(device.queue, static_cast<uint16_t>(7 * step),
                 device.good_buffer);
      driver.Kick();
      CHECK(driver.TakeUsed(device.queue).empty());
      CHECK(driver.interrupts() == interrupts);
      CHECK(driver.status() == 0);
      CHECK(driver.failures() == 0);
    }
    REQUIRE(driver.Start());
    CheckWorks(device, &driver);
  });
}

std::vector<uint8_t> Save(VirtioDriver* driver) {
  driver->device().Quiesce();
  std::vector<uint8_t> bytes;
  state::StateEncoder out(&bytes);
  REQUIRE(driver->transport().SaveState(out).ok());
  return bytes;
}

TEST_CASE("A saved device goes on where it was") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    REQUIRE(driver.Start());
    for (int round = 0; round < 5; ++round) CheckWorks(device, &driver);
    const auto bytes = Save(&driver);
    driver.Add(device.queue, 1, device.good_buffer);
    driver.Kick();  // Quiesced: it waits.
    CHECK(driver.TakeUsed(device.queue).empty());

    VirtioDriver second(device.factory, driver);
    REQUIRE(second.transport().LoadState(state::StateDecoder(bytes)).ok());
    CHECK(second.status() == driver.status());
    CHECK(second.Read(MmioRegister::kInterruptStatus) == 1);
    CHECK(second.OfferedFeatures() == driver.OfferedFeatures());
    CHECK(second.TakeUsed(device.queue).empty());
    // What waits counts as kicked, and every interrupt is raised once.
    second.device().Resume();
    CHECK(second.TakeUsed(device.queue).size() == 1);
    CHECK(second.interrupts() >= 1);
    CheckWorks(device, &second);

    // The first one was only paused.
    driver.device().Resume();
    CHECK(driver.TakeUsed(device.queue).size() == 1);
    CheckWorks(device, &driver);

    // What is saved and loaded is saved again as the same bytes.
    VirtioDriver third(device.factory, second);
    const auto again = Save(&second);
    REQUIRE(third.transport().LoadState(state::StateDecoder(again)).ok());
    CHECK(Save(&third) == again);
  });
}

TEST_CASE("A device that stood still goes on, without an interrupt") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    REQUIRE(driver.Start());
    for (int round = 0; round < 5; ++round) {
      CheckWorks(device, &driver);
      const int before = driver.interrupts();
      driver.device().Quiesce();
      driver.device().Continue();
      CHECK(driver.interrupts() == before);
      driver.device().Quiesce();
      driver.Add(device.queue, static_cast<uint16_t>(1 + round % 2),
                 device.good_buffer);
      driver.Kick();
      CHECK(driver.TakeUsed(device.queue).empty());
      // What waits counts as kicked.
      driver.device().Continue();
      CHECK(driver.TakeUsed(device.queue).size() == 1);
    }
    const int before = driver.interrupts();
    driver.device().Quiesce();
    driver.device().Resume();
    CHECK(driver.interrupts() == before + 1);
    CHECK(driver.failures() == 0);
  });
}

TEST_CASE("A device is saved before it runs, and after it failed") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    REQUIRE(driver.Negotiate(driver.OfferedFeatures()));
    driver.SetUpQueue(device.queue, 8);
    auto bytes = Save(&driver);
    VirtioDriver early(device.factory, driver);
    REQUIRE(early.transport().LoadState(state::StateDecoder(bytes)).ok());
    early.device().Resume();
    early.DriverOk();
    CheckWorks(device, &early);

    early.SetAvailableIndex(device.queue, 0x8000);
    early.Kick();
    bytes = Save(&early);
    VirtioDriver failed(device.factory, early);
    REQUIRE(failed.transport().LoadState(state::StateDecoder(bytes)).ok());
    failed.device().Resume();
    CHECK((failed.status() & virtio::kStatusNeedsReset) != 0);
    failed.Kick();
    CHECK(failed.failures() == 0);  // It is known already.
    failed.Reset();
    REQUIRE(failed.Start());
    CheckWorks(device, &failed);
  });
}

TEST_CASE("No damaged state is more than an error") {
  ForEachDevice([](const DeviceUnderTest& device) {
    VirtioDriver driver(device.factory);
    REQUIRE(driver.Start());
    CheckWorks(device, &driver);
    const auto good = Save(&driver);
    int refused = 0;
    for (size_t i = 0; i < good.size(); ++i) {
      for (const uint8_t flip : {uint8_t{0x01}, uint8_t{0x80}, uint8_t{0xff}}) {
        auto bad = good;
        bad[i] ^= flip;
        VirtioDriver second(device.factory, driver);
        if (!second.transport().LoadState(state::StateDecoder(bad)).ok()) {
          ++refused;
          continue;
        }
        // Whatever it holds now, it stays within its bounds.
        second.device().Resume();
        second.Kick();
        second.Reset();
      }
      VirtioDriver cut(device.factory, driver);
      const auto part = std::span(good).first(i);
      if (cut.transport().LoadState(state::StateDecoder(part)).ok()) {
        cut.device().Resume();
        cut.Kick();
      }
    }
    CHECK(refused > 0);
  });
}

}  // namespace
}  // namespace catnap::test
