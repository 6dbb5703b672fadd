#ifndef CATNAP_LIB_AGENT_MESSAGES_H_
#define CATNAP_LIB_AGENT_MESSAGES_H_

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace catnap::agent {

// What streams are for, and the tagged fields of their requests and results;
// PROTOCOL.md has the tables. Encoders give the fields' bytes; decoders take
// hostile bytes and return false when those are malformed or above a bound.

enum class Kind : uint32_t {
  kExec = 1,
  kListProcesses = 2,
  kAttach = 3,
  kReadFile = 10,
  kWriteFile = 11,
  kStat = 12,
  kListDirectory = 13,
  kMakeDirectory = 14,
  kRemove = 15,
  kTreeIn = 16,
  kTreeOut = 17,
  kConnect = 20,
  kService = 21,  // From the guest to the host.
  kListen = 22,
  kPowerOff = 30,
  kFreeze = 40,
  kWake = 41,
  kThaw = 42,
  kClock = 43,
};

// Channels of kExec, and of everything else.
inline constexpr uint8_t kStdin = 0;  // Host to guest.
inline constexpr uint8_t kStdout = 1;
inline constexpr uint8_t kStderr = 2;
inline constexpr uint8_t kMainChannel = 0;

inline constexpr size_t kMaxArguments = 4096;  // argv and env, each.
inline constexpr size_t kMaxPathBytes = 4096;
inline constexpr size_t kMaxInlineData = 64 << 10;
inline constexpr size_t kMaxErrorText = 512;
// Those that a container's programs have, and the image's application unless
// its request says otherwise: chown, dac_override, fowner, fsetid, kill,
// setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod,
// audit_write and setfcap, by their bits in <linux/capability.h>.
inline constexpr uint64_t kContainerCapabilities = 0xa804'25fb;

struct WindowSize {
  uint16_t rows = 24, columns = 80;
};

struct ExecRequest {
  std::vector<std::string> argv{};
  std::vector<std::string> env{};  // "NAME=value", over the guest's own.
  std::string cwd{};               // Empty: "/".
  std::string user{};              // "name", "1000", "name:group". Empty: root.
  std::string stdin_data{};        // At most kMaxInlineData; DATA follows
  bool stdin_open = false;         // if this is set.
  std::optional<WindowSize> pty{};
  uint64_t output_limit_bytes = 0;  // Both channels together; 0: none.
  uint64_t memory_limit_bytes = 0;  // 0: none.
  uint64_t timeout_ms = 0;          // Of the guest's running time; 0: none.
  // Those that may be kept. None: for the application kContainerCapabilities,
  // else all that the agent gives away.
  std::optional<uint64_t> capabilities{};
  bool report_start = false;  // A Started message is wanted.
  // The image's application: one at a time, never started again by the agent.
  bool application = false;
};

struct Started {
  uint64_t process_id = 0;  // Stable; for kAttach.
  int32_t guest_pid = 0;
};

// A message of the host to a running process.
struct ExecControl {
  uint32_t signal = 0;  // 0: none.
  bool kill_tree = false;
  bool detach = false;  // A RESET from now on does not kill.
  std::optional<WindowSize> window{};
};

enum class ExitKind : uint8_t {
  kExited = 0,
  kSignaled = 1,
  kTimeout = 2,
  kMemoryLimit = 3,
  kNotStarted = 4,
};

struct ExitReport {
  ExitKind kind = ExitKind::kExited;
  uint32_t exit_code = 0;  // kNotStarted: 127 not found, 126 else.
  uint32_t signal = 0;
  bool truncated = false;  // The output limit was reached.
  uint64_t wall_ns = 0, cpu_ns = 0, max_rss_bytes = 0;
  std::string text{};  // kNotStarted: why.
};

struct ProcessEntry {
  uint64_t process_id = 0;
  int32_t guest_pid = 0;
  std::vector<std::string> argv{};
  bool application = false;
};

// The request of every file operation; each uses what it needs.
struct FileRequest {
  std::string path{};
  uint32_t mode = 0;
  bool recursive = false;  // Remove: trees. MakeDirectory: parents.
  uint64_t max_bytes = 0;  // 0: no bound.
  uint64_t max_files = 0;
  std::string data{};  // WriteFile: the first bytes; DATA follows
  bool more = false;   // if this is set.
};

enum class EntryType : uint8_t {
  kOther = 0,  // Devices, sockets, pipes. Not in trees.
  kFile = 1,
  kDirectory = 2,
  kSymlink = 3,
  kHardLink = 4,  // To `link`, an earlier path of the same tree.
  kContent = 5,   // More bytes of the file before it.
};

// A file as Stat and ListDirectory see it, and a record of a tree.
struct FileEntry {
  EntryType type = EntryType::kOther;
  std::string path{};  // Name, or path in the tree; "" is its root.
  uint64_t size = 0;
  uint32_t mode = 0, uid = 0, gid = 0;
  int64_t mtime_ns = 0;
  std::string link{};
  uint64_t offset = 0;  // Of `data` in the file; holes are left out.
  std::string data{};
};

struct FileResult {
  int32_t error = 0;   // The guest's errno; 0: done.
  std::string text{};  // What failed.
  uint64_t size = 0;
  std::optional<FileEntry> entry{};
};

struct PortRequest {
  uint16_t port = 0;
};

struct FreezeRequest {
  uint32_t bound_ms = 0;  // Until all stand still; 0: kDefaultFreezeBoundMs.
  bool flush = false;     // The root's dirty data is written first.
};
inline constexpr uint32_t kDefaultFreezeBoundMs = 50;

// What happens to the guest's connections with others than itself.
enum class Connections : uint8_t {
  kKeep = 0,
  kDestroy = 1,  // Whoever waits for one gets ECONNABORTED.
};

inline constexpr size_t kMaxEntropyBytes = 256;
inline constexpr size_t kMaxHostnameBytes = 64;  // As the kernel's.
using MachineId = std::array<uint8_t, 16>;
using MacAddress = std::array<uint8_t, 6>;

// What a guest that slept has to learn before its programs run on. Each that is
// missing stays as it is.
struct WakeRequest {
  bool is_copy = false;  // Of a machine that may run on elsewhere.
  uint64_t wall_ns = 0;  // Since 1970, UTC; 0: the clock stays.
  // What the guest's monotonic clock showed at wall_ns; 0: it is that now.
  uint64_t monotonic_ns = 0;
  std::vector<uint8_t> entropy{};  // At most kMaxEntropyBytes; counts in full.
  std::string hostname{};
  std::optional<MachineId> machine_id{};
  uint64_t generation = 0;  // 0, or the one it has: the next one.
  std::optional<MacAddress> mac{};
  Connections connections = Connections::kKeep;  // A copy's are destroyed.
  bool set_env = false;
  std::vector<std::string> env{};  // "NAME=value".
};

// The answer to the four.
struct SleepResult {
  int32_t error = 0;   // The guest's errno; 0: done.
  std::string text{};  // What failed, or, when done, what was left out.
  uint64_t flush_ns = 0, freeze_ns = 0;  // kFreeze: how long each took.
  uint64_t monotonic_ns = 0;             // kClock: CLOCK_MONOTONIC.
};

using Encoded = std::vector<uint8_t>;
using Fields = std::span<const uint8_t>;

Encoded Encode(const ExecRequest& message);
Encoded Encode(const Started& message);
Encoded Encode(const ExecControl& message);
Encoded Encode(const ExitReport& message);
Encoded Encode(const ProcessEntry& message);
Encoded Encode(const FileRequest& message);
Encoded Encode(const FileEntry& message);
Encoded Encode(const FileResult& message);
Encoded Encode(const PortRequest& message);
Encoded Encode(const FreezeRequest& message);
Encoded Encode(const WakeRequest& message);
Encoded Encode(const SleepResult& message);
bool Decode(Fields fields, ExecRequest* message);
bool Decode(Fields fields, Started* message);
bool Decode(Fields fields, ExecControl* message);
bool Decode(Fields fields, ExitReport* message);
bool Decode(Fields fields, ProcessEntry* message);
bool Decode(Fields fields, FileRequest* message);
bool Decode(Fields fields, FileEntry* message);
bool Decode(Fields fields, FileResult* message);
bool Decode(Fields fields, PortRequest* message);
bool Decode(Fields fields, FreezeRequest* message);
bool Decode(Fields fields, WakeRequest* message);
bool Decode(Fields fields, SleepResult* message);

// Lists and trees go over a channel as records: 4 bytes of length, then so many
// bytes of fields.
inline constexpr size_t kRecordHeaderBytes = 4;
inline constexpr size_t kMaxRecordBytes = (64 << 10) + 16384;
// Of a file's content in one record.
inline constexpr size_t kRecordDataBytes = 32 << 10;
static_assert(kMaxRecordBytes == 81'920 && kMaxInlineData == 65'536,
              "on the wire: read lib/agent/PROTOCOL.md first");

void AppendRecord(Fields fields, std::vector<uint8_t>* to);

// Cuts a hostile byte stream into records. Holds at most one that is not whole
// and what the last Feed() brought.
class RecordReader {
 public:
  void Feed(std::span<const uint8_t> bytes);
  // None: more is needed, or !ok(). Good until the next Feed().
  std::optional<Fields> Next();
  bool ok() const { return ok_; }
  bool empty() const { return at_ == buffer_.size(); }

 private:
  std::vector<uint8_t> buffer_;
  size_t at_ = 0;
  bool ok_ = true;
};

}  // namespace catnap::agent

#endif  // CATNAP_LIB_AGENT_MESSAGES_H_
