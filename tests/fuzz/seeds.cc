#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "agent/frame.h"
#include "agent/messages.h"
#include "agent/session.h"
#include "base/byte_order.h"
#include "base/crc32c.h"
#include "disk/layer_format.h"
#include "fuzz/seeds.h"
#include "state/encoder.h"
#include "state/section.h"
#include "support/kernel_images.h"
#include "support/tar_writer.h"

// Writes the seeds of the fuzz corpora. Deterministic: the same code writes
// the same bytes, so a changed seed is a changed format.

namespace catnap::fuzz {
namespace {

using Corpora = std::vector<std::pair<std::string, std::vector<Seed>>>;

// One access as guest_memory_fuzz reads it: operation, "near RAM", address.
void PutAccess(Bytes* to, uint8_t operation, uint32_t gpa) {
  Put(to, operation);
  Put(to, uint8_t{1});
  Put(to, gpa);
}

std::vector<Seed> GuestMemorySeeds() {
  Bytes round_trip;
  PutAccess(&round_trip, 1, 0x1ffc);  // Writes the last 4 bytes below the hole
  Put(&round_trip, uint8_t{4});
  Put(&round_trip, uint32_t{0x04030201});
  PutAccess(&round_trip, 3, 0x1ffc);  // and loads them.
  PutAccess(&round_trip, 2, 0x8000);  // Stores behind the hole
  Put(&round_trip, uint32_t{7});
  PutAccess(&round_trip, 0, 0x8000);  // and reads.
  Put(&round_trip, uint16_t{8});
  Bytes edges;
  PutAccess(&edges, 0, 0x1fff);  // Crosses into the hole.
  Put(&edges, uint16_t{2});
  PutAccess(&edges, 0, 0x2000);  // Empty, at the end.
  Put(&edges, uint16_t{0});
  PutAccess(&edges, 3, 0x8002);  // Not aligned.
  Bytes wrap;
  Put(&wrap, uint16_t{0});  // Reads at the end of the address space.
  Put(&wrap, ~uint64_t{0});
  Put(&wrap, uint16_t{2});
  return {{"round_trip", round_trip}, {"edges", edges}, {"wrap", wrap}};
}

Seed LogText(const std::string& name, uint8_t room, std::string_view text) {
  Bytes bytes = {room};  // log_text_fuzz adds 3.
  bytes.insert(bytes.end(), text.begin(), text.end());
  return {name, bytes};
}

std::vector<Seed> LogTextSeeds() {
  return {
      LogText("plain", 100, "[    0.000000] Linux version 6.1\r\n"),
      LogText("escape", 100, "\x1b[1mbold\x1b[0m\ttab"),
      LogText("utf8", 100, "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x90\xb1"),
      LogText("broken", 100, "\xc0\x80 \xed\xa0\x80 \xf4\x90\x80\x80 \xe2"),
      LogText("cut", 5, "123\xe2\x82\xac 6789"),
  };
}

// One access near the ports, as serial_bus_fuzz reads it: `place` 4 to 11 is
// the first port. Writes an odd `value`, reads for an even one.
void PutPortAccess(Bytes* to, uint8_t place, uint8_t size_log2, uint8_t value) {
  Put(to, uint8_t{3});
  Put(to, place);
  Put(to, size_log2);
  Put(to, value);
}

std::vector<Seed> SerialBusSeeds() {
  const uint8_t check = 2;
  Bytes interrupts;
  PutPortAccess(&interrupts, 6, 0, 0x01);  // FIFO on,
  PutPortAccess(&interrupts, 5, 0, 0x0f);  // all interrupts on,
  PutPortAccess(&interrupts, 4, 0, 'a');   // sends,
  PutPortAccess(&interrupts, 6, 0, 0);     // reads IIR.
  Put(&interrupts, uint8_t{0});            // 20 bytes for the first port.
  Put(&interrupts, uint8_t{20 << 1});
  interrupts.insert(interrupts.end(), 20, uint8_t{'x'});
  Put(&interrupts, check);
  PutPortAccess(&interrupts, 4, 0, 0);  // Reads one.
  Put(&interrupts, check);
  Bytes loopback;
  PutPortAccess(&loopback, 16, 0, 0x1f);  // The second port, which overruns.
  PutPortAccess(&loopback, 13, 0, 0x0d);
  PutPortAccess(&loopback, 12, 0, 'a');
  PutPortAccess(&loopback, 12, 0, 'c');
  Put(&loopback, check);
  Bytes wide;
  PutPortAccess(&wide, 8, 2, 0);     // Four bytes up to the boundary,
  PutPortAccess(&wide, 9, 2, 0);     // across it,
  PutPortAccess(&wide, 2, 2, 0xff);  // into the first port,
  Put(&wide, uint8_t{1});            // and 16 bytes over both.
  Put(&wide, uint64_t{0x3f8});
  Put(&wide, uint8_t{16});
  Put(&wide, uint8_t{0xff});
  return {{"interrupts", interrupts}, {"loopback", loopback}, {"wide", wide}};
}

// A device as acpi_fuzz reads it: "near what is right", page, interrupt.
void PutDevice(Bytes* to, uint8_t page, uint8_t line) {
  Put(to, uint8_t{1});
  Put(to, page);
  Put(to, line);
}

std::vector<Seed> AcpiSeeds() {
  Bytes smallest;
  Put(&smallest, uint8_t{1});  // vCPUs
  Put(&smallest, uint8_t{0});  // Devices
  Bytes largest;
  Put(&largest, uint8_t{32});
  Put(&largest, uint8_t{18});
  for (uint8_t i = 0; i < 18; ++i) PutDevice(&largest, i, i);
  Bytes same_line;
  Put(&same_line, uint8_t{2});
  Put(&same_line, uint8_t{2});
  PutDevice(&same_line, 0, 3);
  PutDevice(&same_line, 1, 3);
  Bytes anywhere;
  Put(&anywhere, uint8_t{1});
  Put(&anywhere, uint8_t{1});
  Put(&anywhere, uint8_t{0});  // Not near what is right:
  Put(&anywhere, uint64_t{0xfebf'f000});
  Put(&anywhere, uint32_t{23});
  return {{"smallest", smallest},
          {"largest", largest},
          {"same_line", same_line},
          {"anywhere", anywhere}};
}

// A kernel as kernel_loader_fuzz reads it: the initramfs's size, the file.
Bytes KernelInput(uint32_t initramfs_size, const Bytes& file) {
  Bytes out;
  Put(&out, initramfs_size);
  out.insert(out.end(), file.begin(), file.end());
  return out;
}

std::vector<Seed> KernelLoaderSeeds() {
  const Bytes elf = testing::MakeElf(
      0x20'0000, {{0x20'0000, testing::Pattern(64, 1), 64},
                  {0x30'0000, testing::Pattern(16, 2), 0x8'0000}});
  // The code behind the entry point at 0x200 is one paragraph.
  const Bytes bzimage = testing::MakeBzImage(testing::Pattern(0x210, 3));
  Bytes fixed = bzimage;
  testing::Patch<uint8_t>(fixed, testing::kBzRelocatable, 0);
  testing::Patch<uint64_t>(fixed, testing::kBzPrefAddress, 0x10'0000);
  Bytes low_initramfs = bzimage;
  testing::Patch<uint32_t>(low_initramfs, testing::kBzInitrdAddrMax, 0x1f'ffff);
  return {{"elf", KernelInput(8192, elf)},
          {"elf_no_initramfs_room", KernelInput(3 << 20, elf)},
          {"bzimage", KernelInput(100'000, bzimage)},
          {"bzimage_fixed", KernelInput(1, fixed)},
          {"bzimage_low_initramfs", KernelInput(4097, low_initramfs)}};
}

std::vector<Seed> StateSeeds() {
  Bytes all_types;
  state::StateEncoder out(&all_types);
  out.Unsigned(1, 300);
  out.Signed(2, -300);
  out.Fixed32(3, 0x01020304);
  out.Fixed64(4, UINT64_MAX);
  out.Text(5, "text");
  {
    const auto nested = out.Message(6);
    out.Bool(1, true);
    const auto inner = out.Message(state::kMaxFieldId);
    out.Text(1, "");
  }
  // Length prefixes of messages around messages, one deeper than allowed.
  Bytes deep;
  for (int i = 0; i <= state::kMaxDepth; ++i) {
    const auto size = static_cast<uint8_t>(deep.size());
    deep.insert(deep.begin(), {0x0c, size, 0, 0, 0});
  }
  const Bytes cut(all_types.begin(), all_types.end() - 3);
  return {{"all_types", all_types},
          {"deep", deep},
          {"cut", cut},
          {"huge_length", {0x0b, 0xff, 0xff, 0xff, 0xff, 0x0f}},
          {"long_varint", {0x08, 0x80, 0x80, 0x00}}};
}

Seed SectionTable(const std::string& name,
                  const std::vector<state::SectionHeader>& headers) {
  Bytes bytes;
  Put(&bytes, uint64_t{1000});  // The file's size,
  Put(&bytes, uint64_t{100});   // and where sections may start.
  for (const state::SectionHeader& header : headers) {
    std::array<uint8_t, state::kSectionHeaderBytes> encoded{};
    state::EncodeSectionHeader(header, encoded);
    bytes.insert(bytes.end(), encoded.begin(), encoded.end());
  }
  return {name, bytes};
}

// Archives as they are, and some that end badly.
std::vector<Seed> RootfsSeeds() {
  const auto seed = [](std::string name, const std::string& tar) {
    return Seed{std::move(name), Bytes(tar.begin(), tar.end())};
  };
  using test::TarWriter;
  const std::string sparse_map = "2\n0\n1\n8192\n1\n";
  return {
      seed("kinds", TarWriter()
                        .Add({.name = "d/", .type = '5', .mode = 01777})
                        .Add({.name = "d/f", .content = "abc", .uid = 7})
                        .Add({.name = "h", .type = '1', .link = "d/f"})
                        .Add({.name = "s", .type = '2', .link = "d"})
                        .Add({.name = "c", .type = '3', .major = 5, .minor = 1})
                        .Add({.name = "p", .type = '6'})
                        .Finish()),
      seed("replaced", TarWriter()
                           .Add({.name = "a/b", .content = "1"})
                           .Add({.name = "a/b", .type = '2', .link = "x"})
                           .Add({.name = "a/b", .type = '5'})
                           .Add({.name = "a/b/c", .content = "2"})
                           .Finish()),
      seed("attributes",
           TarWriter()
               .Add({.name = "x",
                     .pax = {{"SCHILY.xattr.user.a", "b"},
                             {"SCHILY.acl.access",
                              "user::rwx,user:joe:r-x:1000,group::r-x,mask::"
                              "r-x,other::---"},
                             {"mtime", "1.5"}}})
               .Finish()),
      seed("long", TarWriter()
                       .AddLongName(std::string(120, 'n'))
                       .Add({.name = "cut", .content = "1"})
                       .Finish()),
      seed("sparse",
           TarWriter()
               .Add({.name = "GNUSparseFile.0/s",
                     .content = sparse_map +
                                std::string(512 - sparse_map.size(), '\0') +
                                "ab",
                     .pax = {{"GNU.sparse.major", "1"},
                             {"GNU.sparse.minor", "0"},
                             {"GNU.sparse.name", "s"},
                             {"GNU.sparse.realsize", "8193"}}})
               .Finish()),
      seed("up", TarWriter().Add({.name = "../x"}).Finish()),
      seed("cut", TarWriter().Add({.name = "x", .size = 9999}).bytes()),
  };
}

std::vector<Seed> SectionSeeds() {
  state::SectionHeader machine;
  machine.id = state::SectionId::kMachine;
  machine.version = 1;
  machine.critical = true;
  machine.offset = 100;
  machine.length = 50;
  machine.crc32c = 0x12345678;
  state::SectionHeader vcpu = machine;
  vcpu.id = state::SectionId::kVcpu;
  vcpu.instance = 1;
  vcpu.offset = 150;
  state::SectionHeader outside = vcpu;
  outside.length = 10'000;
  return {SectionTable("good", {machine, vcpu}),
          SectionTable("twice", {machine, machine}),
          SectionTable("outside", {machine, outside}),
          SectionTable("empty", {})};
}

// The room for the content, then the frame.
Seed ZstdFrame(const std::string& name, uint16_t room, const Bytes& frame) {
  Bytes bytes;
  Put(&bytes, room);
  bytes.insert(bytes.end(), frame.begin(), frame.end());
  return {name, bytes};
}

std::vector<Seed> ZstdSeeds() {
  // By hand, so that they do not change with zstd's version. A frame of 600
  // bytes that declares its size: single segment, 2 bytes of size (less 256),
  // and one last block of one byte repeated.
  const Bytes declared = {0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x58,
                          0x01, 0xc3, 0x12, 0x00, 'x'};
  // The same content behind a window descriptor of 1 KiB, and of 2^31 bytes.
  const Bytes undeclared = {0x28, 0xb5, 0x2f, 0xfd, 0x00,
                            0x00, 0xc3, 0x12, 0x00, 'x'};
  Bytes huge_window = undeclared;
  huge_window[5] = 21 << 3;
  // Three bytes as they are, with a checksum that is wrong.
  const Bytes bad_sum = {0x28, 0xb5, 0x2f, 0xfd, 0x24, 3, 0x19, 0,
                         0,    'a',  'b',  'c',  1,    2, 3,    4};
  // Says that 2^62 bytes follow.
  const Bytes bomb = {0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0,
                      0,    0,    0,    0,    0x40, 1, 0, 0};
  return {ZstdFrame("declared", 600, declared),
          ZstdFrame("declared_too_large", 599, declared),
          ZstdFrame("undeclared", 600, undeclared),
          ZstdFrame("undeclared_too_large", 599, undeclared),
          ZstdFrame("huge_window", 600, huge_window),
          ZstdFrame("bad_sum", 100, bad_sum),
          ZstdFrame("bomb", 100, bomb)};
}

// One step as virtio_driver_fuzz reads it: operation, queue.
void PutStep(Bytes* to, uint8_t operation, uint8_t queue) {
  Put(to, operation);
  Put(to, queue);
}

void PutDescriptor(Bytes* to, uint8_t queue, uint8_t index, uint32_t gpa,
                   uint16_t length, uint8_t flags, uint8_t next) {
  PutStep(to, 7, queue);
  Put(to, index);
  Put(to, gpa);
  Put(to, length);
  Put(to, flags);
  Put(to, next);
}

std::vector<Seed> VirtioDriverSeeds() {
  std::vector<Seed> seeds;
  const std::array<const char*, 5> names = {"rng_", "balloon_", "vsock_",
                                            "block_", "net_"};
  const std::array<uint8_t, 5> queues = {0, 3, 1, 0, 1};
  for (size_t i = 0; i < names.size(); ++i) {
    const auto device = static_cast<uint8_t>(i);
    const auto name = [&](const char* what) {
      return std::string(names[device]) + what;
    };
    const uint8_t queue = queues[device];
    Bytes good = {device};
    PutStep(&good, 1, 0);  // Starts,
    Put(&good, uint8_t{0});
    PutDescriptor(&good, queue, 0, 0x40001, 64, 1, 1);  // two descriptors
    PutDescriptor(&good, queue, 1, 0x41001, 0x2000, 2, 0);
    PutStep(&good, 10, queue);  // are made available,
    Put(&good, uint8_t{0});
    PutStep(&good, 13, 0);  // a kick,
    PutStep(&good, 3, 0);   // a save and a load,
    Put(&good, uint8_t{0});
    PutStep(&good, 13, 0);  // another kick.
    seeds.push_back({name("good"), good});
    Bytes loop = {device};
    PutStep(&loop, 1, 0);
    Put(&loop, uint8_t{0});
    PutDescriptor(&loop, queue, 0, 0x40001, 1, 1, 0);
    PutStep(&loop, 10, queue);
    Put(&loop, uint8_t{0});
    PutStep(&loop, 13, 0);
    seeds.push_back({name("loop"), loop});
    Bytes registers = {device};
    for (const int at : {0x70, 0x24, 0x20, 0x38, 0x44, 0x50, 0x64}) {
      PutStep(&registers, 0, 0);
      Put(&registers, static_cast<uint16_t>(at));
      Put(&registers, uint8_t{2});
      Put(&registers, uint32_t{15});
    }
    seeds.push_back({name("registers"), registers});
  }
  // Each type of request of a disk. Operation 4 puts a few bytes at an offset
  // from the rings.
  for (const int type : {0, 1, 4, 8, 11, 13}) {
    Bytes request = {3};
    PutStep(&request, 1, 0);
    Put(&request, uint8_t{0});
    PutStep(&request, 4, 0);
    Put(&request, uint16_t{0x3000});  // Behind the rings.
    Put(&request, uint8_t{24});
    Put(&request, static_cast<uint32_t>(type));
    Put(&request, uint32_t{0});
    Put(&request, uint64_t{1});  // The sector; of a range, what it has first.
    Put(&request, uint64_t{1});
    PutDescriptor(&request, 0, 0, 0x13000, 16, 1, 1);
    if (type == 1 || type >= 11) {
      PutDescriptor(&request, 0, 1, 0x13008, type == 1 ? 512 : 16, 1, 2);
    } else {
      PutDescriptor(&request, 0, 1, 0x41001, 512, 3, 2);
    }
    PutDescriptor(&request, 0, 2, 0x42001, 1, 2, 0);
    PutStep(&request, 10, 0);
    Put(&request, uint8_t{0});
    PutStep(&request, 13, 0);
    seeds.push_back({"block_type_" + std::to_string(type), request});
  }
  return seeds;
}

// One packet as vsock_fuzz reads it.
void PutPacket(Bytes* to, uint8_t operation, uint8_t guest_port,
               uint16_t length, uint8_t flags) {
  Put(to, uint8_t{0});
  Put(to, operation);
  Put(to, guest_port);
  Put(to, uint8_t{1});  // Host port.
  Put(to, length);
  Put(to, flags);
  Put(to, uint32_t{65536});  // Its buffer.
  Put(to, uint32_t{0});      // What left it.
}

std::vector<Seed> VsockSeeds() {
  Bytes talk;
  PutPacket(&talk, 1, 7, 0, 0);    // Request.
  PutPacket(&talk, 5, 7, 100, 0);  // Data.
  PutStep(&talk, 4, 0);            // We send
  Put(&talk, uint16_t{5000});
  PutStep(&talk, 5, 0);  // and take.
  Put(&talk, uint16_t{100});
  PutPacket(&talk, 6, 7, 0, 0);  // Credit update.
  PutPacket(&talk, 4, 7, 0, 2);  // Half a shutdown,
  PutPacket(&talk, 4, 7, 0, 3);  // the rest.
  Bytes ours;
  PutStep(&ours, 3, 0);  // We connect,
  PutStep(&ours, 6, 0);  // close for sending,
  PutStep(&ours, 7, 0);  // close.
  PutPacket(&ours, 3, 7, 0, 0);
  PutStep(&ours, 9, 0);  // The transport is reset.
  return {{"talk", talk}, {"ours", ours}};
}

// A connection's first bytes, as the session of a guest sends them.
class SilentHandler final : public agent::Session::Handler {
 public:
  void OnHello(const agent::Hello&) override {}
  void OnPong(agent::Session::Bytes) override {}
  void OnOpen(uint32_t, uint32_t, agent::Session::Bytes) override {}
  void OnData(uint32_t, uint8_t, agent::Session::Bytes, bool) override {}
  void OnMessage(uint32_t, agent::Session::Bytes) override {}
  void OnCredit(uint32_t, uint8_t) override {}
  void OnClose(uint32_t, agent::Session::Bytes) override {}
  void OnReset(uint32_t, agent::ResetCode, std::string_view) override {}
};

Bytes AgentHello() {
  SilentHandler handler;
  const agent::Session session(agent::Session::Role::kGuest, &handler,
                               {.name = "seed"});
  return {session.unsent().begin(), session.unsent().end()};
}

void PutFrame(Bytes* to, agent::FrameType type, uint8_t channel,
              uint32_t stream, const Bytes& body, bool end = false) {
  agent::AppendFrame({.type = type,
                      .channel = channel,
                      .end = end,
                      .stream = stream,
                      .body = body},
                     to);
}

Seed Cut(const std::string& name, uint8_t cut, Bytes bytes) {
  bytes.insert(bytes.begin(), cut);
  return {name, bytes};
}

// The first byte is how the rest is cut.
std::vector<Seed> AgentFrameSeeds() {
  Bytes frames = AgentHello();
  PutFrame(&frames, agent::FrameType::kPing, 0, 0, {1, 2, 3});
  PutFrame(&frames, agent::FrameType::kData, 2, 6, {'h', 'i'}, true);
  Bytes half(frames.begin(), frames.end() - 1);
  return {Cut("whole", 255, frames), Cut("bytes", 0, frames),
          Cut("half", 6, half),
          Cut("long", 255, {0xff, 0xff, 0xff, 0xff, 5, 0, 0, 0, 2, 0, 0, 0})};
}

// What agent_client_fuzz gets: answers to its calls, in their streams.
std::vector<Seed> AgentClientSeeds() {
  using agent::FrameType;
  Bytes good = AgentHello();
  PutFrame(&good, FrameType::kData, agent::kStdout, 2, {'h', 'i'});
  PutFrame(&good, FrameType::kClose, 0, 2, Encode(agent::ExitReport{}));
  PutFrame(&good, FrameType::kData, 0, 4, {'h', 'i'});
  PutFrame(&good, FrameType::kClose, 0, 4, {});
  agent::FileEntry entry;
  entry.type = agent::EntryType::kFile;
  entry.path = "name";
  Bytes list;
  agent::AppendRecord(Encode(entry), &list);
  PutFrame(&good, FrameType::kData, 0, 6, list);
  PutFrame(&good, FrameType::kClose, 0, 6, {});
  PutFrame(&good, FrameType::kClose, 0, 8,
           Encode(agent::FileResult{.entry = entry}));
  Bytes processes;
  state::StateEncoder out(&processes);
  out.Bytes(1, Encode(agent::ProcessEntry{1, 2, {"sh"}, false}));
  PutFrame(&good, FrameType::kClose, 0, 10, processes);
  PutFrame(&good, FrameType::kCredit, 0, 12, {8, 0x80, 0x80, 4});
  PutFrame(&good, FrameType::kClose, 0, 12,
           Encode(agent::FileResult{.error = 28, .text = "full"}));
  PutFrame(&good, FrameType::kPong, 0, 0, {1, 0, 0, 0, 0, 0, 0, 0});
  Bytes service = AgentHello();
  Bytes open;
  state::StateEncoder request(&open);
  request.Unsigned(1, static_cast<uint64_t>(agent::Kind::kService));
  request.Bytes(2, Encode(agent::PortRequest{80}));
  PutFrame(&service, FrameType::kOpen, 0, 1, open);
  PutFrame(&service, FrameType::kData, 0, 1, Bytes(200, 'x'), true);
  PutFrame(&service, FrameType::kReset, 0, 1, {8, 2});
  PutFrame(&service, FrameType::kPing, 0, 0, {});
  Bytes sleep = AgentHello();
  PutFrame(&sleep, FrameType::kClose, 0, 14,
           Encode(agent::SleepResult{.flush_ns = 7, .freeze_ns = 9}));
  PutFrame(&sleep, FrameType::kClose, 0, 16,
           Encode(agent::SleepResult{.text = "machine-id: no"}));
  PutFrame(&sleep, FrameType::kClose, 0, 18,
           Encode(agent::SleepResult{.error = 1, .text = "no"}));
  return {Cut("good", 255, good), Cut("bytes", 0, good),
          Cut("service", 40, service), Cut("sleep", 255, sleep)};
}

// The first byte is the message, in the order of agent_messages_fuzz.
std::vector<Seed> AgentMessageSeeds() {
  agent::ExecRequest exec;
  exec.argv = {"sh", "-c", "true"};
  exec.env = {"A=b"};
  exec.pty = agent::WindowSize{};
  exec.stdin_data = "data";
  agent::FileEntry entry;
  entry.type = agent::EntryType::kSymlink;
  entry.path = "a/b";
  entry.mtime_ns = -1;
  entry.link = "c";
  Bytes records;
  agent::AppendRecord(Encode(entry), &records);
  agent::AppendRecord({}, &records);
  agent::WakeRequest wake;
  wake.is_copy = true;
  wake.wall_ns = 1'700'000'000'000'000'000;
  wake.entropy = {1, 2, 3, 4};
  wake.hostname = "fork-1";
  wake.machine_id = agent::MachineId{1, 2};
  wake.generation = 7;
  wake.mac = agent::MacAddress{2, 0, 0, 0, 0, 1};
  wake.connections = agent::Connections::kDestroy;
  wake.set_env = true;
  wake.env = {"A=b"};
  return {
      Cut("exec", 0, Encode(exec)),
      Cut("started", 1, Encode(agent::Started{1, 2})),
      Cut("control", 2,
          Encode(agent::ExecControl{.signal = 9, .window = exec.pty})),
      Cut("report", 3, Encode(agent::ExitReport{.signal = 9, .text = "no"})),
      Cut("process", 4, Encode(agent::ProcessEntry{1, 2, {"sh"}, false})),
      Cut("file", 5, Encode(agent::FileRequest{.path = "/a", .data = "d"})),
      Cut("entry", 6, Encode(entry)),
      Cut("result", 7, Encode(agent::FileResult{.error = 2, .entry = entry})),
      Cut("port", 8, Encode(agent::PortRequest{80})),
      Cut("records", 9, records),
      Cut("freeze", 10,
          Encode(agent::FreezeRequest{.bound_ms = 50, .flush = true})),
      Cut("wake", 11, Encode(wake)),
      Cut("slept", 12,
          Encode(agent::SleepResult{
              .error = 110, .text = "no", .flush_ns = 1, .freeze_ns = 2}))};
}

// A layer file as cow_layer_fuzz reads it: "make checksums right", a place of
// the disk, then pairs of a count of zeroes and of bytes that follow them.
Seed LayerFile(const std::string& name, uint8_t fix, const Bytes& file) {
  Bytes out;
  Put(&out, fix);
  Put(&out, uint32_t{100});
  constexpr size_t kStep = 64;
  size_t zeroes = 0;
  for (size_t at = 0; at < file.size(); at += kStep) {
    const Bytes piece(file.begin() + static_cast<ptrdiff_t>(at),
                      file.begin() + static_cast<ptrdiff_t>(at + kStep));
    const bool empty = piece == Bytes(kStep);
    if (empty && at + kStep < file.size()) {
      zeroes += kStep;
      continue;
    }
    for (; zeroes > kStep * 1000; zeroes -= kStep * 1000) {
      Put(&out, static_cast<uint16_t>(kStep * 1000));
      Put(&out, uint16_t{0});
    }
    Put(&out, static_cast<uint16_t>(zeroes));
    Put(&out, static_cast<uint16_t>(kStep));
    out.insert(out.end(), piece.begin(), piece.end());
    zeroes = 0;
  }
  return {name, out};
}

// A layer of 64 MiB without a parent: root in page 3, directory in page 4, map
// in page 5, and one block of data in the second cluster.
Bytes MakeLayer(const disk::MapEntry& first, const disk::MapEntry& second) {
  Bytes file(2 * disk::kClusterBytes);
  const std::span<uint8_t> all(file);
  const auto pointer = [&](uint32_t page) {
    const disk::PagePointer to{
        page,
        base::Crc32c(all.subspan(page * disk::kPageBytes, disk::kPageBytes))};
    return disk::PackPointer(to);
  };
  const auto at = [&](uint32_t page) { return &file[page * disk::kPageBytes]; };
  base::StoreLe<uint64_t>(at(5), disk::PackEntry(first));
  base::StoreLe<uint64_t>(at(5) + 8, disk::PackEntry(second));
  base::StoreLe<uint64_t>(at(4), pointer(5));
  base::StoreLe<uint64_t>(at(3), pointer(4));
  disk::EncodeHeader({}, all.first<disk::kHeaderBytes>());
  disk::CommitRecord commit;
  commit.sequence = 2;
  commit.virtual_bytes = uint64_t{64} << 20;
  commit.root = disk::UnpackPointer(pointer(3));
  disk::EncodeCommit(
      commit, all.subspan(disk::CommitOffset(2)).first<disk::kCommitBytes>());
  file[disk::kClusterBytes] = 'd';
  return file;
}

std::vector<Seed> CowLayerSeeds() {
  const disk::MapEntry data{1, 1, 2};
  const Bytes good = MakeLayer(data, {0, 0, 0xffff});
  return {LayerFile("good", 0, good), LayerFile("to_change", 1, good),
          LayerFile("used_twice", 0, MakeLayer(data, data)),
          LayerFile("data_in_the_map", 0, MakeLayer({0, 1, 0}, {})),
          LayerFile("behind_the_end", 0, MakeLayer({9, 1, 0}, {}))};
}

bool Write(const std::filesystem::path& corpus, const std::string& target,
           const std::vector<Seed>& seeds) {
  std::filesystem::create_directories(corpus / target);
  for (const Seed& seed : seeds) {
    std::ofstream out(corpus / target / seed.name, std::ios::binary);
    out.write(reinterpret_cast<const char*>(seed.bytes.data()),
              static_cast<std::streamsize>(seed.bytes.size()));
    out.flush();
    if (!out) {
      std::fprintf(stderr, "cannot write %s/%s\n", target.c_str(),
                   seed.name.c_str());
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace catnap::fuzz

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER\n", argv[0]);
    return 2;
  }
  const catnap::fuzz::Corpora corpora = {
      {"acpi_fuzz", catnap::fuzz::AcpiSeeds()},
      {"agent_client_fuzz", catnap::fuzz::AgentClientSeeds()},
      {"agent_messages_fuzz", catnap::fuzz::AgentMessageSeeds()},
      {"agent_frame_fuzz", catnap::fuzz::AgentFrameSeeds()},
      {"cow_layer_fuzz", catnap::fuzz::CowLayerSeeds()},
      {"guest_memory_fuzz", catnap::fuzz::GuestMemorySeeds()},
      {"kernel_loader_fuzz", catnap::fuzz::KernelLoaderSeeds()},
      {"log_text_fuzz", catnap::fuzz::LogTextSeeds()},
      {"machine_state_fuzz", catnap::fuzz::MachineStateSeeds()},
      {"rootfs_fuzz", catnap::fuzz::RootfsSeeds()},
      {"serial_bus_fuzz", catnap::fuzz::SerialBusSeeds()},
      {"image_record_fuzz", catnap::fuzz::ImageRecordSeeds()},
      {"net_dhcp_fuzz", catnap::fuzz::NetDhcpSeeds()},
      {"net_dns_fuzz", catnap::fuzz::NetDnsSeeds()},
      {"net_gate_fuzz", catnap::fuzz::NetGateSeeds()},
      {"net_stream_fuzz", catnap::fuzz::NetStreamSeeds()},
      {"section_table_fuzz", catnap::fuzz::SectionSeeds()},
      {"snapshot_index_fuzz", catnap::fuzz::SnapshotIndexSeeds()},
      {"snapshot_reader_fuzz", catnap::fuzz::SnapshotReaderSeeds()},
      {"state_decoder_fuzz", catnap::fuzz::StateSeeds()},
      {"virtio_driver_fuzz", catnap::fuzz::VirtioDriverSeeds()},
      {"vm_record_fuzz", catnap::fuzz::VmRecordSeeds()},
      {"vsock_fuzz", catnap::fuzz::VsockSeeds()},
      {"zstd_decompress_fuzz", catnap::fuzz::ZstdSeeds()},
  };
  for (const auto& [target, seeds] : corpora) {
    if (!catnap::fuzz::Write(argv[1], target, seeds)) return 1;
  }
  return 0;
}
