#include "device/serial.h"

#include <algorithm>
#include <array>
#include <catch2/catch.hpp>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/thread.h"

namespace catnap::device {
namespace {

// Registers and bits by the names that drivers give them.
constexpr uint64_t kRx = 0, kTx = 0, kDll = 0, kIer = 1, kDlm = 1, kIir = 2;
constexpr uint64_t kFcr = 2, kLcr = 3, kMcr = 4, kLsr = 5, kMsr = 6, kScr = 7;
constexpr uint8_t kRdi = 1, kThri = 2, kRlsi = 4, kMsi = 8;  // IER
constexpr uint8_t kNoInterrupt = 0x01;                       // IIR
constexpr uint8_t kFifoOn = 0xc0;                            // IIR
constexpr uint8_t kDlab = 0x80;                              // LCR
constexpr uint8_t kLoop = 0x10;                              // MCR
constexpr uint8_t kDataReady = 0x01, kOverrun = 0x02;        // LSR
constexpr uint8_t kTransmitterEmpty = 0x60;                  // LSR

class StringSink final : public OutputSink {
 public:
  void Write(std::span<const uint8_t> bytes) override {
    text.append(bytes.begin(), bytes.end());
  }
  std::string text;
};

class CountingIrq final : public IrqLine {
 public:
  void Set(bool asserted) override {
    repeats += asserted == level ? 1 : 0;
    edges += asserted ? 1 : 0;
    level = asserted;
  }
  bool level = false;
  int edges = 0;
  int repeats = 0;  // Calls that changed nothing.
};

struct Uart {
  void Out(uint64_t offset, uint8_t value) {
    serial.Write(offset, {&value, 1});
  }
  uint8_t In(uint64_t offset) {
    uint8_t value = 0xff;
    serial.Read(offset, {&value, 1});
    return value;
  }
  size_t Receive(const std::string& text) {
    return serial.Receive(
        {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }

  StringSink sink;
  CountingIrq irq;
  Serial serial{&sink, &irq};
};

TEST_CASE("Serial passes what the guest sends, in order, and stays empty") {
  Uart uart;
  for (const char c : std::string("ab\n")) {
    CHECK(uart.In(kLsr) == kTransmitterEmpty);
    uart.Out(kTx, static_cast<uint8_t>(c));
  }
  CHECK(uart.sink.text == "ab\n");
  CHECK(uart.irq.edges == 0);  // Nothing was enabled.
}

TEST_CASE("Serial is found by Linux's autoconfig as a 16550A") {
  Uart uart;
  // IER: exactly four bits stay.
  uart.Out(kIer, 0);
  CHECK((uart.In(kIer) & 0x0f) == 0);
  uart.Out(kIer, 0x0f);
  CHECK((uart.In(kIer) & 0x0f) == 0x0f);
  uart.Out(kIer, 0);
  // Loopback: RTS shows as CTS and OUT2 as DCD.
  uart.Out(kMcr, kLoop | 0x0a);
  CHECK((uart.In(kMsr) & 0xf0) == 0x90);
  uart.Out(kMcr, 0);
  // With LCR 0xbf register 2 would be EFR: write it, then look at the FIFO
  // bits of IIR.
  uart.Out(kLcr, 0xbf);
  uart.Out(kFcr, 0);
  uart.Out(kLcr, 0);
  uart.Out(kFcr, 0x01);
  CHECK(uart.In(kIir) >> 6 == 3);
  // Not a 16650: with DLAB register 2 is not EFR.
  uart.Out(kLcr, kDlab);
  CHECK(uart.In(kIir) != 0);
  // Not a National SuperIO: register 2 in bank 0xe0 does not follow MCR's LOOP.
  uart.Out(kLcr, 0xe0);
  CHECK(((uart.In(kIir) ^ uart.In(kMcr)) & kLoop) == 0);
  uart.Out(kLcr, 0);
  uart.Out(kMcr, uart.In(kMcr) ^ kLoop);
  uart.Out(kLcr, 0xe0);
  CHECK((uart.In(kIir) & kLoop) == 0);
  uart.Out(kLcr, 0);
  uart.Out(kMcr, uart.In(kMcr) ^ kLoop);
  // Not a TI16750: the bit for 64 bytes does nothing, with DLAB or without.
  uart.Out(kFcr, 0x21);
  CHECK(uart.In(kIir) >> 5 == 6);
  uart.Out(kLcr, kDlab);
  uart.Out(kFcr, 0x21);
  CHECK(uart.In(kIir) >> 5 == 6);
  uart.Out(kLcr, 0);
  // Not an XScale: IER has no bit 6.
  uart.Out(kIer, 0x40);
  CHECK(uart.In(kIer) == 0);
  CHECK(uart.sink.text.empty());
}

TEST_CASE("Serial passes Linux's start-up tests of the transmit interrupt") {
  Uart uart;
  CHECK(uart.In(kLsr) != 0xff);  // 0xff: no UART there.
  // Raised by enabling it, and again by enabling it anew after IIR ended it.
  uart.Out(kIer, kThri);
  CHECK((uart.In(kIir) & 0x0f) == 0x02);
  CHECK((uart.In(kIir) & 0x0f) == kNoInterrupt);
  uart.Out(kIer, 0);
  uart.Out(kIer, kThri);
  CHECK((uart.In(kIir) & 0x0f) == 0x02);
  uart.Out(kIer, 0);
  CHECK(uart.irq.edges == 2);
  CHECK_FALSE(uart.irq.level);
}

TEST_CASE("Serial's FIFO holds 16 bytes by Linux's loopback probe") {
  static constexpr int kSent = 256;
  Uart uart;
  uart.Out(kFcr, 0x07);
  uart.Out(kMcr, kLoop);
  uart.Out(kLcr, kDlab);
  uart.Out(kDll, 1);
  uart.Out(kDlm, 0);
  uart.Out(kLcr, 0x03);
  for (int i = 0; i < kSent; ++i) uart.Out(kTx, static_cast<uint8_t>(i));
  CHECK(uart.In(kLsr) == (kTransmitterEmpty | kDataReady | kOverrun));
  CHECK(uart.In(kLsr) == (kTransmitterEmpty | kDataReady));  // OE by reading.
  std::vector<uint8_t> seen;
  while ((uart.In(kLsr) & kDataReady) != 0 && seen.size() < kSent) {
    seen.push_back(uart.In(kRx));
  }
  std::vector<uint8_t> expected(Serial::kFifoBytes);
  std::iota(expected.begin(), expected.end(), uint8_t{0});
  CHECK(seen == expected);
  CHECK(uart.sink.text.empty());
}

TEST_CASE("Serial in loopback without the FIFO keeps the newest byte") {
  Uart uart;
  uart.Out(kMcr, kLoop);
  uart.Out(kIer, kRlsi);
  uart.Out(kTx, 'a');
  CHECK(uart.irq.edges == 0);
  uart.Out(kTx, 'b');
  CHECK(uart.irq.level);
  CHECK(uart.In(kIir) == 0x06);
  CHECK((uart.In(kLsr) & kOverrun) != 0);
  CHECK_FALSE(uart.irq.level);
  CHECK(uart.In(kRx) == 'b');
  CHECK((uart.In(kLsr) & kDataReady) == 0);
}

TEST_CASE("Serial keeps scratch, line control and divisor apart") {
  Uart uart;
  uart.Out(kScr, 0x5a);
  uart.Out(kIer, kRdi);
  uart.Out(kLcr, kDlab | 0x03);
  uart.Out(kDll, 0x01);
  uart.Out(kDlm, 0x02);
  CHECK(uart.In(kDll) == 0x01);
  CHECK(uart.In(kDlm) == 0x02);
  uart.Out(kLcr, 0x03);
  CHECK(uart.In(kLcr) == 0x03);
  CHECK(uart.In(kIer) == kRdi);
  CHECK(uart.In(kRx) == 0);  // Nothing received: not the divisor.
  CHECK(uart.In(kScr) == 0x5a);
  CHECK(uart.sink.text.empty());  // The divisor was not sent.
}

TEST_CASE("Serial's status registers cannot be written") {
  Uart uart;
  const uint8_t modem = uart.In(kMsr);
  uart.Out(kLsr, 0xff);
  uart.Out(kMsr, 0xff);
  CHECK(uart.In(kLsr) == kTransmitterEmpty);
  CHECK(uart.In(kMsr) == modem);
  CHECK(modem == 0xb0);  // Carrier, DSR, CTS, no change.
}

TEST_CASE("Serial raises an edge for every byte of an interrupt-driven send") {
  Uart uart;
  uart.Out(kIer, kThri);
  CHECK(uart.irq.edges == 1);
  for (int i = 0; i < 3; ++i) {
    CHECK(uart.In(kIir) == 0x02);
    CHECK_FALSE(uart.irq.level);
    uart.Out(kTx, 'x');
    CHECK(uart.irq.level);
    CHECK(uart.irq.edges == 2 + i);
  }
  // A byte sent before the interrupt was looked at ends it and raises it anew.
  uart.Out(kTx, 'y');
  CHECK(uart.irq.edges == 5);
  uart.Out(kIer, 0);
  CHECK_FALSE(uart.irq.level);
  CHECK(uart.In(kIir) == kNoInterrupt);
  CHECK(uart.sink.text == "xxxy");
}

TEST_CASE("Serial gives received bytes to the guest until none is left") {
  Uart uart;
  uart.Out(kFcr, 0x01);
  uart.Out(kIer, kRdi);
  CHECK(uart.Receive("ok") == 2);
  CHECK(uart.irq.level);
  CHECK(uart.In(kIir) == (kFifoOn | 0x04));
  CHECK(uart.In(kLsr) == (kTransmitterEmpty | kDataReady));
  CHECK(uart.In(kRx) == 'o');
  CHECK(uart.irq.level);
  CHECK(uart.In(kRx) == 'k');
  CHECK_FALSE(uart.irq.level);
  CHECK(uart.In(kIir) == (kFifoOn | kNoInterrupt));
  CHECK(uart.irq.edges == 1);
}

TEST_CASE("Serial tells a full FIFO trigger from a time-out") {
  Uart uart;
  const auto [bits, trigger] = GENERATE(
      table<uint8_t, size_t>({{0x00, 1}, {0x40, 4}, {0x80, 8}, {0xc0, 14}}));
  CAPTURE(trigger);
  uart.Out(kFcr, static_cast<uint8_t>(bits | 0x01));
  uart.Out(kIer, kRdi);
  REQUIRE(uart.Receive(std::string(trigger, 'x')) == trigger);
  CHECK(uart.In(kIir) == (kFifoOn | 0x04));
  uart.In(kRx);
  // Below the trigger; with a trigger of one, nothing is left.
  const uint8_t below = trigger == 1 ? kNoInterrupt : 0x0c;
  CHECK(uart.In(kIir) == (kFifoOn | below));
}

TEST_CASE("Serial takes only as much input as it has room for") {
  Uart uart;
  const std::string input(20, 'x');
  CHECK(uart.Receive("") == 0);
  CHECK(uart.Receive(input) == 1);  // FIFO off.
  CHECK(uart.Receive(input) == 0);
  uart.Out(kFcr, 0x01);  // Empties the buffer.
  CHECK(uart.Receive(input) == 16);
  CHECK(uart.Receive(input) == 0);
  uart.In(kRx);
  CHECK(uart.Receive(input) == 1);
  uart.Out(kFcr, 0x03);  // Clears the receive FIFO.
  CHECK((uart.In(kLsr) & (kDataReady | kOverrun)) == 0);
  CHECK(uart.Receive(input) == 16);
  uart.Out(kMcr, kLoop);
  uart.In(kRx);
  CHECK(uart.Receive(input) == 0);  // Cut off from the line.
}

TEST_CASE("Serial reports interrupts by priority") {
  Uart uart;
  uart.Out(kMcr, kLoop);  // All lines fall: modem status.
  uart.Out(kTx, 'a');     // Received, and the transmitter empty again.
  uart.Out(kTx, 'b');     // Overrun.
  uart.Out(kIer, kRdi | kThri | kRlsi | kMsi);
  CHECK(uart.In(kIir) == 0x06);
  uart.In(kLsr);
  CHECK(uart.In(kIir) == 0x04);
  uart.In(kRx);
  CHECK(uart.In(kIir) == 0x02);
  CHECK(uart.In(kIir) == 0x00);
  CHECK(uart.irq.level);
  CHECK(uart.In(kMsr) == 0x0b);  // DCD, DSR and CTS changed, to 0.
  CHECK(uart.In(kIir) == kNoInterrupt);
  CHECK_FALSE(uart.irq.level);
  CHECK(uart.irq.edges == 1);  // It stayed up from the first to the last.
}

TEST_CASE("Serial reports the end of a ring, not its start") {
  Uart uart;
  uart.Out(kMcr, kLoop);
  uart.In(kMsr);
  uart.Out(kMcr, kLoop | 0x04);  // OUT1 shows as the ring.
  CHECK(uart.In(kMsr) == 0x40);
  uart.Out(kMcr, kLoop);
  CHECK(uart.In(kMsr) == 0x04);
}

TEST_CASE("Serial uses the first byte of a wide access only") {
  Uart uart;
  uart.Out(kIer, 0);
  uart.Out(kScr, 0x12);
  const std::array<uint8_t, 4> wide = {'w', 0xff, 0xff, 0xff};
  uart.serial.Write(kTx, wide);
  CHECK(uart.sink.text == "w");
  CHECK(uart.In(kIer) == 0);
  std::array<uint8_t, 2> data = {0xff, 0xff};
  uart.serial.Read(kMsr, data);
  CHECK(data == std::array<uint8_t, 2>{0xb0, 0xff});
}

TEST_CASE("Serial keeps its promises under random accesses") {
  static constexpr int kSteps = 200'000;
  static constexpr uint32_t kSeed = 16550;  // Any; fixed, to be repeatable.
  Uart uart;
  std::mt19937 random(kSeed);
  size_t taken = 0;
  size_t full = 0;
  for (int i = 0; i < kSteps; ++i) {
    const auto word = static_cast<uint32_t>(random());
    const uint64_t offset = word % Serial::kPorts;
    std::array<uint8_t, 8> data{};
    const size_t size = size_t{1} << ((word >> 8) % 4);
    std::fill(data.begin(), data.end(), static_cast<uint8_t>(word >> 16));
    const uint32_t what = (word >> 24) % 3;
    if (what == 0) uart.serial.Write(offset, {data.data(), size});
    if (what == 1) uart.serial.Read(offset, {data.data(), size});
    if (what == 2) {
      const size_t accepted = uart.serial.Receive(data);
      taken += accepted;
      full += accepted > Serial::kFifoBytes ? 1 : 0;
    }
    // The line is up exactly when IIR has something to say. Looking at it may
    // end the transmit interrupt, so compare before and after.
    const bool level = uart.irq.level;
    const uint8_t id = uart.In(kIir);
    REQUIRE(level == ((id & kNoInterrupt) == 0));
    const uint8_t next = uart.In(kIir);
    REQUIRE(uart.irq.level == ((next & kNoInterrupt) == 0));
    const uint8_t mcr = uart.In(kMcr);
    REQUIRE((mcr & 0xe0) == 0);
  }
  CHECK(uart.irq.repeats == 0);
  CHECK(taken > 0);
  CHECK(full == 0);
  CHECK(uart.irq.edges > 0);
  CHECK_FALSE(uart.sink.text.empty());
}

TEST_CASE("Serial loses no byte when threads send and receive at once") {
  static constexpr size_t kBytes = 5'000;
  Uart uart;
  uart.Out(kFcr, 0x01);
  uart.Out(kIer, kRdi | kThri);
  const auto send = [&uart](char c) {
    return [&uart, c] {
      for (size_t i = 0; i < kBytes; ++i) {
        uart.Out(kTx, static_cast<uint8_t>(c));
      }
    };
  };
  auto one = base::Thread::Start("send-1", send('1'));
  auto two = base::Thread::Start("send-2", send('2'));
  REQUIRE(one.ok());
  REQUIRE(two.ok());
  size_t received = 0;
  std::string seen;
  while (seen.size() < kBytes) {
    const std::string next(1, static_cast<char>('a' + received % 26));
    if (received < kBytes) received += uart.Receive(next);
    if ((uart.In(kLsr) & kDataReady) != 0) {
      seen.push_back(static_cast<char>(uart.In(kRx)));
    }
  }
  one->Join();
  two->Join();
  CHECK(uart.sink.text.size() == 2 * kBytes);
  CHECK(std::count(uart.sink.text.begin(), uart.sink.text.end(), '1') ==
        kBytes);
  std::string expected(kBytes, ' ');
  for (size_t i = 0; i < kBytes; ++i) {
    expected[i] = static_cast<char>('a' + i % 26);
  }
  CHECK(seen == expected);
  CHECK(uart.irq.repeats == 0);
}

// Answers what the guest sends with the same bytes, at once.
class Echo final : public OutputSink {
 public:
  void Write(std::span<const uint8_t> bytes) override {
    serial->Receive(bytes);
  }
  Serial* serial = nullptr;
};

TEST_CASE("A sink may send to the guest from within its Write") {
  Echo echo;
  CountingIrq irq;
  Serial serial(&echo, &irq);
  echo.serial = &serial;
  const uint8_t byte = 'e';
  serial.Write(kTx, {&byte, 1});
  uint8_t seen = 0;
  serial.Read(kRx, {&seen, 1});
  CHECK(seen == 'e');
}

std::vector<uint8_t> Saved(Uart& uart) {
  std::vector<uint8_t> bytes;
  state::StateEncoder out(&bytes);
  uart.serial.SaveState(out);
  REQUIRE(out.status().ok());
  return bytes;
}

TEST_CASE("A saved port goes on with its registers and what was received") {
  Uart uart;
  uart.Out(kLcr, kDlab);
  uart.Out(kDll, 0x34);
  uart.Out(kDlm, 0x12);
  uart.Out(kLcr, 0x03);
  uart.Out(kFcr, 0x01);
  uart.Out(kScr, 0x5a);
  // Around the end of the buffer.
  REQUIRE(uart.Receive("0123456789ab") == 12);
  for (int i = 0; i < 10; ++i) uart.In(kRx);
  REQUIRE(uart.Receive("cdefghi") == 7);
  uart.Out(kIer, kRdi);
  const auto bytes = Saved(uart);

  Uart again;
  REQUIRE(again.serial.LoadState(state::StateDecoder(bytes)).ok());
  CHECK(again.irq.edges == 0);  // Not before the guest runs.
  CHECK(Saved(again) == bytes);
  again.serial.RaiseAgain();
  CHECK(again.irq.edges == 1);
  CHECK(again.irq.level);
  std::string seen;
  while ((again.In(kLsr) & kDataReady) != 0) {
    seen.push_back(static_cast<char>(again.In(kRx)));
  }
  CHECK(seen == "abcdefghi");
  CHECK_FALSE(again.irq.level);
  CHECK(again.In(kScr) == 0x5a);
  again.Out(kLcr, kDlab);
  CHECK(again.In(kDll) == 0x34);
  CHECK(again.In(kDlm) == 0x12);
}

TEST_CASE("A saved port that cannot be is data loss") {
  Uart uart;
  uart.Out(kFcr, 0x01);
  REQUIRE(uart.Receive("abc") == 3);
  const auto good = Saved(uart);
  for (size_t i = 0; i < good.size(); ++i) {
    auto bad = good;
    bad[i] ^= 0xff;
    Uart other;
    const absl::Status status =
        other.serial.LoadState(state::StateDecoder(bad));
    CHECK((status.ok() || status.code() == absl::StatusCode::kDataLoss));
    other.In(kRx);
  }
  // More than the buffer holds with the FIFO off.
  std::vector<uint8_t> bytes;
  state::StateEncoder out(&bytes);
  out.Unsigned(2, 0);
  out.Text(10, "ab");
  CHECK(uart.serial.LoadState(state::StateDecoder(bytes)).code() ==
        absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace catnap::device
