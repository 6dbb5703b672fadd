#include "runtime/image_record.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <utility>
#include <variant>

#include "base/byte_order.h"
#include "base/crc32c.h"
#include "base/status.h"
#include "state/decoder.h"
#include "state/encoder.h"

namespace catnap::runtime {
namespace {

constexpr std::string_view kMagic = "CATNAPIM";
constexpr uint32_t kFormat = 1;
constexpr size_t kHeaderBytes = 16;
static_assert(kFormat == 1 && kHeaderBytes == 16,
              "on-disk format: read lib/runtime/IMAGE_FORMAT.md first");

enum Field : uint32_t {
  kName = 1,
  kMajor = 2,
  kMemory = 3,
  kVcpus = 4,
  kDisk = 5,
  kDiskSlots = 6,
  kBaseline = 7,
  kApplication = 8,
  kEnv = 9,
  kWorkdir = 10,
  kUser = 11,
  kDescription = 12,
  kReady = 13,
  kOnAppExit = 14,
  kLabel = 15,
  kDiskIdField = 16,
  kHasGuest = 17,
  kRecipe = 18,
};
enum ReadyField : uint32_t {
  kReadyPort = 1,
  kReadyCommand = 2,
  kReadyDelay = 3,
  kReadyTimeout = 4,
};
enum LabelField : uint32_t { kLabelName = 1, kLabelValue = 2 };

constexpr uint64_t kMiB = uint64_t{1} << 20;
constexpr uint64_t kMinMemory = 64 * kMiB;
constexpr uint64_t kMaxMemory = 65'536 * kMiB;
constexpr uint64_t kMinDisk = 1024 * kMiB;
constexpr uint64_t kMaxDisk = 1'048'576 * kMiB;
constexpr int kMaxVcpus = 32;
constexpr int kMaxDiskSlots = 8;
constexpr size_t kMaxNameBytes = 64;
constexpr size_t kMaxLabels = 64;
constexpr size_t kMaxLabelName = 128;
constexpr size_t kMaxLabelValue = 1024;
constexpr size_t kMaxWords = 1024;
constexpr size_t kMaxWordsBytes = 128 << 10;
constexpr size_t kMaxText = 4096;
constexpr int64_t kMaxReadyMs = int64_t{24} * 3600 * 1000;

absl::Status Invalid(const std::string& text) {
  return absl::InvalidArgumentError(text);
}

absl::Status CheckRange(const char* option, uint64_t value, uint64_t least,
                        uint64_t most) {
  if (value >= least && value <= most) return absl::OkStatus();
  return Invalid(
      value < least
          ? fmt::format("{} is {}, must be at least {}", option, value, least)
          : fmt::format("{} is {}, must be at most {}", option, value, most));
}

absl::Status CheckSize(const char* option, uint64_t value, uint64_t least,
                       uint64_t most) {
  CATNAP_RETURN_IF_ERROR(CheckRange(option, value, least, most));
  if (value % kMiB == 0) return absl::OkStatus();
  return Invalid(fmt::format("{} is {}, must be a multiple of {} (1 MiB)",
                             option, value, kMiB));
}

absl::Status CheckText(const char* option, const std::string& text,
                       size_t most) {
  if (text.size() > most) {
    return Invalid(fmt::format("{} has {} bytes, at most {} are allowed",
                               option, text.size(), most));
  }
  if (text.find('\0') != std::string::npos) {
    return Invalid(fmt::format("{} contains a zero byte", option));
  }
  return absl::OkStatus();
}

absl::Status CheckWords(const char* option,
                        const std::vector<std::string>& words) {
  size_t bytes = 0;
  for (const std::string& word : words) {
    CATNAP_RETURN_IF_ERROR(CheckText(option, word, kMaxWordsBytes));
    bytes += word.size() + 1;
  }
  if (words.size() > kMaxWords || bytes > kMaxWordsBytes) {
    return Invalid(fmt::format(
        "{} has {} words of {} bytes, at most {} words of {} bytes are allowed",
        option, words.size(), bytes, kMaxWords, kMaxWordsBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckReady(const Ready& ready) {
  if (ready.port.has_value() && *ready.port == 0) {
    return Invalid("ready.port is 0, must be 1 to 65535");
  }
  CATNAP_RETURN_IF_ERROR(CheckWords("ready.command", ready.command));
  if (ready.delay.count() < 0 || ready.delay.count() > kMaxReadyMs) {
    return Invalid(fmt::format("ready.delay is {} ms, must be 0 to {}",
                               ready.delay.count(), kMaxReadyMs));
  }
  if (ready.timeout.count() <= 0 || ready.timeout.count() > kMaxReadyMs) {
    return Invalid(fmt::format("ready.timeout is {} ms, must be 1 to {}",
                               ready.timeout.count(), kMaxReadyMs));
  }
  return absl::OkStatus();
}

// What holds for a spec and for what was stored of one.
absl::Status CheckRecord(const ImageRecord& record) {
  CATNAP_RETURN_IF_ERROR(CheckName("name", record.name));
  CATNAP_RETURN_IF_ERROR(
      CheckSize("memory_bytes", record.memory_bytes, kMinMemory, kMaxMemory));
  CATNAP_RETURN_IF_ERROR(CheckRange("vcpus", record.vcpus, 1, kMaxVcpus));
  CATNAP_RETURN_IF_ERROR(
      CheckSize("disk_bytes", record.disk_bytes, kMinDisk, kMaxDisk));
  CATNAP_RETURN_IF_ERROR(CheckRange("extra_disk_slots", record.extra_disk_slots,
                                    0, kMaxDiskSlots));
  CATNAP_RETURN_IF_ERROR(
      CheckWords("entrypoint and command", record.application));
  CATNAP_RETURN_IF_ERROR(CheckEnvironment("env", record.env));
  CATNAP_RETURN_IF_ERROR(CheckText("workdir", record.workdir, kMaxText));
  CATNAP_RETURN_IF_ERROR(CheckText("user", record.user, kMaxText));
  CATNAP_RETURN_IF_ERROR(
      CheckText("description", record.description, kMaxText));
  CATNAP_RETURN_IF_ERROR(CheckReady(record.ready));
  return CheckLabels(record.labels);
}

absl::Status NotYet(const char* option) {
  return absl::UnimplementedError(
      fmt::format("{} is not in this version of the library", option));
}

void EncodeWords(state::StateEncoder& out, uint32_t id,
                 const std::vector<std::string>& words) {
  for (const std::string& word : words) out.Text(id, word);
}

bool AddWord(std::string_view word, std::vector<std::string>* words) {
  if (words->size() >= kMaxWords) return false;
  words->emplace_back(word);
  return true;
}

bool DecodeReady(state::StateDecoder in, Ready* ready) {
  bool ok = true;
  while (ok && in.Next()) {
    switch (in.id()) {
      case kReadyPort:
        ready->port = in.U16();
        break;
      case kReadyCommand:
        ok = AddWord(in.Text(kMaxWordsBytes), &ready->command);
        break;
      case kReadyDelay:
        ready->delay = Millis(in.U32());
        break;
      case kReadyTimeout:
        ready->timeout = Millis(in.U32());
        break;
      default:
        break;
    }
  }
  return ok && in.ok();
}

bool DecodeLabel(state::StateDecoder in, Labels* labels) {
  std::string name;
  std::string value;
  while (in.Next()) {
    if (in.id() == kLabelName) name = std::string(in.Text(kMaxLabelName));
    if (in.id() == kLabelValue) value = std::string(in.Text(kMaxLabelValue));
  }
  if (!in.ok() || labels->size() >= kMaxLabels) return false;
  (*labels)[name] = value;
  return true;
}

bool DecodeVariable(std::string_view text,
                    std::map<std::string, std::string>* env) {
  const size_t equals = text.find('=');
  if (equals == std::string_view::npos || env->size() >= kMaxWords) {
    return false;
  }
  (*env)[std::string(text.substr(0, equals))] =
      std::string(text.substr(equals + 1));
  return true;
}

// Reads the field that `in` stands at; false when it cannot be.
bool DecodeField(state::StateDecoder& in, ImageRecord* record) {
  switch (in.id()) {
    case kName:
      record->name = std::string(in.Text(kMaxNameBytes));
      return true;
    case kMajor:
      record->major = in.U32();
      return true;
    case kMemory:
      record->memory_bytes = in.U64();
      return true;
    case kVcpus:
      record->vcpus = in.U32();
      return true;
    case kDisk:
      record->disk_bytes = in.U64();
      return true;
    case kDiskSlots:
      record->extra_disk_slots = in.U32();
      return true;
    case kBaseline: {
      const uint8_t baseline = in.U8();
      record->cpu_baseline = static_cast<CpuBaseline>(baseline);
      return baseline <= static_cast<uint8_t>(CpuBaseline::kHost);
    }
    case kApplication:
      return AddWord(in.Text(kMaxWordsBytes), &record->application);
    case kEnv:
      return DecodeVariable(in.Text(kMaxWordsBytes), &record->env);
    case kWorkdir:
      record->workdir = std::string(in.Text(kMaxText));
      return true;
    case kUser:
      record->user = std::string(in.Text(kMaxText));
      return true;
    case kDescription:
      record->description = std::string(in.Text(kMaxText));
      return true;
    case kReady:
      return DecodeReady(in.Message(), &record->ready);
    case kOnAppExit:
      record->on_app_exit =
          in.Bool() ? OnAppExit::kKeepRunning : OnAppExit::kTerminate;
      return true;
    case kLabel:
      return DecodeLabel(in.Message(), &record->labels);
    case kDiskIdField:
      in.CopyBytes(record->disk_id);
      return true;
    case kHasGuest:
      record->has_guest = in.Bool();
      return true;
    case kRecipe: {
      const auto recipe = in.Bytes(kRecipeBytes);
      record->recipe.assign(recipe.begin(), recipe.end());
      return recipe.size() == kRecipeBytes;
    }
    default:
      return true;
  }
}

}  // namespace

absl::Status CheckName(const std::string& option, const std::string& name) {
  const bool fits = !name.empty() && name.size() <= kMaxNameBytes &&
                    std::all_of(name.begin(), name.end(), [](char c) {
                      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                             (c >= '0' && c <= '9') || c == '-' || c == '_';
                    });
  if (fits) return absl::OkStatus();
  return Invalid(
      fmt::format("{} is \"{}\", must be 1 to {} letters, digits, '-' and '_'",
                  option, name.substr(0, 2 * kMaxNameBytes), kMaxNameBytes));
}

absl::Status CheckLabels(const Labels& labels) {
  if (labels.size() > kMaxLabels) {
    return Invalid(fmt::format("labels has {} entries, at most {} are allowed",
                               labels.size(), kMaxLabels));
  }
  for (const auto& [name, value] : labels) {
    if (name.empty()) return Invalid("labels has an entry without a name");
    CATNAP_RETURN_IF_ERROR(CheckText("a label's name", name, kMaxLabelName));
    CATNAP_RETURN_IF_ERROR(CheckText("a label's value", value, kMaxLabelValue));
  }
  return absl::OkStatus();
}

absl::Status CheckEnvironment(const std::string& option,
                              const std::map<std::string, std::string>& env) {
  size_t bytes = 0;
  for (const auto& [name, value] : env) {
    if (name.empty() || name.find('=') != std::string::npos ||
        name.find('\0') != std::string::npos ||
        value.find('\0') != std::string::npos) {
      return Invalid(fmt::format(
          "{} has a variable \"{}\": names are not empty and without '=', "
          "names and values without zero bytes",
          option, name.substr(0, kMaxLabelName)));
    }
    bytes += name.size() + value.size() + 2;
  }
  if (env.size() > kMaxWords || bytes > kMaxWordsBytes) {
    return Invalid(fmt::format(
        "{} has {} variables of {} bytes, at most {} of {} bytes are allowed",
        option, env.size(), bytes, kMaxWords, kMaxWordsBytes));
  }
  return absl::OkStatus();
}

absl::Status CheckImageSpec(const ImageSpec& spec) {
  if (std::holds_alternative<OciSource>(spec.source)) {
    return NotYet("an OciSource");
  }
  if (std::holds_alternative<DockerfileSource>(spec.source)) {
    return NotYet("a DockerfileSource");
  }
  if (!spec.bases.empty()) return NotYet("bases");
  if (spec.resolve_base) return NotYet("resolve_base");
  const Hooks& hooks = spec.hooks;
  if (hooks.ready || hooks.validate || hooks.run || hooks.resume ||
      hooks.suspend || hooks.terminate) {
    return NotYet("hooks");
  }
  if (spec.vcpus < 1) {
    return Invalid(fmt::format("vcpus is {}, must be at least 1", spec.vcpus));
  }
  if (spec.extra_disk_slots < 0) {
    return Invalid(fmt::format("extra_disk_slots is {}, must be at least 0",
                               spec.extra_disk_slots));
  }
  return CheckRecord(RecordOf(spec));
}

ImageRecord RecordOf(const ImageSpec& spec) {
  ImageRecord record;
  record.name = spec.name;
  record.memory_bytes = spec.memory_bytes;
  record.vcpus = static_cast<uint32_t>(spec.vcpus);
  record.disk_bytes = spec.disk_bytes;
  record.extra_disk_slots = static_cast<uint32_t>(spec.extra_disk_slots);
  record.cpu_baseline = spec.cpu_baseline;
  record.application = spec.entrypoint;
  record.application.insert(record.application.end(), spec.command.begin(),
                            spec.command.end());
  record.env = spec.env;
  record.workdir = spec.workdir;
  record.user = spec.user;
  record.description = spec.description;
  record.ready = spec.ready;
  record.on_app_exit = spec.on_app_exit;
  record.labels = spec.labels;
  return record;
}

absl::StatusOr<std::vector<uint8_t>> EncodeImageRecord(
    const ImageRecord& record) {
  std::vector<uint8_t> bytes(kHeaderBytes, 0);
  state::StateEncoder out(&bytes);
  out.Text(kName, record.name);
  out.Unsigned(kMajor, record.major);
  out.Unsigned(kMemory, record.memory_bytes);
  out.Unsigned(kVcpus, record.vcpus);
  out.Unsigned(kDisk, record.disk_bytes);
  out.Unsigned(kDiskSlots, record.extra_disk_slots);
  out.Unsigned(kBaseline, static_cast<uint64_t>(record.cpu_baseline));
  EncodeWords(out, kApplication, record.application);
  for (const auto& [name, value] : record.env) {
    out.Text(kEnv, fmt::format("{}={}", name, value));
  }
  out.Text(kWorkdir, record.workdir);
  out.Text(kUser, record.user);
  out.Text(kDescription, record.description);
  {
    const auto nested = out.Message(kReady);
    if (record.ready.port.has_value()) {
      out.Unsigned(kReadyPort, *record.ready.port);
    }
    EncodeWords(out, kReadyCommand, record.ready.command);
    out.Unsigned(kReadyDelay,
                 static_cast<uint64_t>(record.ready.delay.count()));
    out.Unsigned(kReadyTimeout,
                 static_cast<uint64_t>(record.ready.timeout.count()));
  }
  out.Bool(kOnAppExit, record.on_app_exit == OnAppExit::kKeepRunning);
  for (const auto& [name, value] : record.labels) {
    const auto nested = out.Message(kLabel);
    out.Text(kLabelName, name);
    out.Text(kLabelValue, value);
  }
  out.Bytes(kDiskIdField, record.disk_id);
  if (record.has_guest) out.Bool(kHasGuest, true);
  if (!record.recipe.empty()) out.Bytes(kRecipe, record.recipe);
  CATNAP_RETURN_IF_ERROR(out.status());
  if (bytes.size() > kMaxImageRecordBytes) {
    return Invalid(
        fmt::format("the image's options take {} bytes, at most {} are allowed",
                    bytes.size(), kMaxImageRecordBytes));
  }
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  base::StoreLe(&bytes[8], kFormat);
  base::StoreLe(&bytes[12],
                base::Crc32c(std::span(bytes).subspan(kHeaderBytes)));
  return bytes;
}

absl::StatusOr<ImageRecord> DecodeImageRecord(std::span<const uint8_t> bytes) {
  if (bytes.size() < kHeaderBytes || bytes.size() > kMaxImageRecordBytes ||
      std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0) {
    return absl::DataLossError("not an image's record");
  }
  const auto format = base::LoadLe<uint32_t>(&bytes[8]);
  if (format != kFormat) {
    return Error(absl::StatusCode::kUnimplemented,
                 "an image's record of format {}; this library reads {}",
                 format, kFormat);
  }
  const auto fields = bytes.subspan(kHeaderBytes);
  if (base::LoadLe<uint32_t>(&bytes[12]) != base::Crc32c(fields)) {
    return absl::DataLossError("an image's record with a wrong checksum");
  }
  ImageRecord record;
  state::StateDecoder in(fields);
  while (in.Next()) {
    if (!DecodeField(in, &record)) {
      return Error(absl::StatusCode::kDataLoss,
                   "an image's record with a bad field {}", in.id());
    }
  }
  CATNAP_RETURN_IF_ERROR(in.status());
  const absl::Status checked = CheckRecord(record);
  if (!checked.ok()) {
    return Error(absl::StatusCode::kDataLoss, "an image's record whose {}",
                 std::string(checked.message()));
  }
  if (record.major == 0) {
    return absl::DataLossError("an image's record without a version");
  }
  return record;
}

}  // namespace catnap::runtime
