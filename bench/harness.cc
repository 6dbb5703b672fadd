#include "harness.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "catnap/host.h"

namespace catnap::bench {
namespace {

double Percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  // Nearest rank.
  const auto rank = static_cast<size_t>(
      std::ceil(share * static_cast<double>(values.size())));
  return values[std::clamp<size_t>(rank, 1, values.size()) - 1];
}

// emulated: inside the emulated host; kvm: KVM here runs Linux; native: it
// does not, and only tiny guests were measured.
std::string Environment() {
  // No thread changes the environment here.
  // NOLINTNEXTLINE(concurrency-mt-unsafe)
  if (std::getenv("CATNAP_EMULATED_HOST") != nullptr) return "emulated";
  return Host::Probe().kvm_runs_linux ? "kvm" : "native";
}

std::string CpuModel() {
  std::ifstream in("/proc/cpuinfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "unknown";
}

// For text that holds no control characters.
std::string Quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

std::string HostFacts() {
  utsname name{};
  ::uname(&name);
  const auto pages = static_cast<double>(::sysconf(_SC_PHYS_PAGES));
  const auto page_bytes = static_cast<double>(::sysconf(_SC_PAGESIZE));
  return fmt::format(
      "{{\"kernel\": {}, \"cpu\": {}, \"cores\": {}, \"memory_gib\": {:.1f}}}",
      Quoted(name.release), Quoted(CpuModel()), ::sysconf(_SC_NPROCESSORS_ONLN),
      pages * page_bytes / (1 << 30));
}

// What is lost when the program ends before its time.
const Report* unfinished = nullptr;

[[noreturn]] void Usage(const char* program) {
  std::fprintf(stderr,
               "usage: %s [--json FILE] [--samples N] [--filter TEXT]\n",
               program);
  std::exit(2);  // NOLINT(concurrency-mt-unsafe): no other thread yet
}

}  // namespace

void Check(const char* what, const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s: %s\n", what, status.ToString().c_str());
  if (unfinished != nullptr && !unfinished->order_.empty()) {
    std::printf("measured until then:\n");
    unfinished->Print();
    std::fflush(stdout);
  }
  std::_Exit(1);  // Threads run.
}

void RaiseDescriptorLimit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);  // Else the program says what it lacks.
}

Options ParseOptions(int argc, char** argv, int default_samples) {
  Options options;
  options.samples = default_samples;
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) Usage(argv[0]);
    const std::string word = argv[i];
    const std::string value = argv[i + 1];
    if (word == "--json") {
      options.json_path = value;
    } else if (word == "--filter") {
      options.filter = value;
    } else if (word == "--samples") {
      const auto [end, error] = std::from_chars(
          value.data(), value.data() + value.size(), options.samples);
      if (error != std::errc() || end != value.data() + value.size() ||
          options.samples < 1) {
        Usage(argv[0]);
      }
    } else {
      Usage(argv[0]);
    }
  }
  return options;
}

void Report::Add(const std::string& name, const std::string& unit,
                 double value) {
  const auto [it, fresh] = metrics_.try_emplace(name);
  if (fresh) {
    order_.push_back(name);
    it->second.unit = unit;
  }
  it->second.values.push_back(value);
}

void Report::AddMicros(const std::string& name,
                       std::chrono::steady_clock::duration value) {
  Add(name, "us", std::chrono::duration<double, std::micro>(value).count());
}

double Report::Median(const std::string& name) const {
  const auto it = metrics_.find(name);
  return it == metrics_.end() ? 0 : Percentile(it->second.values, 0.5);
}

Report::Report(Options options) : options_(std::move(options)) {
  unfinished = this;
}

Report::~Report() { unfinished = nullptr; }

std::string Report::Print() const {
  const std::string environment = Environment();
  const std::string facts = HostFacts();
  std::printf("environment: %s, host: %s\n", environment.c_str(),
              facts.c_str());
  std::printf("%-44s %6s %12s %12s %12s %12s %8s\n", "metric", "unit", "min",
              "p50", "p99", "max", "samples");
  std::string lines;
  for (const std::string& name : order_) {
    if (name.find(options_.filter) == std::string::npos) continue;
    const Metric& metric = metrics_.at(name);
    const double least = Percentile(metric.values, 0);
    const double median = Percentile(metric.values, 0.5);
    const double high = Percentile(metric.values, 0.99);
    const double most = Percentile(metric.values, 1);
    std::printf("%-44s %6s %12.2f %12.2f %12.2f %12.2f %8zu\n", name.c_str(),
                metric.unit.c_str(), least, median, high, most,
                metric.values.size());
    lines += fmt::format(
        "{{\"name\": {}, \"unit\": {}, \"min\": {:.3f}, \"p50\": {:.3f}, "
        "\"p99\": {:.3f}, \"max\": {:.3f}, \"samples\": {}, "
        "\"environment\": {}, \"host\": {}}}\n",
        Quoted(name), Quoted(metric.unit), least, median, high, most,
        metric.values.size(), Quoted(environment), facts);
  }
  return lines;
}

int Report::Finish() const {
  const std::string lines = Print();
  if (lines.empty()) {
    std::fprintf(stderr, "no metric has '%s' in its name\n",
                 options_.filter.c_str());
    return 1;
  }
  if (options_.json_path.empty()) return 0;
  std::ofstream out(options_.json_path, std::ios::app);
  out << lines;
  out.flush();
  if (!out) {
    std::fprintf(stderr, "could not write %s\n", options_.json_path.c_str());
    return 1;
  }
  return 0;
}

}  // namespace catnap::bench
