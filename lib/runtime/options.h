#ifndef CATNAP_LIB_RUNTIME_OPTIONS_H_
#define CATNAP_LIB_RUNTIME_OPTIONS_H_

#include "absl/status/status.h"
#include "catnap/host.h"
#include "catnap/run_options.h"
#include "runtime/image_record.h"

namespace catnap::runtime {

// The public options are checked once, here. The message names the option, its
// value and the limit.
// Errors: INVALID_ARGUMENT; UNIMPLEMENTED, an option of a later version.
absl::Status CheckHostOptions(const HostOptions& options);
absl::Status CheckIdlePolicy(const IdlePolicy& policy);
absl::Status CheckRunOptions(const RunOptions& options,
                             const ImageRecord& image);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_OPTIONS_H_
