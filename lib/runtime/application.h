#ifndef CATNAP_LIB_RUNTIME_APPLICATION_H_
#define CATNAP_LIB_RUNTIME_APPLICATION_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "agent/client.h"
#include "runtime/vm.h"

namespace catnap::runtime {

// Starts the application of the VM's image and waits until it is ready
// (ImageSpec::ready). Its output goes to RunOptions::guest_log. `on_end` is
// called when it ends, with words for people, maybe before this returns; not
// when the VM ends first. Must not block. Blocks.
// Errors: FAILED_PRECONDITION, it could not be started, ended, or was not ready
// in time; as Vm::Client().
absl::Status RunApplication(
    Vm* vm, const std::function<void(const std::string& text)>& on_end,
    const agent::CallLimits& limits);

// The same for an application that runs already: it was started before the
// state was stored that the guest came from.
// Errors: FAILED_PRECONDITION, it has ended, and OnAppExit::kTerminate; as
// Vm::Client().
absl::Status AttachApplication(
    Vm* vm, const std::function<void(const std::string& text)>& on_end,
    const agent::CallLimits& limits);

}  // namespace catnap::runtime

#endif  // CATNAP_LIB_RUNTIME_APPLICATION_H_
