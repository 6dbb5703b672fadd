#ifndef CATNAP_BENCH_HARNESS_H_
#define CATNAP_BENCH_HARNESS_H_

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace catnap::bench {

// What every bench program takes on its command line.
struct Options {
  std::string json_path{};  // --json FILE: JSON lines are appended there.
  int samples = 0;          // --samples N; 0: the program's own number.
  std::string filter{};     // --filter TEXT: reports metrics that contain it.
};

// Prints a usage text and exits with 2 when the arguments are wrong.
Options ParseOptions(int argc, char** argv, int default_samples);

// Ends the program with a message unless `status` is OK.
void Check(const char* what, const absl::Status& status);

// Lets the process have as many descriptors as it may: a machine needs some 26.
void RaiseDescriptorLimit();

// Collects samples by metric and reports min, p50, p99, max and their number:
// a table on standard output, and a JSON line a metric. Times are in µs, sizes
// in bytes unless the name says otherwise, ratios plain.
class Report {
 public:
  explicit Report(Options options);
  ~Report();
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  const Options& options() const { return options_; }
  void Add(const std::string& name, const std::string& unit, double value);
  void AddMicros(const std::string& name,
                 std::chrono::steady_clock::duration value);
  // The median of what was added; 0 for nothing.
  double Median(const std::string& name) const;
  // Prints and writes what the filter names. Returns the process's exit status:
  // 1 when the JSON file could not be written or there was nothing to report.
  int Finish() const;

 private:
  friend void Check(const char* what, const absl::Status& status);

  // The table. Returns the JSON lines.
  std::string Print() const;

  struct Metric {
    std::string unit;
    std::vector<double> values;
  };
  const Options options_;
  std::vector<std::string> order_;
  std::map<std::string, Metric> metrics_;
};

}  // namespace catnap::bench

#endif  // CATNAP_BENCH_HARNESS_H_
