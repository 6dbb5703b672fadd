# Fails if a file includes what its layer must not see.
# Run: cmake -DROOT=<source dir> -P CheckLayers.cmake
#
# A file in lib/ belongs to the layer that its first folder names. What it may
# include of ours is one row of the table below; a new folder needs a row. An
# include is ours if it is written with quotes, or if the file exists in lib/
# (so that <net/if.h> stays the system's).
cmake_minimum_required(VERSION 3.25)

# row(<layer> [<layers below>...]): a layer always sees itself.
set(layers "")
macro(row layer)
  list(APPEND layers ${layer})
  set(below_${layer} ${layer} ${ARGN})
endmacro()
row(base)
row(state base)
row(io base)
row(codec base)
row(memory base)
row(kvm base)
row(snapshot base state io codec)
row(disk base state io codec)
row(device base state memory)
row(net base state io)
row(virtio base state memory device io disk net)
row(arch base state memory kvm)
row(vmm base state io codec memory kvm snapshot disk device net virtio arch)
row(agent base state)
row(runtime base state io codec vmm snapshot disk net agent)
row(image base io runtime agent)
row(gateway base io runtime agent)
row(guest base state agent)
row(rootfs base)

# The layers that implement the public API see all of include/catnap. Those
# below take only the words that both sides speak.
set(implements_api runtime image gateway)
set(vocabulary errors executor export log version)

# Foreign headers and the layers that wrap them.
set(foreign kvm uring zstd)
set(header_kvm "^(linux|asm)/kvm(_para)?\\.h$")
set(owners_kvm kvm arch)
set(header_uring "^(liburing(\\.h|/)|linux/io_uring\\.h$)")
set(owners_uring io)
set(header_zstd "^(zstd|zstd_errors|zdict)\\.h$")
set(owners_zstd codec)

set(bad "")

# Sets `result` to what `file` includes, each as "quoted:path" or
# "angled:path".
function(read_includes file result)
  set(include "^[ \t]*#[ \t]*include[ \t]*([<\"])([^>\"]+)[>\"]")
  file(STRINGS "${file}" lines REGEX "${include}")
  # An unbalanced bracket in a comment would join two lines of the list.
  string(REPLACE "[" " " lines "${lines}")
  string(REPLACE "]" " " lines "${lines}")
  set(found "")
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "${include}")
      continue()  # The rest of a line that has a semicolon.
    endif()
    if(CMAKE_MATCH_1 STREQUAL "<")
      list(APPEND found "angled:${CMAKE_MATCH_2}")
    else()
      list(APPEND found "quoted:${CMAKE_MATCH_2}")
    endif()
  endforeach()
  set(${result} "${found}" PARENT_SCOPE)
endfunction()

# Checks one include of `file`, a path in lib/ that belongs to `layer`.
function(check_library_include file layer kind path)
  foreach(name IN LISTS foreign)
    if(path MATCHES "${header_${name}}" AND NOT layer IN_LIST owners_${name})
      list(JOIN owners_${name} ", " owners)
      list(APPEND bad "${file}: ${layer} must not include <${path}>, "
        "which belongs to ${owners}\n")
    endif()
  endforeach()
  string(REGEX MATCH "^[^/]+" to "${path}")
  if(to STREQUAL "catnap")
    string(REGEX REPLACE "^catnap/(.*)\\.h$" "\\1" word "${path}")
    if(NOT layer IN_LIST implements_api AND NOT word IN_LIST vocabulary)
      list(APPEND bad "${file}: ${layer} is below the public API and must not "
        "include \"${path}\"\n")
    endif()
  elseif(to STREQUAL "absl")
    # Vocabulary of all layers.
  elseif(to IN_LIST layers AND path MATCHES "/"
         AND (kind STREQUAL "quoted" OR EXISTS "${ROOT}/lib/${path}"))
    if(NOT to IN_LIST below_${layer})
      list(APPEND bad "${file}: ${layer} must not include ${to} (${path})\n")
    endif()
  elseif(kind STREQUAL "quoted")
    list(APPEND bad "${file}: \"${path}\" is not written as \"layer/file\"\n")
  endif()
  set(bad "${bad}" PARENT_SCOPE)
endfunction()

file(GLOB_RECURSE files RELATIVE "${ROOT}/lib"
  "${ROOT}/lib/*.h" "${ROOT}/lib/*.cc" "${ROOT}/lib/*.c" "${ROOT}/lib/*.S")
list(LENGTH files count)
foreach(file IN LISTS files)
  string(REGEX MATCH "^[^/]+" layer "${file}")
  if(NOT layer IN_LIST layers)
    list(APPEND bad "${file}: folder '${layer}' has no row in the table\n")
    continue()
  endif()
  read_includes("${ROOT}/lib/${file}" includes)
  foreach(include IN LISTS includes)
    string(REGEX MATCH "^([a-z]+):(.*)$" match "${include}")
    check_library_include(
      "lib/${file}" ${layer} ${CMAKE_MATCH_1} "${CMAKE_MATCH_2}")
  endforeach()
endforeach()

# A public header shows the standard library, Abseil and its own kind, so that
# nobody's build meets KVM, liburing, zstd or fmt because of us.
file(GLOB_RECURSE files RELATIVE "${ROOT}" "${ROOT}/include/*")
list(LENGTH files public_count)
foreach(file IN LISTS files)
  read_includes("${ROOT}/${file}" includes)
  foreach(include IN LISTS includes)
    if(NOT include MATCHES "^(quoted:(catnap|absl)/|angled:[a-z0-9_]+$)")
      string(REGEX REPLACE "^[a-z]+:" "" path "${include}")
      list(APPEND bad "${file}: a public header must not show ${path}\n")
    endif()
  endforeach()
endforeach()

if(count EQUAL 0 OR public_count EQUAL 0)
  list(APPEND bad "nothing to check in '${ROOT}'\n")
endif()
if(bad)
  list(JOIN bad "" text)
  message(FATAL_ERROR "layering:\n${text}")
endif()
message(STATUS
  "layering: ${count} files and ${public_count} public headers are in order")
