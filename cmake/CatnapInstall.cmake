# What `cmake --install` puts where: the library, the programs that it starts,
# its public headers, a CMake package, a pkg-config file and the licence. All of it can be moved as a whole.
include(CMakePackageConfigHelpers)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/catnap")
set(pkgconfig_dir "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

install(TARGETS catnap EXPORT catnapTargets COMPONENT catnap
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
  FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}")
set(libexec_dir "${CMAKE_INSTALL_LIBEXECDIR}/catnap")
if(CATNAP_ROOTFS_TOOL)
  install(TARGETS catnap-rootfs COMPONENT catnap
    RUNTIME DESTINATION "${libexec_dir}")
endif()
install(EXPORT catnapTargets NAMESPACE catnap::
  DESTINATION "${package_dir}" COMPONENT catnap)

configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/catnapConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/catnapConfig.cmake"
  INSTALL_DESTINATION "${package_dir}"
  PATH_VARS libexec_dir)
# Before 1.0 a minor version may change the API.
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/catnapConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES
  "${PROJECT_BINARY_DIR}/catnapConfig.cmake"
  "${PROJECT_BINARY_DIR}/catnapConfigVersion.cmake"
  "${PROJECT_SOURCE_DIR}/cmake/FindLiburing.cmake"
  DESTINATION "${package_dir}" COMPONENT catnap)

# pkg-config knows where the .pc file lies, so the prefix follows from there.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(CATNAP_PC_PREFIX "${CMAKE_INSTALL_PREFIX}")
else()
  file(RELATIVE_PATH up "/prefix/${pkgconfig_dir}" /prefix)
  string(REGEX REPLACE "/$" "" up "${up}")
  set(CATNAP_PC_PREFIX "\${pcfiledir}/${up}")
endif()
foreach(dir IN ITEMS LIBDIR INCLUDEDIR LIBEXECDIR)
  if(IS_ABSOLUTE "${CMAKE_INSTALL_${dir}}")
    set(CATNAP_PC_${dir} "${CMAKE_INSTALL_${dir}}")
  else()
    set(CATNAP_PC_${dir} "\${prefix}/${CMAKE_INSTALL_${dir}}")
  endif()
endforeach()
configure_file("${PROJECT_SOURCE_DIR}/cmake/catnap.pc.in"
  "${PROJECT_BINARY_DIR}/catnap.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/catnap.pc"
  DESTINATION "${pkgconfig_dir}" COMPONENT catnap)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE"
  DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT catnap)
