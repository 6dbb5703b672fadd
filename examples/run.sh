#!/bin/bash
# The main job, from a fresh machine: installs what is missing, builds the
# library, the guest kernel and a Debian root file system, and
#   * runs a Python program in a MicroVM of it: the program calls a function of
#     the host, files go in and out, a web server in the guest answers through a
#     forwarded port;
#   * builds an image of a web application that is started already, calls it in
#     a MicroVM, lets it fall asleep, wakes it by a call, and forks it ten times.
# Each step says how long it took. Where KVM cannot run Linux all of it runs
# inside the emulated host. Ends with another status than 0 when something is
# not as it should be. Safe to run again; needs no root when nothing is missing.
#
#   examples/run.sh [PROGRAM.py | -c CODE]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

current="the start"
trap '(($? == 0)) || echo "examples/run.sh: failed at: $current" >&2' EXIT

step() {
  local name=$1 begin=$EPOCHREALTIME
  current=$name
  shift
  printf '== %s\n' "$name"
  "$@"
  printf '== %s: %.1f s\n\n' "$name" \
    "$(awk "BEGIN { print $EPOCHREALTIME - $begin }")"
}

build() {
  # shellcheck source=cmake/compiler_cache.sh
  . cmake/compiler_cache.sh
  cmake --preset release >/dev/null
  cmake --build --preset release --target boot_guest probe_host run_python \
    sleeping_web guest_kernel guest_agent catnap-rootfs
}

# run_example NAME ROOTFS.tar ARG...: with a directory of its own. In the emulated
# host only the scratch disk has room for disks.
run_example() {
  tests/emulated_host/run.sh --if-needed --timeout 500 -- bash -c '
    room=${CATNAP_EMULATED_HOST:+/scratch/ext4}
    room=$(mktemp -d "${room:-${TMPDIR:-/tmp}}/catnap-example-XXXXXX")
    trap "rm -rf $room" EXIT
    build/release/examples/"$0" "$1" "$room" "${@:2}"' "$@"
}

# boot [OPTION OF THE KERNEL]...: without `quiet` the kernel tells all it does.
boot() {
  tests/emulated_host/run.sh --if-needed --timeout 300 -- \
    build/release/examples/boot_guest \
    build/release/guest/vmlinux build/release/guest/initramfs \
    --memory-mib 128 --command-line "console=ttyS0 panic=-1 $*"
}

# Says why when MicroVMs cannot be started; the emulated host then can.
probe() {
  build/release/examples/probe_host || true
}

make_rootfs() {
  rootfs=$(examples/debian_rootfs.sh)
}

step "install packages" cmake/setup.sh build kernel emulated rootfs
step "build the library, the examples and the guest kernel" build
step "look at this machine" probe
step "boot a guest without a root file system" boot quiet
step "make a Debian root file system" make_rootfs
step "run Python in a MicroVM" run_example run_python "$rootfs" "$@"
step "a web application that sleeps" run_example sleeping_web "$rootfs"
