#include <algorithm>
#include <array>
#include <vector>

#include "device/bus.h"
#include "device/serial.h"
#include "fuzz/fuzz_input.h"
#include "fuzz/fuzz_target.h"

// Any accesses to a bus with two serial ports, one right behind the other, and
// input from the host in between. A model of the bus tells which accesses
// reach a port; the ports are held to what a driver relies on.

namespace catnap::device {
namespace {

constexpr uint64_t kFirst = 0x3f8;
constexpr uint64_t kSecond = kFirst + Serial::kPorts;
constexpr uint64_t kEnd = kSecond + Serial::kPorts;

class CountingSink final : public OutputSink {
 public:
  void Write(std::span<const uint8_t> bytes) override { sent += bytes.size(); }
  uint64_t sent = 0;
};

class CheckingIrq final : public IrqLine {
 public:
  void Set(bool asserted) override {
    FUZZ_CHECK(asserted != level);  // Only changes are told.
    level = asserted;
  }
  bool level = false;
};

struct Port {
  CountingSink sink;
  CheckingIrq irq;
  Serial serial{&sink, &irq};
  uint64_t sendable = 0;  // Writes that could have sent a byte.
};

class Run {
 public:
  Run() {
    FUZZ_CHECK(bus_.Add(kSecond, Serial::kPorts, &ports_[1].serial).ok());
    FUZZ_CHECK(bus_.Add(kFirst, Serial::kPorts, &ports_[0].serial).ok());
  }

  void Step(fuzz::FuzzInput* input) {
    const auto operation = input->Between<uint8_t>(0, 7);
    if (operation == 0) {
      Receive(input->Integer<uint8_t>(), input);
    } else if (operation == 1) {  // Anywhere, of any size.
      const auto address = input->Integer<uint64_t>();
      const size_t size = input->Between<uint8_t>(0, 16);
      Access(address, size, input->Integer<uint8_t>());
    } else if (operation == 2) {
      // Not after each step: looking ends some interrupts.
      for (Port& port : ports_) Check(&port);
    } else {  // Near the ports.
      const uint64_t address = input->Between<uint8_t>(0, 23) + kFirst - 4;
      const size_t size = size_t{1} << input->Between<uint8_t>(0, 3);
      Access(address, size, input->Integer<uint8_t>());
    }
    for (const Port& port : ports_) {
      FUZZ_CHECK(port.sink.sent <= port.sendable);
    }
  }

 private:
  // The port that an access belongs to, or null.
  Port* Model(uint64_t address, size_t size) {
    if (size == 0 || size > 8 || (size & (size - 1)) != 0) return nullptr;
    if (address < kFirst || address >= kEnd) return nullptr;
    const uint64_t offset = address - kFirst;
    const uint64_t last = offset + size - 1;
    if (offset / Serial::kPorts != last / Serial::kPorts) return nullptr;
    return &ports_[offset / Serial::kPorts];
  }

  // Writes `value` in each byte when it is odd, reads when it is even.
  void Access(uint64_t address, size_t size, uint8_t value) {
    Port* const port = Model(address, size);
    const uint64_t unclaimed = bus_.unclaimed_reads() + bus_.unclaimed_writes();
    std::vector<uint8_t> data(size, value);
    if (value % 2 == 0) {
      bus_.Read(address, data);
      const auto from = data.begin() + (port == nullptr ? 0 : 1);
      FUZZ_CHECK(std::all_of(from, data.end(),
                             [](uint8_t byte) { return byte == 0xff; }));
    } else {
      bus_.Write(address, data);
      if (port != nullptr && (address - kFirst) % Serial::kPorts == 0) {
        ++port->sendable;
      }
    }
    FUZZ_CHECK(bus_.unclaimed_reads() + bus_.unclaimed_writes() ==
               unclaimed + (port == nullptr ? 1 : 0));
  }

  void Receive(uint8_t selector, fuzz::FuzzInput* input) {
    const auto bytes = input->Bytes(selector >> 1);
    const size_t taken = ports_[selector & 1].serial.Receive(bytes);
    FUZZ_CHECK(taken <= std::min(bytes.size(), Serial::kFifoBytes));
  }

  static void Check(Port* port) {
    // The line is up exactly when IIR names an interrupt.
    const bool level = port->irq.level;
    uint8_t iir = 0xff;
    port->serial.Read(2, {&iir, 1});
    FUZZ_CHECK(level == ((iir & 1) == 0));
    // The transmitter is empty, and nothing but data and overrun is told.
    uint8_t lsr = 0xff;
    port->serial.Read(5, {&lsr, 1});
    FUZZ_CHECK((lsr & 0x60) == 0x60 && (lsr & 0x9c) == 0);
  }

  std::array<Port, 2> ports_;
  Bus bus_;
};

}  // namespace
}  // namespace catnap::device

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  catnap::device::Run run;
  catnap::fuzz::FuzzInput input(data, size);
  while (!input.empty()) run.Step(&input);
  return 0;
}
