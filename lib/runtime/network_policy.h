#ifndef CATNAP_LIB_RUNTIME_NETWORK_POLICY_H_
#define CATNAP_LIB_RUNTIME_NETWORK_POLICY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "catnap/network.h"
#include "net/policy.h"

namespace catnap::runtime {

// The public policy as the network layer asks it.
// Errors: INVALID_ARGUMENT, names the rule and what is wrong with it.
absl::StatusOr<std::shared_ptr<const net::Policy>> CompilePolicy(
    const NetworkPolicy& policy);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_NETWORK_POLICY_H_
