#include <cstdint>
#include <span>
#include <vector>

#include "agent/messages.h"
#include "fuzz/fuzz_target.h"

// Every message's decoder: what it accepts, it gives back as bytes that it
// accepts again, and those are the same the second time.
namespace catnap::agent {
namespace {

template <typename T>
void Check(Fields fields) {
  T message;
  if (!Decode(fields, &message)) return;
  const Encoded once = Encode(message);
  T again;
  FUZZ_CHECK(Decode(once, &again));
  FUZZ_CHECK(Encode(again) == once);
}

}  // namespace
}  // namespace catnap::agent

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace catnap::agent;  // NOLINT(google-build-using-namespace)
  if (size == 0) return 0;
  const Fields fields(data + 1, size - 1);
  switch (data[0] % 13) {
    case 0:
      Check<ExecRequest>(fields);
      break;
    case 1:
      Check<Started>(fields);
      break;
    case 2:
      Check<ExecControl>(fields);
      break;
    case 3:
      Check<ExitReport>(fields);
      break;
    case 4:
      Check<ProcessEntry>(fields);
      break;
    case 5:
      Check<FileRequest>(fields);
      break;
    case 6:
      Check<FileEntry>(fields);
      break;
    case 7:
      Check<FileResult>(fields);
      break;
    case 8:
      Check<PortRequest>(fields);
      break;
    case 10:
      Check<FreezeRequest>(fields);
      break;
    case 11:
      Check<WakeRequest>(fields);
      break;
    case 12:
      Check<SleepResult>(fields);
      break;
    default: {
      RecordReader reader;
      reader.Feed(fields);
      size_t total = 0;
      while (const auto record = reader.Next()) {
        FUZZ_CHECK(record->size() <= kMaxRecordBytes);
        total += record->size() + kRecordHeaderBytes;
      }
      FUZZ_CHECK(total <= fields.size());
    }
  }
  return 0;
}
