# Proves that CheckLayers.cmake refuses bad trees, and only those.
# Run: cmake -DCHECK=<CheckLayers.cmake> -DWORK=<scratch folder> -P this
cmake_minimum_required(VERSION 3.25)

set(failures "")

# Writes a small tree with `line` added to `file`, runs the check on it and
# sets `rc` and `output`.
function(check_tree file line)
  file(REMOVE_RECURSE "${WORK}")
  file(WRITE "${WORK}/include/catnap/errors.h" "#include <string>\n")
  file(WRITE "${WORK}/include/catnap/host.h" "#include \"catnap/errors.h\"\n")
  file(WRITE "${WORK}/lib/base/status.h" "#include \"absl/status/status.h\"\n")
  file(WRITE "${WORK}/lib/net/policy.h" "#include \"base/status.h\"\n")
  file(APPEND "${WORK}/${file}" "${line}\n")
  execute_process(COMMAND "${CMAKE_COMMAND}" "-DROOT=${WORK}" -P "${CHECK}"
    RESULT_VARIABLE rc OUTPUT_VARIABLE output ERROR_VARIABLE output)
  set(rc "${rc}" PARENT_SCOPE)
  set(output "${output}" PARENT_SCOPE)
endfunction()

function(accepts file line)
  check_tree("${file}" "${line}")
  if(NOT rc EQUAL 0)
    set(failures "${failures}refused in ${file}: ${line}\n${output}"
      PARENT_SCOPE)
  endif()
endfunction()

# `reason` is text of the one complaint that must appear.
function(refuses file line reason)
  check_tree("${file}" "${line}")
  string(REGEX REPLACE "[ \n]+" " " flat "${output}")  # message() wraps.
  string(FIND "${flat}" "${reason}" at)
  if(rc EQUAL 0 OR at EQUAL -1)
    set(failures "${failures}accepted in ${file}: ${line}\n${output}"
      PARENT_SCOPE)
  endif()
endfunction()

accepts(lib/kvm/a.cc "#include <linux/kvm.h>")
accepts(lib/arch/x86_64/a.cc "#include \"arch/x86_64/layout.h\"")
accepts(lib/arch/x86_64/a.cc "#include \"kvm/system.h\"")
accepts(lib/io/a.cc "#include <liburing.h>")
accepts(lib/codec/a.cc "#include <zstd.h>  // why; and [how")
accepts(lib/vmm/a.cc "#include \"virtio/queue.h\"")
accepts(lib/base/a.cc "#include \"catnap/errors.h\"")
accepts(lib/base/a.cc "#include <net/if.h>")
accepts(lib/base/a.cc "// #include \"vmm/machine.h\"")
accepts(lib/runtime/a.cc "#include \"catnap/host.h\"")
accepts(lib/guest/agent/a.cc "#include \"agent/protocol.h\"")

refuses(lib/base/a.cc "#include \"state/encoder.h\""
  "lib/base/a.cc: base must not include state (state/encoder.h)")
refuses(lib/base/a.h "  #  include \"memory/gpa.h\""
  "lib/base/a.h: base must not include memory")
refuses(lib/base/a.cc "#include <net/policy.h>"
  "lib/base/a.cc: base must not include net")
refuses(lib/snapshot/a.cc "#include \"memory/gpa.h\""
  "snapshot must not include memory")
refuses(lib/arch/x86_64/a.cc "#include \"device/bus.h\""
  "arch must not include device")
refuses(lib/agent/a.cc "#include \"io/ring.h\"" "agent must not include io")
refuses(lib/runtime/a.cc "#include \"kvm/system.h\""
  "runtime must not include kvm")
accepts(lib/guest/agent/b.cc "#include \"state/encoder.h\"")
refuses(lib/guest/init.c "#include \"io/file.h\""
  "guest must not include io")
refuses(lib/vmm/a.cc "#include <linux/kvm.h>"
  "vmm must not include <linux/kvm.h>, which belongs to kvm, arch")
refuses(lib/vmm/a.cc "#include <liburing.h>"
  "vmm must not include <liburing.h>, which belongs to io")
refuses(lib/snapshot/a.cc "#include <zstd.h>"
  "snapshot must not include <zstd.h>, which belongs to codec")
refuses(lib/vmm/a.cc "#include \"catnap/host.h\""
  "vmm is below the public API and must not include \"catnap/host.h\"")
refuses(lib/base/a.cc "#include \"../vmm/machine.h\""
  "\"../vmm/machine.h\" is not written as \"layer/file\"")
refuses(lib/base/a.cc "#include \"status.h\""
  "\"status.h\" is not written as \"layer/file\"")
refuses(lib/util/a.cc "#include <string>"
  "folder 'util' has no row in the table")
foreach(header IN ITEMS linux/kvm.h liburing.h zstd.h fmt/format.h)
  refuses(include/catnap/a.h "#include <${header}>"
    "include/catnap/a.h: a public header must not show ${header}")
endforeach()
refuses(include/catnap/a.h "#include \"base/status.h\""
  "a public header must not show base/status.h")

execute_process(
  COMMAND "${CMAKE_COMMAND}" "-DROOT=${WORK}/nowhere" -P "${CHECK}"
  RESULT_VARIABLE rc OUTPUT_QUIET ERROR_QUIET)
if(rc EQUAL 0)
  string(APPEND failures "accepted a folder that does not exist\n")
endif()

file(REMOVE_RECURSE "${WORK}")
if(failures)
  message(FATAL_ERROR "${failures}")
endif()
