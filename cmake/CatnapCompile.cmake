# Build-only flags. Never attached to the exported target.
add_library(catnap_flags INTERFACE)
target_compile_options(catnap_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion
    -Wnon-virtual-dtor -Woverloaded-virtual -Wvla>
  $<$<COMPILE_LANGUAGE:C>:-Wall -Wextra -Wshadow -Wconversion -Wvla>
  $<$<BOOL:${CATNAP_WERROR}>:-Werror>
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wthread-safety>
  # Equal headers make equal precompiled headers, whenever they were written: a
  # compiler cache (compiler_cache.sh) then knows what was compiled with them.
  "$<$<COMPILE_LANG_AND_ID:CXX,Clang>:SHELL:-Xclang -fno-pch-timestamp>")
if(CATNAP_SANITIZE)
  string(REPLACE ";" "," _san "${CATNAP_SANITIZE}")
  # Not vptr: it looks at memory through a pipe of its own, and so sees errors
  # that are not there in tests of a process without free descriptors.
  target_compile_options(catnap_flags INTERFACE
    -fsanitize=${_san} -fno-sanitize=vptr -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  target_link_options(catnap_flags INTERFACE -fsanitize=${_san})
endif()
