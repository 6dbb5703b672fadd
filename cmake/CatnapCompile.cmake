# Build-only flags. Never attached to the exported target.
add_library(catnap_flags INTERFACE)
target_compile_options(catnap_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wpedantic -Wshadow -Wconversion
    -Wnon-virtual-dtor -Woverloaded-virtual -Wvla>
  $<$<COMPILE_LANGUAGE:C>:-Wall -Wextra -Wshadow -Wconversion -Wvla>
  $<$<BOOL:${CATNAP_WERROR}>:-Werror>
  $<$<COMPILE_LANG_AND_ID:CXX,Clang>:-Wthread-safety>)
if(CATNAP_SANITIZE)
  string(REPLACE ";" "," _san "${CATNAP_SANITIZE}")
  target_compile_options(catnap_flags INTERFACE
    -fsanitize=${_san} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(catnap_flags INTERFACE -fsanitize=${_san})
endif()
