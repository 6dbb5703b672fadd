# The guest agent, ${PROJECT_BINARY_DIR}/guest/catnap-agent: one static program
# of at most 2 MiB that is process 1 of a guest. Target `guest_agent`.
#
# It takes none of the library's options (sanitizers, coverage, debug), which a
# static process 1 cannot carry, and shares the protocol's sources with the
# library. Sections that nothing uses are left out, and with them Abseil and
# fmt, which those sources name but the agent never calls.
#
# For the guest kernel's builds also agent.initramfs, whose /init it is; install
# component `guest_kernel`. A consumer's build takes the installed one.
if(NOT PROJECT_IS_TOP_LEVEL)
  return()
endif()

set(_agent_sources
  lib/agent/frame.cc
  lib/agent/messages.cc
  lib/agent/session.cc
  lib/guest/agent/cgroup.cc
  lib/guest/agent/connections.cc
  lib/guest/agent/ended_processes.cc
  lib/guest/agent/files.cc
  lib/guest/agent/freezer.cc
  lib/guest/agent/hosts.cc
  lib/guest/agent/identity.cc
  lib/guest/agent/init.cc
  lib/guest/agent/loop.cc
  lib/guest/agent/main.cc
  lib/guest/agent/network.cc
  lib/guest/agent/process.cc
  lib/guest/agent/process_table.cc
  lib/guest/agent/relay.cc
  lib/guest/agent/run_files.cc
  lib/guest/agent/server.cc
  lib/guest/agent/sleep.cc
  lib/guest/agent/spawn.cc
  lib/guest/agent/text.cc
  lib/guest/agent/tree.cc
  lib/guest/agent/users.cc
  lib/state/decoder.cc
  lib/state/encoder.cc)
set(_agent_objects "")
set(_agent_dir "${PROJECT_BINARY_DIR}/guest")
file(MAKE_DIRECTORY "${_agent_dir}/agent.objects")
set(_agent_flags -std=c++20 -Os -DNDEBUG -fno-rtti -fno-ident
  -fno-asynchronous-unwind-tables -ffunction-sections -fdata-sections
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-missing-field-initializers
  -DFMT_HEADER_ONLY
  "-I${PROJECT_SOURCE_DIR}/lib" "-I${PROJECT_SOURCE_DIR}/include")
if(CATNAP_WERROR)
  list(APPEND _agent_flags -Werror)
endif()
foreach(_source IN LISTS _agent_sources)
  string(REPLACE "/" "_" _object "${_source}.o")
  set(_object "${_agent_dir}/agent.objects/${_object}")
  set(_own "")
  if(_source MATCHES "^lib/(guest|agent)/")
    set(_own -fno-exceptions)  # state/ catches the end of memory.
  endif()
  add_custom_command(OUTPUT "${_object}"
    COMMAND ${CMAKE_CXX_COMPILER_LAUNCHER} "${CMAKE_CXX_COMPILER}"
      ${_agent_flags} ${_own} -MD -MF "${_object}.d"
      -c "${PROJECT_SOURCE_DIR}/${_source}" -o "${_object}"
    DEPENDS "${PROJECT_SOURCE_DIR}/${_source}"
    DEPFILE "${_object}.d"
    COMMENT "Building the guest agent: ${_source}"
    VERBATIM)
  list(APPEND _agent_objects "${_object}")
endforeach()
add_custom_command(OUTPUT "${_agent_dir}/catnap-agent"
  COMMAND "${CMAKE_CXX_COMPILER}" -static -s -Wl,--gc-sections
    -o "${_agent_dir}/catnap-agent" ${_agent_objects}
  DEPENDS ${_agent_objects}
  COMMENT "Linking the guest agent"
  VERBATIM)
set(_agent_files "${_agent_dir}/catnap-agent")

# What programs of the guest may load (lib/guest/helpers/README.md). The library
# depends on none, so that it loads with any C library.
set(_helpers "${PROJECT_SOURCE_DIR}/lib/guest/helpers")
set(_preload "${_agent_dir}/libcatnap_reseed.so")
add_custom_command(OUTPUT "${_preload}"
  COMMAND "${CMAKE_C_COMPILER}" -std=gnu17 -O2 -Wall -Wextra -shared -fPIC -s
    -fvisibility=hidden -nostdlib -Wl,-soname,libcatnap_reseed.so
    -o "${_preload}" "${_helpers}/openssl/catnap_reseed.c"
  DEPENDS "${_helpers}/openssl/catnap_reseed.c"
  COMMENT "Building libcatnap_reseed.so"
  VERBATIM)
list(APPEND _agent_files "${_preload}")
if(NOT CATNAP_GUEST_KERNEL STREQUAL "NONE")
  set(_agent_pack "${PROJECT_SOURCE_DIR}/cmake/make_initramfs.sh")
  set(_packed "${_helpers}/python/catnap_reseed.py"
    "${_helpers}/python/sitecustomize.py" "${_helpers}/node/catnap_reseed.js"
    "${_preload}")
  add_custom_command(OUTPUT "${_agent_dir}/agent.initramfs"
    COMMAND "${_agent_pack}" "${_agent_dir}/catnap-agent"
      "${_agent_dir}/agent.initramfs"
      "lib/catnap/python/catnap_reseed.py=${_helpers}/python/catnap_reseed.py"
      "lib/catnap/python/sitecustomize.py=${_helpers}/python/sitecustomize.py"
      "lib/catnap/node/catnap_reseed.js=${_helpers}/node/catnap_reseed.js"
      "lib/catnap/openssl/libcatnap_reseed.so=${_preload}"
    DEPENDS "${_agent_dir}/catnap-agent" "${_agent_pack}" ${_packed}
    COMMENT "Packing the guest agent"
    VERBATIM)
  list(APPEND _agent_files "${_agent_dir}/agent.initramfs")
  if(CATNAP_INSTALL)
    install(FILES "${_agent_dir}/agent.initramfs"
      DESTINATION "${CMAKE_INSTALL_DATADIR}/catnap/guest"
      COMPONENT guest_kernel)
    install(FILES ${_packed} "${_helpers}/README.md"
      DESTINATION "${CMAKE_INSTALL_DATADIR}/catnap/guest/helpers"
      COMPONENT guest_kernel)
  endif()
  unset(_agent_pack)
  unset(_packed)
endif()
add_custom_target(guest_agent ALL DEPENDS ${_agent_files})
set(CATNAP_GUEST_AGENT "${_agent_dir}/catnap-agent")
unset(_agent_files)
unset(_helpers)
unset(_preload)
unset(_agent_sources)
unset(_agent_objects)
unset(_agent_dir)
unset(_agent_flags)
unset(_source)
unset(_object)
unset(_own)
