#!/bin/bash
# tests/run.sh [--quick]: everything that must hold, from a fresh machine.
#
# Installs what is missing (as root), builds, and runs: clang-format and
# clang-tidy; the tests in the release build, again as an ordinary user in
# group kvm with 1,024 descriptors, and again with io_uring refused; long runs,
# within five minutes; those that need a Linux guest, in the emulated host where
# KVM cannot run one; and the tests under address, undefined-behaviour and
# thread sanitizers. clang-tidy and the sanitizers' builds run beside the tests.
#
# --quick is the inner loop: release build and its tests.
#
# Prints the time of each step, and closes with one summary of all ctest runs
# in ctest's words, in which a step that failed otherwise counts as a test.
# Skipped tests are failures here: a machine without KVM must not look green.
# Safe to run again; needs no root when nothing is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

quick=
case "$#:${1:-}" in
  0:) ;;
  1:--quick) quick=1 ;;
  *) echo "usage: tests/run.sh [--quick]" >&2; exit 2 ;;
esac

begin=$EPOCHREALTIME
jobs=$(nproc)
export CMAKE_BUILD_PARALLEL_LEVEL=$jobs
# Left over from whoever called: CMake would build into another place.
unset DESTDIR
results=$(mktemp -d)
chmod 755 "$results"
trap 'stop_beside; rm -rf "$results"' EXIT

total=0
failures=()
times=()

elapsed() {
  awk -v from="$1" -v to="$EPOCHREALTIME" 'BEGIN { printf "%.1f", to - from }'
}

# step NAME CMD ARG...: runs a command, notes how long it took and whether it
# failed, and returns the latter.
step() {
  local name=$1 from=$EPOCHREALTIME status=0
  shift
  printf '\n== %s\n' "$name"
  "$@" || status=$?
  times+=("$(printf '%8s s  %s%s' "$(elapsed "$from")" "$name" \
    "$( ((status == 0)) || echo " (FAILED)")")")
  if ((status != 0)); then
    printf '== %s: failed with status %d\n' "$name" "$status"
  fi
  return $status
}

# check NAME CMD ARG...: a step that is no ctest run, as one test.
check() {
  total=$((total + 1))
  if ! step "$@"; then
    failures+=("$1")
    return 1
  fi
}

# Runs ctest by way of the wrapper in WRAPPER and leaves its JUnit file.
# Only what is worth reading is shown of the tests that pass: nothing.
run_ctest() {
  local folder=$1
  shift
  "${wrapper[@]}" ctest --test-dir "$folder" --output-on-failure \
    --no-tests=error --parallel "$jobs" "$@" 2>&1 |
    { grep -vE '^ *(Start +[0-9]+:|[0-9]+/[0-9]+ Test +#.* Passed )' || true; }
}

# tests NAME PRESET CTEST-ARG...: a ctest run as a step. Adds its tests to
# the summary. The variable `wrapper` says what ctest runs under.
wrapper=()
tests() {
  local name=$1 preset=$2 folder file count status=0 line
  shift 2
  folder=$results/${#times[@]}
  file=$folder/tests.xml
  # ctest keeps notes where it starts; a folder of their own lets users run it
  # who may not write to the build.
  mkdir -m 777 "$folder"
  printf 'subdirs("%s")\n' "$PWD/build/$preset" >"$folder/CTestTestfile.cmake"
  step "$name" run_ctest "$folder" --output-junit "$file" "$@" || status=$?
  count=$(sed -nE 's/^\s*tests="([0-9]+)"$/\1/p' "$file" 2>/dev/null || true)
  total=$((total + ${count:-0}))
  local before=${#failures[@]}
  while IFS= read -r line; do
    failures+=("$name: $line")
  done < <(sed -nE \
    's/^\s*<testcase name="([^"]*)".* status="(fail|notrun|disabled)".*$/\1 (\2)/p' \
    "$file" 2>/dev/null | sed 's/&quot;/"/g; s/&lt;/</g; s/&gt;/>/g
      s/&apos;/'"'"'/g; s/&amp;/\&/g; s/(fail)$/(Failed)/
      s/(notrun)$/(Skipped or not run)/; s/(disabled)$/(Disabled)/')
  if ((status != 0 && ${#failures[@]} == before)); then
    total=$((total + 1))
    failures+=("$name (the run itself, status $status)")
  fi
}

build() {
  cmake --preset "$1" >/dev/null && cmake --build --preset "$1"
}

# What needs nothing but the release build, and takes half of all time: it runs
# beside the tests, on what these leave of the processors. Leaves NAME.log and
# NAME.status of each part in $results.
run_beside() {
  local name status
  for name in clang tsan tidy; do
    status=0
    case $name in
      tidy) cmake/check_tidy.sh ;;
      *) build "$name" ;;
    esac >"$results/$name.log" 2>&1 || status=$?
    echo "$status" >"$results/$name.new"
    mv "$results/$name.new" "$results/$name.status"
  done
}
export -f build run_beside
beside=  # Its process group.
start_beside() {
  # Nice alone counts within a session, where the kernel groups by sessions.
  results=$results setsid chrt --idle 0 bash -c run_beside </dev/null &
  beside=$!
}
# Waits for one part; shows what it printed if it failed, else its last line.
wait_for() {
  local file=$results/$1.status status
  until [[ -e $file ]]; do
    if ! kill -0 "$beside" 2>/dev/null && [[ ! -e $file ]]; then
      echo "$1 was not done" >&2
      return 1
    fi
    sleep 0.5
  done
  status=$(<"$file")
  if ((status == 0)); then
    tail -n 1 "$results/$1.log"
  else
    cat "$results/$1.log"
  fi
  return "$status"
}
pause_beside() {
  kill -"$1" -- "-$beside" 2>/dev/null || true
}
stop_beside() {
  [[ -n $beside ]] || return 0
  pause_beside CONT
  kill -- "-$beside" 2>/dev/null || true
  wait "$beside" 2>/dev/null || true
}

# Finds Debian's own kernel, which tests boot, in the emulated host's cache.
stock_kernel=
stock_kernel() {
  stock_kernel=$(tests/emulated_host/prepare.sh)
}

# Tiny guests need only some /dev/kvm. Where there is none at all they go where
# the Linux guests go.
native='^(unit|kvm|io_uring)$'
guests='^linux$'
if [[ ! -e /dev/kvm ]]; then
  native='^(unit|io_uring)$'
  guests='^(kvm|linux)$'
fi

# Closes the run. The words are ctest's, so that who reads ctest's end of a
# log reads this one.
summary() {
  local failed=${#failures[@]} percent
  printf '\nTime of each step:\n'
  printf '%s\n' "${times[@]}"
  if ((failed > 0)); then
    percent=$((100 * (total - failed) / (total > 0 ? total : 1)))
  else
    percent=100
  fi
  printf '\n%d%% tests passed, %d tests failed out of %d\n' \
    "$percent" "$failed" "$total"
  printf '\nTotal Test time (real) = %6.2f sec\n' "$(elapsed "$begin")"
  if ((failed > 0)); then
    printf '\nThe following tests FAILED:\n'
    printf '\t%s\n' "${failures[@]}"
    printf 'Errors while running tests\n'
    exit 1
  fi
  exit 0
}

if [[ -n $quick ]]; then
  check "install packages" cmake/setup.sh build || summary
else
  check "install packages" cmake/setup.sh || summary
fi
# shellcheck source=cmake/compiler_cache.sh
. cmake/compiler_cache.sh
check "build release" build release || summary
if [[ -z $quick ]]; then
  start_beside
  check "format" cmake/check_format.sh || true
fi
if [[ -z $quick ]]; then export CATNAP_TEST_STRESS_SECONDS=60; fi
tests "release tests" release -L "$native"
unset CATNAP_TEST_STRESS_SECONDS
if [[ -n $quick ]]; then
  summary
fi
if [[ -e /dev/kvm ]]; then
  # They have a bound of their own, and sync files all the time, for which they
  # would wait for the builds' files.
  pause_beside STOP
  tests "long runs" release -L '^stress$'
  pause_beside CONT
fi

# What needs to write to the build folder was tested above.
wrapper=(tests/support/as_ordinary_user.sh)
tests "release tests as an ordinary user" release -L "$native" -LE '^build$'
wrapper=(build/release/tests/support/refuse_io_uring)
tests "release tests without io_uring" release -L "$native" \
  -LE '^(build|io_uring)$'
wrapper=()
tests "emulated host" release -L '^emulated$'
if check "fetch a stock kernel" stock_kernel; then
  wrapper=(tests/emulated_host/run.sh --if-needed --timeout 2400 --no-flush
    --out "$results" --env "CATNAP_STOCK_KERNEL=$stock_kernel/bzImage"
    --env "CATNAP_STOCK_MODULES=$stock_kernel/modules.cpio" --)
  tests "Linux guests" release -L "$guests"
  wrapper=()
fi

if check "build clang with sanitizers" wait_for clang; then
  tests "address and undefined sanitizers" clang -L "$native"
fi
if check "build thread sanitizer" wait_for tsan; then
  tests "thread sanitizer" tsan -L "$native"
fi
check "tidy" wait_for tidy || true
summary
