#include "runtime/guest_identity.h"

#include "base/random.h"
#include "base/status.h"

namespace catnap::runtime {

absl::Status AddIdentity(const std::string& hostname,
                         agent::WakeOptions* options) {
  options->hostname = hostname;
  CATNAP_ASSIGN_OR_RETURN(options->machine_id, base::RandomBytes<16>());
  CATNAP_ASSIGN_OR_RETURN(const auto generation, base::RandomBytes<8>());
  options->generation = 0;
  for (const uint8_t byte : generation) {
    options->generation = options->generation << 8 | byte;
  }
  return absl::OkStatus();
}

}  // namespace catnap::runtime
