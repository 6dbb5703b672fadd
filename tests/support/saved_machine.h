#ifndef CATNAP_TESTS_SUPPORT_SAVED_MACHINE_H_
#define CATNAP_TESTS_SUPPORT_SAVED_MACHINE_H_

#include <unistd.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "base/unique_fd.h"
#include "state/saved_section.h"
#include "support/machine_fixture.h"
#include "vmm/machine.h"

namespace catnap::test {

// A paused machine, saved, with a copy of its memory.
struct SavedGuest {
  vmm::ShellConfig config;
  std::vector<state::SavedSection> sections;
  base::UniqueFd memfd;

  state::SavedSection& section(state::SectionId id, uint32_t instance = 0) {
    const auto found = std::find_if(
        sections.begin(), sections.end(), [&](const auto& section) {
          return section.id == id && section.instance == instance;
        });
    REQUIRE(found != sections.end());
    return *found;
  }
};

inline base::UniqueFd CopyMemory(const memory::GuestMemory& memory) {
  constexpr size_t kChunk = 4096;
  auto memfd = base::CreateMemFd("saved", memory.size());
  REQUIRE(memfd.ok());
  static const std::vector<uint8_t> zeroes(kChunk);
  bool written = true;
  for (size_t at = 0; at < memory.size(); at += kChunk) {
    const uint8_t* const page = memory.host_base() + at;
    if (std::equal(zeroes.begin(), zeroes.end(), page)) continue;
    written = written && ::pwrite(memfd->get(), page, kChunk,
                                  static_cast<off_t>(at)) == kChunk;
  }
  REQUIRE(written);
  return *std::move(memfd);
}

inline SavedGuest SaveGuest(vmm::Machine& machine) {
  REQUIRE(machine.Pause().ok());
  auto sections = machine.Save();
  INFO(sections.status().ToString());
  REQUIRE(sections.ok());
  return {machine.config(), *std::move(sections), CopyMemory(machine.memory())};
}

// What puts a saved machine's devices into its shell.
using AttachDevices = std::function<void(vmm::Machine&)>;

inline absl::Status LaunchSaved(vmm::Machine& shell, const SavedGuest& saved) {
  vmm::LaunchConfig launch;
  launch.template_memfd = saved.memfd.get();
  launch.saved = &saved.sections;
  return shell.Launch(std::move(launch));
}

inline std::unique_ptr<vmm::Machine> RestoreGuest(
    const SavedGuest& saved, const AttachDevices& attach = nullptr) {
  auto machine = MakeShell(saved.config);
  if (attach) attach(*machine);
  const absl::Status launched = LaunchSaved(*machine, saved);
  INFO(launched.ToString());
  REQUIRE(launched.ok());
  return machine;
}

}  // namespace catnap::test

#endif  // CATNAP_TESTS_SUPPORT_SAVED_MACHINE_H_
