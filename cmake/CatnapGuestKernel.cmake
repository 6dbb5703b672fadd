# The guest kernel and the first initramfs, in ${PROJECT_BINARY_DIR}/guest/:
# vmlinux, bzImage, initramfs, and beside them config, version, COPYING,
# NOTICE.md. Target `guest_kernel`, install component `guest_kernel`.
#
# CATNAP_GUEST_KERNEL is BUILD (from Debian's kernel source, cached outside the
# build tree; the default, but only at top level), NONE, or a folder that holds
# vmlinux, bzImage or both.

if(PROJECT_IS_TOP_LEVEL)
  set(_default BUILD)
else()
  set(_default NONE)
endif()
set(CATNAP_GUEST_KERNEL "${_default}" CACHE STRING
  "BUILD the guest kernel, NONE, or the folder of one")
unset(_default)
if(CATNAP_GUEST_KERNEL STREQUAL "NONE")
  return()
endif()

set(_guest "${PROJECT_BINARY_DIR}/guest")
set(_cmake "${PROJECT_SOURCE_DIR}/cmake")
file(MAKE_DIRECTORY "${_guest}")

if(CATNAP_GUEST_KERNEL STREQUAL "BUILD")
  set(_names vmlinux bzImage config version COPYING NOTICE.md)
  list(TRANSFORM _names PREPEND "${_guest}/" OUTPUT_VARIABLE _kernel)
  # A new version of the source package is a new kernel.
  file(GLOB _source /usr/src/linux-source-6.1.tar.xz)
  add_custom_command(
    OUTPUT ${_kernel}
    COMMAND "${_cmake}/build_guest_kernel.sh" --copy-to "${_guest}"
    COMMAND "${CMAKE_COMMAND}" -E touch_nocreate ${_kernel}
    DEPENDS "${_cmake}/build_guest_kernel.sh" ${_source}
      "${PROJECT_SOURCE_DIR}/lib/guest/kernel/catnap.config"
      "${PROJECT_SOURCE_DIR}/lib/guest/kernel/NOTICE.md"
    COMMENT "Building the guest kernel (minutes when it is not in the cache)"
    VERBATIM)
else()
  set(_kernel)
  foreach(_name IN ITEMS vmlinux bzImage config version COPYING NOTICE.md)
    if(EXISTS "${CATNAP_GUEST_KERNEL}/${_name}")
      configure_file("${CATNAP_GUEST_KERNEL}/${_name}" "${_guest}/${_name}"
        COPYONLY)
      list(APPEND _kernel "${_guest}/${_name}")
    endif()
  endforeach()
  if(NOT EXISTS "${_guest}/vmlinux" AND NOT EXISTS "${_guest}/bzImage")
    message(FATAL_ERROR "CATNAP_GUEST_KERNEL=${CATNAP_GUEST_KERNEL} is not "
      "BUILD, NONE or a folder that holds a vmlinux or a bzImage")
  endif()
endif()

# Not an ordinary target: it takes none of the library's options (sanitizers,
# hardening), which a static process 1 cannot carry.
set(_init "${PROJECT_SOURCE_DIR}/lib/guest/init/init.c")
add_custom_command(
  OUTPUT "${_guest}/init" "${_guest}/initramfs"
  COMMAND "${CMAKE_C_COMPILER}" -std=gnu11 -O2 -Wall -Wextra -static -s
    -o "${_guest}/init" "${_init}"
  COMMAND "${_cmake}/make_initramfs.sh" "${_guest}/init" "${_guest}/initramfs"
  DEPENDS "${_init}" "${_cmake}/make_initramfs.sh"
  COMMENT "Building the guest's initramfs"
  VERBATIM)

add_custom_target(guest_kernel ALL DEPENDS ${_kernel} "${_guest}/initramfs")

if(CATNAP_INSTALL)
  install(FILES ${_kernel} "${_guest}/initramfs"
    DESTINATION "${CMAKE_INSTALL_DATADIR}/catnap/guest"
    COMPONENT guest_kernel)
endif()

unset(_guest)
unset(_cmake)
unset(_names)
unset(_name)
unset(_kernel)
unset(_source)
unset(_init)
