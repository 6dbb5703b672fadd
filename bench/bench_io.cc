#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "agent/files.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/unique_fd.h"
#include "disk/cow_layer.h"
#include "disk/loop_file.h"
#include "disk/raw_disk.h"
#include "guest.h"
#include "harness.h"
#include "io/event_loop.h"
#include "kvm/system.h"
#include "net/link.h"
#include "net/policy.h"
#include "peers/network.h"
#include "peers/qemu_guest.h"
#include "room.h"
#include "runtime/port_forward.h"
#include "runtime/root_disk.h"

// Data in and out of a running guest: its disk, its files, its sockets, its
// network, beside QEMU's microvm; README.md says what the clocks cover.

namespace catnap::bench {
namespace {

using Clock = std::chrono::steady_clock;
namespace fs = std::filesystem;

constexpr int kDefaultSamples = 3;
constexpr uint64_t kGuestBytes = 1024ull << 20;
constexpr uint64_t kDiskBytes = 256ull << 20;
constexpr uint64_t kStreamBytes = 256ull << 20;
constexpr uint64_t kForwardBytes = 64ull << 20;
constexpr uint64_t kNetBytes = 8ull << 20;
constexpr int kFiles = 10'000;
constexpr size_t kFileBytes = 1024;
constexpr int kFilesOfDirectory = 100;
constexpr int kRequests = 10'000;
constexpr int kPings = 2'000;
constexpr const char* kPeer = "/usr/local/bin/guest_peer";
constexpr double kMiB = 1 << 20;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// --- The host's files --------------------------------------------------------

// The file's bytes are no holes, and no two blocks are the same.
void WriteFileOf(const std::string& path, uint64_t bytes) {
  std::ofstream out(path, std::ios::binary);
  std::vector<uint64_t> block(8192);
  for (uint64_t at = 0; at < bytes; at += block.size() * 8) {
    for (size_t i = 0; i < block.size(); ++i) block[i] = at + i * 2'654'435'761;
    out.write(reinterpret_cast<const char*>(block.data()),
              static_cast<std::streamsize>(
                  std::min<uint64_t>(block.size() * 8, bytes - at)));
  }
  out.flush();
  if (!out) Check(path.c_str(), absl::InternalError("cannot write"));
}

void WriteTree(const std::string& path) {
  for (int i = 0; i < kFiles; ++i) {
    const std::string directory =
        path + "/" + std::to_string(i / kFilesOfDirectory);
    if (i % kFilesOfDirectory == 0) fs::create_directories(directory);
    std::ofstream(directory + "/" + std::to_string(i))
        << std::string(kFileBytes, static_cast<char>('a' + i % 26));
  }
}

std::shared_ptr<disk::LoopFile> OpenFile(const std::string& path, int flags,
                                         io::EventLoop* loop) {
  auto file = disk::LoopFile::Open(path, flags, loop);
  Check(path.c_str(), file.status());
  return *std::move(file);
}

// A layer as a MicroVM's root has it; null `base`: on zeroes.
vmm::DiskDevice MakeLayer(const std::string& path, const std::string& base,
                          const char* serial, io::EventLoop* loop) {
  auto file = OpenFile(path, O_RDWR | O_CREAT | O_TRUNC, loop);
  absl::StatusOr<std::shared_ptr<disk::CowLayer>> layer;
  if (base.empty()) {
    layer = disk::CowLayer::Create(std::move(file), kDiskBytes, nullptr, {});
  } else {
    auto raw = disk::RawDisk::Create(OpenFile(base, O_RDONLY, loop), {});
    Check(base.c_str(), raw.status());
    layer = disk::CowLayer::CreateOnTop(std::move(file), *std::move(raw), {});
  }
  Check(path.c_str(), layer.status());
  return {.disk = *layer, .serial = serial, .cancel_parked = [disk = *layer] {
            disk->CancelParked();
          }};
}

// --- Streams -----------------------------------------------------------------

// The host's end of a stream to a peer in the guest, used by one thread.
class VsockEnd final : public vmm::GuestSocketHandler {
 public:
  // Connects, and again until the guest listens.
  static std::shared_ptr<VsockEnd> Connect(vmm::GuestSockets* sockets,
                                           uint32_t port) {
    while (true) {
      auto end = std::make_shared<VsockEnd>(sockets);
      const auto id = sockets->Connect(port, end);
      Check("connect", id.status());
      end->id_ = *id;
      if (end->WaitConnected()) return end;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  }

  explicit VsockEnd(vmm::GuestSockets* sockets) : sockets_(sockets) {}

  void OnConnected() override {
    const base::MutexLock lock(&mutex_);
    connected_ = true;
    changed_.NotifyAll();
  }
  void OnData(std::span<const uint8_t> bytes) override {
    sockets_->Consumed(id_, bytes.size());
    const base::MutexLock lock(&mutex_);
    received_ += bytes.size();
    changed_.NotifyAll();
  }
  void OnWritable() override {
    const base::MutexLock lock(&mutex_);
    writable_ = true;
    changed_.NotifyAll();
  }
  void OnClosed(const absl::Status& /*why*/) override {
    const base::MutexLock lock(&mutex_);
    closed_ = true;
    changed_.NotifyAll();
  }

  void Send(std::span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      {
        const base::MutexLock lock(&mutex_);
        writable_ = false;
      }
      const auto sent = sockets_->Send(id_, bytes);
      Check("send", sent.status());
      bytes = bytes.subspan(*sent);
      if (bytes.empty()) return;
      const base::MutexLock lock(&mutex_);
      while (!writable_ && !closed_) changed_.Wait(&mutex_);
    }
  }
  void CloseSend() { sockets_->CloseSend(id_); }
  // Waits for `bytes` more.
  void Receive(uint64_t bytes) {
    const base::MutexLock lock(&mutex_);
    taken_ += bytes;
    while (received_ < taken_) {
      if (closed_) Check("receive", absl::UnavailableError("closed"));
      changed_.Wait(&mutex_);
    }
  }
  void Close() { sockets_->Close(id_); }

 private:
  bool WaitConnected() {
    const base::MutexLock lock(&mutex_);
    while (!connected_ && !closed_) changed_.Wait(&mutex_);
    return connected_;
  }

  vmm::GuestSockets* const sockets_;  // Not owned.
  vmm::GuestSocketId id_;             // Before the first byte.
  base::Mutex mutex_;
  base::CondVar changed_;
  bool connected_ ABSL_GUARDED_BY(mutex_) = false;
  bool writable_ ABSL_GUARDED_BY(mutex_) = false;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t received_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
};

// The same by TCP to a forwarded port.
class TcpEnd {
 public:
  explicit TcpEnd(uint16_t port) : fd_(ConnectTo(port)) {}

  void Send(std::span<const uint8_t> bytes) {
    while (!bytes.empty()) {
      const ssize_t sent = ::write(fd_.get(), bytes.data(), bytes.size());
      if (sent <= 0) Check("send", absl::UnavailableError("failed"));
      bytes = bytes.subspan(static_cast<size_t>(sent));
    }
  }
  void CloseSend() { ShutdownSend(fd_.get()); }
  void Receive(uint64_t bytes) {
    std::vector<uint8_t> buffer(64 << 10);
    while (bytes > 0) {
      const ssize_t got = ::read(fd_.get(), buffer.data(),
                                 std::min<uint64_t>(bytes, buffer.size()));
      if (got <= 0) Check("receive", absl::UnavailableError("failed"));
      bytes -= static_cast<uint64_t>(got);
    }
  }
  void Close() { fd_ = base::UniqueFd(); }

 private:
  base::UniqueFd fd_;
};

template <typename End>
void SendMuch(End& end, uint64_t bytes) {
  const std::vector<uint8_t> block(64 << 10, 0x5a);
  for (uint64_t sent = 0; sent < bytes; sent += block.size()) end.Send(block);
  end.CloseSend();
  end.Receive(1);
}

template <typename End>
void SendAndReceiveOne(End& end) {
  const std::array<uint8_t, 1> byte = {1};
  end.Send(byte);
  end.Receive(1);
}

// --- The measurements --------------------------------------------------------

class Bench {
 public:
  explicit Bench(Report* report) : report_(*report) {
    auto system = kvm::System::Open();
    Check("open KVM", system.status());
    system_ = *std::move(system);
    auto loop = io::EventLoop::Create({});
    Check("event loop", loop.status());
    loop_ = *std::move(loop);
    std::fprintf(stderr, "making the root disk\n");
    Check("root disk",
          runtime::BuildRootDisk({.kind = runtime::RootSource::Kind::kTar,
                                  .path = FindRootfs(CATNAP_SOURCE_DIR)},
                                 room_ / "root.ext4", uint64_t{4} << 30));
  }

  void Run() {
    if (Wanted("mem/")) MeasureMemory();
    std::fprintf(stderr, "starting the guest\n");
    StartGuest();
    if (Wanted("io/user_exits")) CountExits();
    if (Wanted("io/blk")) MeasureDisk();
    if (Wanted("io/vsock") || Wanted("io/copy") || Wanted("io/tar")) {
      MeasureFiles();
    }
    if (Wanted("io/vsock_ping") || Wanted("io/forward")) MeasurePorts();
    guest_.reset();
    if (Wanted("io/net")) MeasureNetwork();
  }

 private:
  // Whether the filter may name metrics that start so.
  bool Wanted(const std::string& prefix) const {
    const std::string& filter = report_.options().filter;
    return filter.find(prefix) != std::string::npos ||
           prefix.find(filter) != std::string::npos;
  }
  int samples() const { return report_.options().samples; }
  void AddRate(const std::string& name, uint64_t bytes, double seconds) {
    report_.Add(name, "MiB/s", static_cast<double>(bytes) / kMiB / seconds);
  }
  void AddRatio(const std::string& name, const std::string& of,
                const std::string& to) {
    report_.Add(name, "ratio", report_.Median(of) / report_.Median(to));
  }

  std::unique_ptr<Guest> MakeGuest(uint64_t memory_bytes, const char* layer,
                                   bool with_data,
                                   std::shared_ptr<net::Link> link) {
    vmm::GuestDevices devices;
    devices.disks.push_back(
        MakeLayer(room_ / layer, room_ / "root.ext4", "root", loop_.get()));
    if (with_data) {
      devices.disks.push_back(
          MakeLayer(room_ / "data.layer", "", "data", loop_.get()));
    }
    devices.link = std::move(link);
    return std::make_unique<Guest>(system_, loop_.get(), memory_bytes,
                                   std::move(devices));
  }
  void StartGuest() {
    guest_ = MakeGuest(kGuestBytes, "root.layer", /*with_data=*/true, nullptr);
    guest_->CopyIn(CATNAP_GUEST_PEER, kPeer);
  }

  void MeasureMemory();
  void CountExits();
  void MeasureDisk();
  void MeasureFiles();
  void MeasurePorts();
  void MeasureNetwork();

  Report& report_;
  base::SystemClock clock_;
  const Room room_;
  std::shared_ptr<const kvm::System> system_;
  std::unique_ptr<io::EventLoop> loop_;
  std::unique_ptr<Guest> guest_;
};

// Resident bytes of this process that are not in `guests`' memory.
uint64_t ResidentWithout(const std::vector<std::unique_ptr<Guest>>& guests) {
  std::ifstream maps("/proc/self/smaps");
  uint64_t sum = 0;
  bool counts = true;
  for (std::string line; std::getline(maps, line);) {
    uint64_t start = 0;
    const auto parsed =
        std::from_chars(line.data(), line.data() + line.size(), start, 16);
    const auto parsed_bytes = static_cast<size_t>(parsed.ptr - line.data());
    if (parsed.ec == std::errc() && parsed_bytes < line.size() &&
        line[parsed_bytes] == '-') {
      counts = std::none_of(
          guests.begin(), guests.end(), [start](const auto& guest) {
            const auto base = reinterpret_cast<uintptr_t>(
                guest->machine().memory().host_base());
            return start >= base &&
                   start < base + guest->machine().config().memory_bytes;
          });
    } else if (counts && line.rfind("Rss:", 0) == 0) {
      sum += std::strtoull(line.c_str() + 4, nullptr, 10) << 10;
    }
  }
  return sum;
}

int64_t CountDescriptors() {
  return std::distance(fs::directory_iterator("/proc/self/fd"),
                       fs::directory_iterator());
}

// Each guest like a MicroVM's: root disk, network, an exec done.
void Bench::MeasureMemory() {
  std::vector<std::unique_ptr<Guest>> guests;
  constexpr uint64_t kSmall = 256ull << 20;
  const auto add = [&](const char* layer) {
    auto link = net::Link::Create({}, loop_.get());
    Check("link", link.status());
    guests.push_back(
        MakeGuest(kSmall, layer, /*with_data=*/false, *std::move(link)));
    guests.back()->Exec({"/bin/true"});
  };
  add("first.layer");  // Brings what all share.
  const uint64_t resident = ResidentWithout(guests);
  const int64_t descriptors = CountDescriptors();
  add("second.layer");
  add("third.layer");
  const double more = 2;
  report_.Add("mem/vmm_per_vm_kib", "KiB",
              (static_cast<double>(ResidentWithout(guests)) -
               static_cast<double>(resident)) /
                  1024 / more);
  report_.Add("mem/descriptors_per_vm", "count",
              static_cast<double>(CountDescriptors() - descriptors) / more);
  // Once it has done all that it does: the kernel adds pages up every 64
  // faults.
  const std::string file = room_ / "file";
  WriteFileOf(file, kStreamBytes / 4);
  for (int i = 0; i < 100; ++i) guests[0]->Exec({"/bin/true"});
  guests[0]->CopyIn(file, "/srv-file");
  Check("copy out", agent::CopyOut(guests[0]->client(), "/srv-file",
                                   room_ / "file-out", {}, Soon()));
  const std::string status = guests[0]->Shell("cat /proc/1/status");
  const size_t rss = status.find("VmRSS:");
  if (rss == std::string::npos) Check("resident", absl::DataLossError(status));
  report_.Add("mem/agent_resident_kib", "KiB",
              std::strtod(&status[rss + 6], nullptr));
  report_.Add("mem/agent_binary_kib", "KiB",
              static_cast<double>(fs::file_size(std::string(CATNAP_GUEST_DIR) +
                                                "/catnap-agent")) /
                  1024);
}

// What fio's terse line of version 3 says: field `index` of the first job.
double FioField(const std::string& text, size_t index) {
  size_t at = text.find("3;fio-");
  for (size_t i = 0; i < index && at != std::string::npos; ++i) {
    at = text.find(';', at);
    if (at != std::string::npos) ++at;
  }
  if (at == std::string::npos) Check("fio", absl::InternalError(text));
  return std::strtod(text.c_str() + at, nullptr);
}
constexpr size_t kReadKiBs = 6;
constexpr size_t kReadIops = 7;
constexpr size_t kWriteKiBs = 47;
constexpr size_t kWriteIops = 48;

std::string Fio(const std::string& disk, const std::string& job) {
  return "fio --name=job --filename=/dev/" + disk +
         " --direct=1 --ioengine=libaio --size=256m --output-format=terse "
         "--terse-version=3 " +
         job;
}
constexpr const char* kFill = "--rw=write --bs=1m --iodepth=8";
// Jobs take turns over short times; each begins with requests that do not
// count.
constexpr const char* kTimed = " --time_based --ramp_time=1s --runtime=3s";

void Bench::CountExits() {
  guest_->Shell(Fio("vdb", kFill));
  const std::string job = "--rw=randread --bs=4k --iodepth=16 --number_ios=" +
                          std::to_string(kRequests);
  guest_->Shell(std::string(kPeer) + " vsock-echo 7000 >/dev/null 2>&1 &");
  const auto end = VsockEnd::Connect(&guest_->sockets(), 7000);
  SendAndReceiveOne(*end);
  const uint64_t before = guest_->machine().user_exits();
  guest_->Shell(Fio("vdb", job));
  for (int i = 0; i < kRequests; ++i) SendAndReceiveOne(*end);
  report_.Add("io/user_exits_per_10000_requests", "count",
              static_cast<double>(guest_->machine().user_exits() - before));
  end->Close();
}

void Bench::MeasureDisk() {
  const std::string plain = room_ / "qemu.raw";
  WriteFileOf(plain, kDiskBytes);
  const std::string direct = room_ / "qemu_direct.raw";
  WriteFileOf(direct, kDiskBytes);
  std::fprintf(stderr, "starting QEMU\n");
  QemuGuest qemu(
      {.disks = {{.path = room_ / "root.ext4",
                  .serial = "root",
                  .read_only = true},
                 {.path = plain, .serial = "plain"},
                 {.path = direct, .serial = "direct", .direct = true}},
       .initramfs = room_ / "qemu.initramfs",
       .network_socket = {}});
  struct Vmm {
    std::string suffix;
    std::string disk;
    std::function<std::string(const std::string&)> shell;
  };
  const auto in_qemu = [&qemu](const std::string& text) {
    return qemu.Shell(text);
  };
  const std::array<Vmm, 3> vmms = {
      Vmm{"", "vdb",
          [this](const std::string& text) { return guest_->Shell(text); }},
      Vmm{"/qemu", qemu.DiskOf("plain"), in_qemu},
      Vmm{"/qemu_direct", qemu.DiskOf("direct"), in_qemu}};
  for (const Vmm& vmm : vmms) vmm.shell(Fio(vmm.disk, kFill));
  struct Job {
    const char* name;
    const char* options;
    size_t field;
    double scale;
    const char* unit;
  };
  const std::array<Job, 5> jobs = {
      Job{"io/blk_seq_read", "--rw=read --bs=256k --iodepth=8", kReadKiBs,
          1.0 / 1024, "MiB/s"},
      Job{"io/blk_seq_write", "--rw=write --bs=256k --iodepth=8", kWriteKiBs,
          1.0 / 1024, "MiB/s"},
      Job{"io/blk_rand_read", "--rw=randread --bs=4k --iodepth=32", kReadIops,
          1, "op/s"},
      Job{"io/blk_rand_write", "--rw=randwrite --bs=4k --iodepth=32",
          kWriteIops, 1, "op/s"},
      Job{"io/blk_fsync", "--rw=randwrite --bs=4k --iodepth=1 --fdatasync=1",
          kWriteIops, 1, "op/s"}};
  for (int sample = 0; sample < samples(); ++sample) {
    for (const Job& job : jobs) {
      for (const Vmm& vmm : vmms) {
        const std::string text =
            vmm.shell(Fio(vmm.disk, std::string(job.options) + kTimed));
        report_.Add(job.name + vmm.suffix, job.unit,
                    FioField(text, job.field) * job.scale);
      }
    }
  }
  for (const Job& job : jobs) {
    const std::string name = job.name;
    AddRatio(name + "_to_qemu", name, name + "/qemu");
    AddRatio(name + "_to_qemu_direct", name, name + "/qemu_direct");
  }
}

void Bench::MeasureFiles() {
  const std::string file = room_ / "file";
  const std::string tree = room_ / "tree";
  WriteFileOf(file, kStreamBytes);
  WriteTree(tree);
  guest_->Shell(std::string(kPeer) + " vsock-sink 7001 >/dev/null 2>&1 &");
  guest_->Shell(std::string(kPeer) +
                " vsock-store 7004 /srv/stored >/dev/null 2>&1 &");
  guest_->Shell(std::string(kPeer) + " vsock-source 7002 " +
                std::to_string(kStreamBytes) + " >/dev/null 2>&1 &");
  guest_->Shell("mkdir -p /srv");
  guest_->CopyIn(tree, "/srv/tree");
  guest_->Shell("tar cf /srv/tree.tar -C /srv/tree . && rm -rf /srv/tree");
  for (int sample = 0; sample < samples(); ++sample) {
    {
      const auto end = VsockEnd::Connect(&guest_->sockets(), 7001);
      const auto start = Clock::now();
      SendMuch(*end, kStreamBytes);
      AddRate("io/vsock_to_guest", kStreamBytes, SecondsSince(start));
      end->Close();
    }
    {
      const auto start = Clock::now();
      const auto end = VsockEnd::Connect(&guest_->sockets(), 7002);
      end->Receive(kStreamBytes);
      AddRate("io/vsock_from_guest", kStreamBytes, SecondsSince(start));
      end->Send(std::array<uint8_t, 1>{});  // It waits for that.
      end->Close();
    }
    {
      const auto end = VsockEnd::Connect(&guest_->sockets(), 7004);
      const auto start = Clock::now();
      SendMuch(*end, kStreamBytes);
      AddRate("io/vsock_to_guest_file", kStreamBytes, SecondsSince(start));
      end->Close();
      guest_->Shell("rm /srv/stored; sync");
    }
    {
      const auto start = Clock::now();
      guest_->CopyIn(file, "/srv/file");
      AddRate("io/copy_in_256MiB", kStreamBytes, SecondsSince(start));
    }
    {
      const std::string to = room_ / "out";
      const auto start = Clock::now();
      Check("copy out",
            agent::CopyOut(guest_->client(), "/srv/file", to, {}, Soon()));
      AddRate("io/copy_out_256MiB", kStreamBytes, SecondsSince(start));
      fs::remove_all(to);
    }
    guest_->Shell("rm /srv/file; sync");
    {
      const auto start = Clock::now();
      guest_->CopyIn(tree, "/srv/tree");
      report_.Add("io/copy_in_10000_files", "s", SecondsSince(start));
    }
    {
      const std::string to = room_ / "out";
      const auto start = Clock::now();
      Check("copy out",
            agent::CopyOut(guest_->client(), "/srv/tree", to, {}, Soon()));
      report_.Add("io/copy_out_10000_files", "s", SecondsSince(start));
      fs::remove_all(to);
    }
    guest_->Shell("rm -r /srv/tree; sync; mkdir /srv/tree");
    {
      const auto start = Clock::now();
      guest_->Exec({"/bin/tar", "xf", "/srv/tree.tar", "-C", "/srv/tree"});
      report_.Add("io/tar_in_guest", "s", SecondsSince(start));
    }
    guest_->Shell("rm -r /srv/tree; sync");
  }
  AddRatio("io/copy_in_256MiB_to_vsock", "io/copy_in_256MiB",
           "io/vsock_to_guest");
  AddRatio("io/copy_in_256MiB_to_vsock_file", "io/copy_in_256MiB",
           "io/vsock_to_guest_file");
  AddRatio("io/copy_in_10000_files_to_tar", "io/copy_in_10000_files",
           "io/tar_in_guest");
}

void Bench::MeasurePorts() {
  guest_->Shell(std::string(kPeer) + " vsock-echo 7003 >/dev/null 2>&1 &");
  guest_->Shell(std::string(kPeer) + " tcp-echo 7003 >/dev/null 2>&1 &");
  guest_->Shell(std::string(kPeer) + " tcp-sink 7001 >/dev/null 2>&1 &");
  const auto forward = [this](uint16_t port) {
    runtime::PortForwardOptions options;
    options.loop = loop_.get();
    options.traffic = std::make_shared<runtime::Traffic>(&clock_);
    options.guest_port = port;
    options.clients = [this](runtime::ClientDone done) {
      std::move(done)(guest_->shared_client());
    };
    auto made = runtime::PortForward::Create(std::move(options));
    Check("forward", made.status());
    return *std::move(made);
  };
  const auto echo = forward(7003);
  const auto sink = forward(7001);
  const auto vsock = VsockEnd::Connect(&guest_->sockets(), 7003);
  TcpEnd tcp(echo->port());
  SendAndReceiveOne(*vsock);
  SendAndReceiveOne(tcp);
  for (int i = 0; i < kPings; ++i) {
    auto start = Clock::now();
    SendAndReceiveOne(*vsock);
    report_.AddMicros("io/vsock_ping", Clock::now() - start);
    start = Clock::now();
    SendAndReceiveOne(tcp);
    report_.AddMicros("io/forward_ping", Clock::now() - start);
  }
  vsock->Close();
  for (int sample = 0; sample < samples(); ++sample) {
    const auto start = Clock::now();
    TcpEnd end(sink->port());
    SendMuch(end, kForwardBytes);
    AddRate("io/forward_to_guest", kForwardBytes, SecondsSince(start));
    constexpr int kConnections = 50;
    const auto first = Clock::now();
    for (int i = 0; i < kConnections; ++i) {
      TcpEnd one(sink->port());
      one.CloseSend();
      one.Receive(1);
    }
    report_.Add("io/forward_connections", "1/s",
                kConnections / SecondsSince(first));
  }
}

// Both guests behind a passt of their own; ours with a policy that is asked
// about every frame.
void Bench::MeasureNetwork() {
  const TcpServer sink(0);
  const TcpServer source(kNetBytes);
  auto link = net::Link::Create({}, loop_.get());
  Check("link", link.status());
  auto policy = net::Policy::Compile({.mode = net::PolicyMode::kUnrestricted});
  Check("policy", policy.status());
  (*link)->SetPolicy(*std::move(policy));
  guest_ = MakeGuest(kGuestBytes, "net.layer", /*with_data=*/false,
                     *std::move(link));
  guest_->CopyIn(CATNAP_GUEST_PEER, kPeer);
  // QEMU's root is read-only: the peer is on a disk of its own.
  const std::string peer_disk = room_ / "peer.raw";
  fs::copy_file(CATNAP_GUEST_PEER, peer_disk);
  const uint64_t peer_bytes = fs::file_size(peer_disk);
  fs::resize_file(peer_disk, (peer_bytes + 4095) / 4096 * 4096);
  const Passt passt(room_ / "passt");
  QemuGuest qemu(
      {.disks = {{.path = room_ / "root.ext4",
                  .serial = "root",
                  .read_only = true},
                 {.path = peer_disk, .serial = "peer", .read_only = true}},
       .initramfs = room_ / "net.initramfs",
       .network_socket = room_ / "passt"});
  qemu.Shell("cp /dev/" + qemu.DiskOf("peer") +
             " /tmp/guest_peer; chmod +x /tmp/guest_peer");
  const std::string up =
      " net-up eth0 10.233.117.2 255.255.255.248 10.233.117.1";
  qemu.Shell("/tmp/guest_peer" + up);
  guest_->Shell(kPeer + up);
  const auto transfer = [](const char* what, const TcpServer& server) {
    return " " + std::string(what) + " " + HostNetwork::kAddress + " " +
           std::to_string(server.port()) + " " + std::to_string(kNetBytes);
  };
  const auto add = [this](const std::string& name, const std::string& text) {
    const double nanos = std::strtod(text.c_str(), nullptr);
    if (nanos <= 0) Check(name.c_str(), absl::InternalError(text));
    AddRate(name, kNetBytes, nanos / 1e9);
  };
  for (int sample = 0; sample < samples(); ++sample) {
    const std::string send = transfer("send", sink);
    const std::string receive = transfer("receive", source);
    add("io/net_send", guest_->Shell(kPeer + send));
    add("io/net_send/qemu", qemu.Shell("/tmp/guest_peer" + send));
    add("io/net_receive", guest_->Shell(kPeer + receive));
    add("io/net_receive/qemu", qemu.Shell("/tmp/guest_peer" + receive));
  }
  AddRatio("io/net_send_to_qemu", "io/net_send", "io/net_send/qemu");
  AddRatio("io/net_receive_to_qemu", "io/net_receive", "io/net_receive/qemu");
  guest_.reset();
}

}  // namespace
}  // namespace catnap::bench

int main(int argc, char** argv) {
  using catnap::bench::HostNetwork;
  catnap::bench::Report report(
      catnap::bench::ParseOptions(argc, argv, catnap::bench::kDefaultSamples));
  if (::geteuid() != 0) {
    std::fprintf(stderr, "bench_io: needs root, for a network of its own\n");
    return 1;
  }
  const HostNetwork network;
  {
    catnap::bench::Bench bench(&report);
    bench.Run();
  }
  return report.Finish();
}
