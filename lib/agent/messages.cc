#include "agent/messages.h"

#include <algorithm>

#include "base/byte_order.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::agent {
namespace {

using state::StateDecoder;
using state::StateEncoder;

static_assert(static_cast<int>(Kind::kExec) == 1 &&
                  static_cast<int>(Kind::kListProcesses) == 2 &&
                  static_cast<int>(Kind::kAttach) == 3 &&
                  static_cast<int>(Kind::kReadFile) == 10 &&
                  static_cast<int>(Kind::kWriteFile) == 11 &&
                  static_cast<int>(Kind::kStat) == 12 &&
                  static_cast<int>(Kind::kListDirectory) == 13 &&
                  static_cast<int>(Kind::kMakeDirectory) == 14 &&
                  static_cast<int>(Kind::kRemove) == 15 &&
                  static_cast<int>(Kind::kTreeIn) == 16 &&
                  static_cast<int>(Kind::kTreeOut) == 17 &&
                  static_cast<int>(Kind::kConnect) == 20 &&
                  static_cast<int>(Kind::kService) == 21 &&
                  static_cast<int>(Kind::kListen) == 22 &&
                  static_cast<int>(Kind::kPowerOff) == 30 &&
                  static_cast<int>(Kind::kFreeze) == 40 &&
                  static_cast<int>(Kind::kWake) == 41 &&
                  static_cast<int>(Kind::kThaw) == 42 &&
                  static_cast<int>(Kind::kClock) == 43,
              "on the wire: read lib/agent/PROTOCOL.md first");
static_assert(static_cast<int>(ExitKind::kNotStarted) == 4 &&
                  static_cast<int>(ExitKind::kMemoryLimit) == 3 &&
                  static_cast<int>(ExitKind::kTimeout) == 2 &&
                  static_cast<int>(ExitKind::kSignaled) == 1 &&
                  static_cast<int>(EntryType::kFile) == 1 &&
                  static_cast<int>(EntryType::kDirectory) == 2 &&
                  static_cast<int>(EntryType::kSymlink) == 3 &&
                  static_cast<int>(EntryType::kHardLink) == 4 &&
                  static_cast<int>(EntryType::kContent) == 5 &&
                  static_cast<int>(Connections::kDestroy) == 1 &&
                  kDefaultFreezeBoundMs == 50 && kMaxEntropyBytes == 256,
              "on the wire: read lib/agent/PROTOCOL.md first");

// The ids below are the tables of PROTOCOL.md, which never change. Integers are
// left out when they are 0, texts when they are empty.
void Put(StateEncoder* out, uint32_t id, uint64_t value) {
  if (value != 0) out->Unsigned(id, value);
}
void PutText(StateEncoder* out, uint32_t id, const std::string& text) {
  if (!text.empty()) out->Text(id, text);
}
void PutWindow(StateEncoder* out, uint32_t id,
               const std::optional<WindowSize>& window) {
  if (!window.has_value()) return;
  const auto nested = out->Message(id);
  out->Unsigned(1, window->rows);
  out->Unsigned(2, window->columns);
}
WindowSize ReadWindow(StateDecoder in, bool* ok) {
  WindowSize window;
  while (in.Next()) {
    if (in.id() == 1) window.rows = in.U16();
    if (in.id() == 2) window.columns = in.U16();
  }
  *ok &= in.ok();
  return window;
}
bool AppendText(StateDecoder* in, std::vector<std::string>* to) {
  if (to->size() >= kMaxArguments) return false;
  to->push_back(std::string(in->Text()));
  return true;
}

void PutEntry(StateEncoder* out, const FileEntry& message) {
  Put(out, 1, static_cast<uint64_t>(message.type));
  PutText(out, 2, message.path);
  Put(out, 3, message.size);
  Put(out, 4, message.mode);
  Put(out, 5, message.uid);
  Put(out, 6, message.gid);
  out->Signed(7, message.mtime_ns);
  PutText(out, 8, message.link);
  Put(out, 9, message.offset);
  PutText(out, 10, message.data);
}

bool ReadEntry(StateDecoder in, FileEntry* message) {
  uint8_t type = 0;
  while (in.Next()) {
    switch (in.id()) {
      case 1:
        type = in.U8();
        break;
      case 2:
        message->path = in.Text(kMaxPathBytes);
        break;
      case 3:
        message->size = in.U64();
        break;
      case 4:
        message->mode = in.U32();
        break;
      case 5:
        message->uid = in.U32();
        break;
      case 6:
        message->gid = in.U32();
        break;
      case 7:
        message->mtime_ns = in.Signed();
        break;
      case 8:
        message->link = in.Text(kMaxPathBytes);
        break;
      case 9:
        message->offset = in.U64();
        break;
      case 10:
        message->data = in.Text(kMaxInlineData);
        break;
    }
  }
  if (type > static_cast<uint8_t>(EntryType::kContent)) return false;
  message->type = static_cast<EntryType>(type);
  return in.ok();
}

}  // namespace

Encoded Encode(const ExecRequest& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  for (const std::string& argument : message.argv) out.Text(1, argument);
  for (const std::string& variable : message.env) out.Text(2, variable);
  PutText(&out, 3, message.cwd);
  PutText(&out, 4, message.user);
  PutText(&out, 5, message.stdin_data);
  Put(&out, 6, message.stdin_open ? 1 : 0);
  PutWindow(&out, 7, message.pty);
  Put(&out, 8, message.output_limit_bytes);
  Put(&out, 9, message.memory_limit_bytes);
  Put(&out, 10, message.timeout_ms);
  if (message.capabilities.has_value()) {
    out.Unsigned(11, *message.capabilities);
  }
  Put(&out, 12, message.report_start ? 1 : 0);
  Put(&out, 13, message.application ? 1 : 0);
  return bytes;
}

bool Decode(Fields fields, ExecRequest* message) {
  bool ok = true;
  StateDecoder in(fields);
  while (ok && in.Next()) {
    switch (in.id()) {
      case 1:
        ok = AppendText(&in, &message->argv);
        break;
      case 2:
        ok = AppendText(&in, &message->env);
        break;
      case 3:
        message->cwd = in.Text(kMaxPathBytes);
        break;
      case 4:
        message->user = in.Text(kMaxPathBytes);
        break;
      case 5:
        message->stdin_data = in.Text(kMaxInlineData);
        break;
      case 6:
        message->stdin_open = in.Bool();
        break;
      case 7:
        message->pty = ReadWindow(in.Message(), &ok);
        break;
      case 8:
        message->output_limit_bytes = in.U64();
        break;
      case 9:
        message->memory_limit_bytes = in.U64();
        break;
      case 10:
        message->timeout_ms = in.U64();
        break;
      case 11:
        message->capabilities = in.U64();
        break;
      case 12:
        message->report_start = in.Bool();
        break;
      case 13:
        message->application = in.Bool();
        break;
    }
  }
  return ok && in.ok();
}

Encoded Encode(const Started& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  Put(&out, 1, message.process_id);
  out.Signed(2, message.guest_pid);
  return bytes;
}

bool Decode(Fields fields, Started* message) {
  StateDecoder in(fields);
  while (in.Next()) {
    if (in.id() == 1) message->process_id = in.U64();
    if (in.id() == 2) message->guest_pid = static_cast<int32_t>(in.Signed());
  }
  return in.ok();
}

Encoded Encode(const ExecControl& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  Put(&out, 1, message.signal);
  Put(&out, 2, message.kill_tree ? 1 : 0);
  PutWindow(&out, 3, message.window);
  Put(&out, 4, message.detach ? 1 : 0);
  return bytes;
}

bool Decode(Fields fields, ExecControl* message) {
  bool ok = true;
  StateDecoder in(fields);
  while (in.Next()) {
    if (in.id() == 1) message->signal = in.U32();
    if (in.id() == 2) message->kill_tree = in.Bool();
    if (in.id() == 3) message->window = ReadWindow(in.Message(), &ok);
    if (in.id() == 4) message->detach = in.Bool();
  }
  return ok && in.ok();
}

Encoded Encode(const ExitReport& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  Put(&out, 1, static_cast<uint64_t>(message.kind));
  Put(&out, 2, message.exit_code);
  Put(&out, 3, message.signal);
  Put(&out, 4, message.truncated ? 1 : 0);
  Put(&out, 5, message.wall_ns);
  Put(&out, 6, message.cpu_ns);
  Put(&out, 7, message.max_rss_bytes);
  PutText(&out, 8, message.text);
  return bytes;
}

bool Decode(Fields fields, ExitReport* message) {
  uint8_t kind = 0;
  StateDecoder in(fields);
  while (in.Next()) {
    switch (in.id()) {
      case 1:
        kind = in.U8();
        break;
      case 2:
        message->exit_code = in.U32();
        break;
      case 3:
        message->signal = in.U32();
        break;
      case 4:
        message->truncated = in.Bool();
        break;
      case 5:
        message->wall_ns = in.U64();
        break;
      case 6:
        message->cpu_ns = in.U64();
        break;
      case 7:
        message->max_rss_bytes = in.U64();
        break;
      case 8:
        message->text = in.Text(kMaxErrorText);
        break;
    }
  }
  // What it says goes into the caller's int.
  if (message->exit_code > 255 || message->signal > 64) return false;
  if (kind > static_cast<uint8_t>(ExitKind::kNotStarted)) return false;
  message->kind = static_cast<ExitKind>(kind);
  return in.ok();
}

Encoded Encode(const ProcessEntry& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  Put(&out, 1, message.process_id);
  out.Signed(2, message.guest_pid);
  for (const std::string& argument : message.argv) out.Text(3, argument);
  Put(&out, 4, message.application ? 1 : 0);
  return bytes;
}

bool Decode(Fields fields, ProcessEntry* message) {
  bool ok = true;
  StateDecoder in(fields);
  while (ok && in.Next()) {
    if (in.id() == 1) message->process_id = in.U64();
    if (in.id() == 2) message->guest_pid = static_cast<int32_t>(in.Signed());
    if (in.id() == 3) ok = AppendText(&in, &message->argv);
    if (in.id() == 4) message->application = in.Bool();
  }
  return ok && in.ok();
}

Encoded Encode(const FileRequest& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  PutText(&out, 1, message.path);
  Put(&out, 2, message.mode);
  Put(&out, 3, message.recursive ? 1 : 0);
  Put(&out, 4, message.max_bytes);
  Put(&out, 5, message.max_files);
  PutText(&out, 6, message.data);
  Put(&out, 7, message.more ? 1 : 0);
  return bytes;
}

bool Decode(Fields fields, FileRequest* message) {
  StateDecoder in(fields);
  while (in.Next()) {
    switch (in.id()) {
      case 1:
        message->path = in.Text(kMaxPathBytes);
        break;
      case 2:
        message->mode = in.U32();
        break;
      case 3:
        message->recursive = in.Bool();
        break;
      case 4:
        message->max_bytes = in.U64();
        break;
      case 5:
        message->max_files = in.U64();
        break;
      case 6:
        message->data = in.Text(kMaxInlineData);
        break;
      case 7:
        message->more = in.Bool();
        break;
    }
  }
  return in.ok() && message->path.find('\0') == std::string::npos;
}

Encoded Encode(const FileEntry& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  PutEntry(&out, message);
  return bytes;
}

bool Decode(Fields fields, FileEntry* message) {
  return ReadEntry(StateDecoder(fields), message);
}

Encoded Encode(const FileResult& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  if (message.error != 0) out.Signed(1, message.error);
  PutText(&out, 2, message.text);
  Put(&out, 3, message.size);
  if (message.entry.has_value()) {
    const auto nested = out.Message(4);
    PutEntry(&out, *message.entry);
  }
  return bytes;
}

bool Decode(Fields fields, FileResult* message) {
  bool ok = true;
  StateDecoder in(fields);
  while (in.Next()) {
    switch (in.id()) {
      case 1:
        message->error = static_cast<int32_t>(in.Signed());
        break;
      case 2:
        message->text = in.Text(kMaxErrorText);
        break;
      case 3:
        message->size = in.U64();
        break;
      case 4:
        message->entry.emplace();
        ok &= ReadEntry(in.Message(), &*message->entry);
        break;
    }
  }
  return ok && in.ok();
}

Encoded Encode(const PortRequest& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  out.Unsigned(1, message.port);
  return bytes;
}

bool Decode(Fields fields, PortRequest* message) {
  StateDecoder in(fields);
  while (in.Next()) {
    if (in.id() == 1) message->port = in.U16();
  }
  return in.ok();
}

Encoded Encode(const FreezeRequest& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  Put(&out, 1, message.bound_ms);
  Put(&out, 2, message.flush ? 1 : 0);
  return bytes;
}

bool Decode(Fields fields, FreezeRequest* message) {
  StateDecoder in(fields);
  while (in.Next()) {
    if (in.id() == 1) message->bound_ms = in.U32();
    if (in.id() == 2) message->flush = in.Bool();
  }
  return in.ok();
}

Encoded Encode(const WakeRequest& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  Put(&out, 1, message.is_copy ? 1 : 0);
  Put(&out, 2, message.wall_ns);
  if (!message.entropy.empty()) out.Bytes(3, message.entropy);
  PutText(&out, 4, message.hostname);
  if (message.machine_id.has_value()) out.Bytes(5, *message.machine_id);
  Put(&out, 6, message.generation);
  if (message.mac.has_value()) out.Bytes(7, *message.mac);
  Put(&out, 8, static_cast<uint64_t>(message.connections));
  Put(&out, 9, message.set_env ? 1 : 0);
  for (const std::string& variable : message.env) out.Text(10, variable);
  Put(&out, 11, message.monotonic_ns);
  return bytes;
}

bool Decode(Fields fields, WakeRequest* message) {
  bool ok = true;
  uint8_t connections = 0;
  StateDecoder in(fields);
  while (ok && in.Next()) {
    switch (in.id()) {
      case 1:
        message->is_copy = in.Bool();
        break;
      case 2:
        message->wall_ns = in.U64();
        break;
      case 3: {
        const auto entropy = in.Bytes(kMaxEntropyBytes);
        message->entropy.assign(entropy.begin(), entropy.end());
        break;
      }
      case 4:
        message->hostname = in.Text(kMaxHostnameBytes);
        break;
      case 5:
        in.CopyBytes(message->machine_id.emplace());
        break;
      case 6:
        message->generation = in.U64();
        break;
      case 7:
        in.CopyBytes(message->mac.emplace());
        break;
      case 8:
        connections = in.U8();
        break;
      case 9:
        message->set_env = in.Bool();
        break;
      case 10:
        ok = AppendText(&in, &message->env);
        break;
      case 11:
        message->monotonic_ns = in.U64();
        break;
    }
  }
  if (connections > static_cast<uint8_t>(Connections::kDestroy)) return false;
  message->connections = static_cast<Connections>(connections);
  return ok && in.ok();
}

Encoded Encode(const SleepResult& message) {
  Encoded bytes;
  StateEncoder out(&bytes);
  if (message.error != 0) out.Signed(1, message.error);
  PutText(&out, 2, message.text);
  Put(&out, 3, message.flush_ns);
  Put(&out, 4, message.freeze_ns);
  Put(&out, 5, message.monotonic_ns);
  return bytes;
}

bool Decode(Fields fields, SleepResult* message) {
  StateDecoder in(fields);
  while (in.Next()) {
    switch (in.id()) {
      case 1:
        message->error = static_cast<int32_t>(in.Signed());
        break;
      case 2:
        message->text = in.Text(kMaxErrorText);
        break;
      case 3:
        message->flush_ns = in.U64();
        break;
      case 4:
        message->freeze_ns = in.U64();
        break;
      case 5:
        message->monotonic_ns = in.U64();
        break;
    }
  }
  return in.ok();
}

void AppendRecord(Fields fields, std::vector<uint8_t>* to) {
  const size_t at = to->size();
  to->resize(at + kRecordHeaderBytes);
  base::StoreLe(to->data() + at, static_cast<uint32_t>(fields.size()));
  to->insert(to->end(), fields.begin(), fields.end());
}

void RecordReader::Feed(std::span<const uint8_t> bytes) {
  buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<ptrdiff_t>(at_));
  at_ = 0;
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
}

std::optional<Fields> RecordReader::Next() {
  const size_t left = buffer_.size() - at_;
  if (!ok_ || left < kRecordHeaderBytes) return std::nullopt;
  const auto length = base::LoadLe<uint32_t>(buffer_.data() + at_);
  if (length > kMaxRecordBytes) {
    ok_ = false;
    return std::nullopt;
  }
  if (left - kRecordHeaderBytes < length) return std::nullopt;
  const Fields fields{buffer_.data() + at_ + kRecordHeaderBytes, length};
  at_ += kRecordHeaderBytes + length;
  return fields;
}

}  // namespace catnap::agent
