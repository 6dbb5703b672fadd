#include <vector>

#include "fuzz/seeds.h"
#include "runtime/image_record.h"

namespace catnap::fuzz {

std::vector<Seed> ImageRecordSeeds() {
  runtime::ImageRecord plain;
  plain.name = "plain";
  plain.major = 1;
  plain.memory_bytes = uint64_t{512} << 20;
  plain.vcpus = 1;
  plain.disk_bytes = uint64_t{8} << 30;
  runtime::ImageRecord full = plain;
  full.name = "full";
  full.application = {"server", "--port", "80"};
  full.env = {{"A", "b"}, {"C", ""}};
  full.workdir = "/srv";
  full.user = "www:www";
  full.ready.port = 80;
  full.ready.command = {"true"};
  full.on_app_exit = OnAppExit::kKeepRunning;
  full.labels = {{"team", "red"}};
  full.disk_id = {1, 2, 3};
  std::vector<Seed> seeds;
  for (const auto& record : {plain, full}) {
    const auto bytes = runtime::EncodeImageRecord(record);
    if (bytes.ok()) seeds.push_back({record.name, *bytes});
  }
  return seeds;
}

}  // namespace catnap::fuzz
