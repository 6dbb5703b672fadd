#!/bin/bash
# Tests what README.md promises of run.sh. Takes about six rounds of it.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
run=$here/run.sh
# Before the first run, which would tell of the download on its stderr.
"$here/prepare.sh" >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR=$work/tmp  # So that whatever run.sh leaves behind is seen.
mkdir "$TMPDIR"
failures=0

# check NAME CONDITION...: counts and names what does not hold.
check() {
  local name=$1
  shift
  if "$@"; then
    echo "ok      $name"
  else
    echo "FAILED  $name" >&2
    failures=$((failures + 1))
  fi
}

# Runs with the rest of the arguments; leaves $status, $work/stdout and
# $work/stderr.
emulate() {
  status=0
  "$run" "$@" >"$work/stdout" 2>"$work/stderr" </dev/null || status=$?
}

# --- Inside: one round answers for the whole machine --------------------------
mkdir "$work/with space" "$work/out"
echo outside >"$work/elsewhere"
# shellcheck disable=SC2016  # Expanded in the emulated host.
inside='
check() {
  name=$1
  shift
  if "$@"; then echo "ok      $name"; else echo "FAILED  $name"; fi
}
is_mounted() { grep -q " $1 $2 " /proc/mounts; }
work=$1
out=$work/out
{
  check "runs as root" [ "$(id -u)" = 0 ]
  check "same working directory" [ "$(pwd)" = "$work/with space" ]
  check "argument with spaces" [ "$2" = "two  words " ]
  check "argument with line breaks" [ "$3" = "a
b

" ]
  check "argument with quotes" [ "$4" = "it'"'"'s \"\$HOME\" \\ *" ]
  check "empty argument" [ "$5" = "" ]
  check "argument that is not text" \
    [ "$(printf %s "$6" | od -An -tx1)" = " 01 7f ff fe" ]
  check "number of arguments" [ $# = 7 ]
  check "long argument" [ "${#7}" = 100000 ]
  check "--env" [ "$SELF_TEST" = "a b=c" ]
  check "CATNAP_EMULATED_HOST" [ "$CATNAP_EMULATED_HOST" = 1 ]
  check "standard input is empty" [ "$(cat | wc -c)" = 0 ]
  check "files of this machine" cmp /bin/sh /proc/$$/exe
  check "files in /tmp" [ "$(cat "$work/elsewhere")" = outside ]
  echo inside >"$work/elsewhere"
  check "writes are seen inside" [ "$(cat "$work/elsewhere")" = inside ]
  check "clock source is tsc" [ "$(cat \
    /sys/devices/system/clocksource/clocksource0/current_clocksource)" = tsc ]
  check "/dev/kvm" test -r /dev/kvm -a -w /dev/kvm
  check "kvm_amd has nested paging" \
    grep -qx "[1Y]" /sys/module/kvm_amd/parameters/npt
  check "/proc" is_mounted /proc proc
  check "/sys" is_mounted /sys sysfs
  check "/dev/shm" is_mounted /dev/shm tmpfs
  check "/dev/pts" is_mounted /dev/pts devpts
  check "cgroup v2" is_mounted /sys/fs/cgroup cgroup2
  check "tracefs" test -e /sys/kernel/tracing/events/kvm/enable
  check "network loopback" grep -q " lo$\|^lo\| lo:" /proc/net/dev
  for kind in ext4 xfs; do
    check "$kind scratch disk" is_mounted /scratch/$kind $kind
    check "O_DIRECT on $kind" dd if=/dev/zero of=/scratch/$kind/direct \
      bs=64k count=4 oflag=direct conv=fsync status=none
  done
  check "reflink on xfs" \
    cp --reflink=always /scratch/xfs/direct /scratch/xfs/copy
  check "user name spaces" unshare --user --map-root-user true
} >"$out/checks" 2>&1
echo "to stdout"
printf "no\r\nchange\0\n"
echo "to stderr" >&2
echo "by name" >/dev/stderr
sleep 1000 &
exit 7
'
cd "$work/with space"
start=$(date +%s%N)
emulate --timeout 120 --env 'SELF_TEST=a b=c' --out "$work/out" -- \
  sh -c "$inside" sh "$work" "two  words " $'a\nb\n\n' "it's \"\$HOME\" \\ *" \
  "" $'\x01\x7f\xff\xfe' "$(head -c 100000 /dev/zero | tr '\0' x)"
echo "        a round took $((($(date +%s%N) - start) / 1000000)) ms"
cd "$work"
check "exit status 7" [ "$status" = 7 ]
check "--out persists" test -s "$work/out/checks"
cat "$work/out/checks" || true
failures=$((failures + $(grep -c '^FAILED' "$work/out/checks" || true)))
check "all checks inside were made" \
  [ "$(grep -c '^ok' "$work/out/checks")" = 31 ]
check "writes elsewhere vanish" [ "$(cat "$work/elsewhere")" = outside ]
printf 'to stdout\nno\r\nchange\0\n' >"$work/expected"
check "stdout is its own, unchanged" cmp "$work/expected" "$work/stdout"
printf 'to stderr\nby name\n' >"$work/expected"
check "stderr is its own, unchanged" cmp "$work/expected" "$work/stderr"

# --- Exit statuses ------------------------------------------------------------
emulate --timeout 120 -- true
check "exit status 0" [ "$status" = 0 ]
# shellcheck disable=SC2016
emulate --timeout 120 -- sh -c 'echo before; kill -9 $$'
check "status of a killed command" [ "$status" = 137 ]
check "output before it was killed" [ "$(cat "$work/stdout")" = before ]

emulate --timeout 15 -- sh -c 'echo started; sleep 1000'
check "status after the time was up" [ "$status" = 124 ]
check "output before the time was up" [ "$(cat "$work/stdout")" = started ]
check "says that the time was up" grep -q 'stopped after 15 s' "$work/stderr"

emulate --timeout
check "status of a wrong call" [ "$status" = 125 ]
emulate --env 1=2 -- true
check "status of a wrong variable" [ "$status" = 125 ]

# --- Where the host itself will do --------------------------------------------
# shellcheck disable=SC2016
CATNAP_PROBE=/bin/true emulate --if-needed --env 'X=y z' -- \
  sh -c 'echo "$X"; exit 3'
check "--if-needed: directly, status" [ "$status" = 3 ]
check "--if-needed: directly, variable" [ "$(cat "$work/stdout")" = "y z" ]

# --- A killed run.sh ----------------------------------------------------------
is_gone() {
  local wait
  for ((wait = 0; wait < 100; wait++)); do
    # A zombie has no memory map to read, but its folder is there.
    if [[ ! -e /proc/$1/exe ]] || ! readlink "/proc/$1/exe" >/dev/null; then
      return 0
    fi
    sleep 0.1
  done
  return 1
}
for signal in TERM KILL; do
  rm -f "$work/stdout"
  "$run" --timeout 120 -- sh -c 'echo started; sleep 1000' \
    >"$work/stdout" 2>"$work/stderr" </dev/null &
  pid=$!
  for ((wait = 0; wait < 600; wait++)); do
    [[ ! -s $work/stdout ]] || break
    sleep 0.1
  done
  check "SIG$signal: it had started" grep -qx started "$work/stdout"
  read -ra children <"/proc/$pid/task/$pid/children" || true  # No line end.
  kill "-$signal" "$pid"
  wait "$pid" 2>/dev/null || true
  check "SIG$signal: it had children" [ "${#children[@]}" -ge 2 ]
  for child in "${children[@]}"; do
    check "SIG$signal: process $child is gone" is_gone "$child"
  done
done
check "no file is left behind" [ -z "$(ls -A "$TMPDIR")" ]

if ((failures > 0)); then
  echo "self_test.sh: $failures checks failed" >&2
  exit 1
fi
echo "self_test.sh: all checks passed"
