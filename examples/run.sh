#!/bin/bash
# The main job, from a fresh machine: installs what is missing, builds the
# library and the guest kernel, boots a guest and shows its console and how
# long each stage took. Where KVM cannot run Linux the guest runs inside the
# emulated host. Safe to run again; needs no root when nothing is missing.
#
#   examples/run.sh
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

step() {
  local name=$1 begin=$EPOCHREALTIME
  shift
  printf '== %s\n' "$name"
  "$@"
  printf '== %s: %.1f s\n\n' "$name" \
    "$(awk "BEGIN { print $EPOCHREALTIME - $begin }")"
}

build() {
  cmake --preset release >/dev/null
  cmake --build --preset release --target boot_guest probe_host guest_kernel
}

# The guest tells more than `quiet` would, so that there is something to see.
boot() {
  tests/emulated_host/run.sh --if-needed --timeout 300 -- \
    build/release/examples/boot_guest \
    build/release/guest/vmlinux build/release/guest/initramfs \
    --memory-mib 128 --command-line "console=ttyS0 panic=-1 $1"
}

# Says why when MicroVMs cannot be started; the emulated host then can.
probe() {
  build/release/examples/probe_host || true
}

step "install packages" cmake/setup.sh build kernel emulated
step "build the library, the examples and the guest kernel" build
step "look at this machine" probe
step "boot a guest, with its kernel's messages" boot ""
step "boot a guest quietly" boot quiet
