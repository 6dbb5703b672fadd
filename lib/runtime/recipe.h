#ifndef CATNAP_LIB_RUNTIME_RECIPE_H_
#define CATNAP_LIB_RUNTIME_RECIPE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "agent/client.h"
#include "catnap/image.h"

namespace catnap::runtime {

// What tells whether a build of `spec` would make the same image again: a
// digest of its options, of the content of its source (names, modes, owners,
// links and bytes, not times), and of `guests`, GuestFactory::Identity().
// kRecipeBytes long. Blocks: reads all of the source.
// Errors: NOT_FOUND, PERMISSION_DENIED, of the source; CANCELLED,
// DEADLINE_EXCEEDED.
absl::StatusOr<std::vector<uint8_t>> RecipeOf(const ImageSpec& spec,
                                              const std::string& guests,
                                              const agent::CallLimits& limits);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_RECIPE_H_
