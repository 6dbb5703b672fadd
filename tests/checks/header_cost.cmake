# Fails if including catnap.h costs a user much more than what it cannot do
# without. Preprocessed bytes stand for compile time, which is too noisy to
# test.
# Run: cmake -DCXX=<compiler> -DINCLUDE=<include folder> -DWORK=<folder> -P this
cmake_minimum_required(VERSION 3.25)

function(preprocessed_bytes header result)
  file(WRITE "${WORK}/cost.cc" "#include <${header}>\n")
  execute_process(
    COMMAND "${CXX}" -std=c++20 "-I${INCLUDE}" -E -P "${WORK}/cost.cc"
      -o "${WORK}/cost.ii"
    COMMAND_ERROR_IS_FATAL ANY)
  file(SIZE "${WORK}/cost.ii" bytes)
  file(REMOVE "${WORK}/cost.cc" "${WORK}/cost.ii")
  set(${result} ${bytes} PARENT_SCOPE)
endfunction()

preprocessed_bytes(absl/status/statusor.h floor)
preprocessed_bytes(catnap/catnap.h ours)
math(EXPR limit "${floor} * 16 / 10")
message(STATUS "catnap.h: ${ours} bytes, absl/status/statusor.h: ${floor}")
if(ours GREATER limit)
  message(FATAL_ERROR "more than 1.6 times as much")
endif()
