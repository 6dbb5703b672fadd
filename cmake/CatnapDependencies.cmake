# Debian packages only; nothing is fetched. A parent project that already
# brought Abseil, fmt or zstd keeps its own.
find_package(Threads REQUIRED)
if(NOT TARGET fmt::fmt)
  find_package(fmt 9.1 REQUIRED)
endif()
if(NOT TARGET absl::status)
  find_package(absl REQUIRED)
endif()
if(NOT TARGET zstd::libzstd_shared)
  find_package(zstd 1.5.4 REQUIRED)
endif()
find_package(Liburing 2.3 REQUIRED)
if(CATNAP_ROOTFS_TOOL)
  # Of the program, not of the library.
  find_package(LibArchive 3.6 REQUIRED)
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(Ext2fs REQUIRED IMPORTED_TARGET ext2fs>=1.46 com_err)
endif()
