#include <catnap/catnap.h>

#include <cstdio>
#include <utility>

// What a host program does with the library: call it, and be called by it
// through classes of its own.
namespace {

class InlineExecutor : public catnap::Executor {
 public:
  void Post(absl::AnyInvocable<void() &&> task) override { std::move(task)(); }
};

class StdoutLog : public catnap::LogSink {
 public:
  void Write(const catnap::LogRecord& record) override {
    std::printf("%.*s\n", static_cast<int>(record.text.size()),
                record.text.data());
  }
};

}  // namespace

int main() {
  InlineExecutor executor;
  StdoutLog log;
  int ran = 0;
  executor.Post([&ran] { ++ran; });
  log.Write({.text = "hello from a stranger"});
  const absl::Status status = absl::InternalError("made elsewhere");
  const bool plain = catnap::ReasonOf(status) == catnap::ErrorReason::kNone;
  // Needs every part of the library, so that a missing link shows.
  const catnap::HostReport report = catnap::Host::Probe();
  std::printf("%s\n", report.summary.c_str());
  return ran == 1 && plain && !report.summary.empty() ? 0 : 1;
}
