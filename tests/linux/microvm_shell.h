#ifndef CATNAP_TESTS_LINUX_MICROVM_SHELL_H_
#define CATNAP_TESTS_LINUX_MICROVM_SHELL_H_

#include <string>

#include "catnap/catnap.h"

namespace catnap::test {

inline Command Shell(const std::string& script) {
  Command command;
  command.argv = {"/bin/sh", "-c", script};
  return command;
}

// What the script writes, or why it could not be run.
inline std::string Sh(const MicroVM& vm, const std::string& script) {
  const auto result = vm.Exec(Shell(script));
  return result.ok() ? result->stdout_data : result.status().ToString();
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_LINUX_MICROVM_SHELL_H_
