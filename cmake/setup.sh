#!/bin/bash
# Installs the Debian packages that Catnap is built and tested with.
#
#   cmake/setup.sh [build|checks|kernel|emulated|rootfs|bench|all]...  (default: all)
#
#   build     compiler and its cache, CMake, the dependencies of the library, of
#             its programs and of the tests, with what these run in guests
#   checks    clang and its tools, the ACPI compiler
#   kernel    what the guest kernel is built from
#   emulated  QEMU and what the emulated host's initramfs and disk need
#   rootfs    what makes the root file systems of examples and benchmarks
#   bench     what benchmarks compare with
#
# Does nothing, and needs no root, when all of them are there. Otherwise it
# installs what is missing when run as root, or ends with status 1 and the
# command to run. Prints nothing but what it installs and errors.
set -euo pipefail

build=(g++ cmake ninja-build ccache pkg-config libfmt-dev libabsl-dev liburing-dev
  libzstd-dev catch2 libarchive-dev libext2fs-dev comerr-dev e2fsprogs
  passt busybox-static python3 fio iperf3)
checks=(clang-14 clang-tidy-14 clang-format-14 libclang-rt-14-dev acpica-tools)
kernel=(linux-source-6.1 gcc libc6-dev make flex bison bc perl libelf-dev
  libssl-dev xz-utils zstd cpio)
emulated=(qemu-system-x86 busybox-static binutils cpio xz-utils e2fsprogs
  xfsprogs)
rootfs=(mmdebstrap)
bench=(fio zstd)

wanted=()
for group in "${@:-all}"; do
  case $group in
    build) wanted+=("${build[@]}") ;;
    checks) wanted+=("${checks[@]}") ;;
    kernel) wanted+=("${kernel[@]}") ;;
    emulated) wanted+=("${emulated[@]}") ;;
    rootfs) wanted+=("${rootfs[@]}") ;;
    bench) wanted+=("${bench[@]}") ;;
    all)
      wanted+=("${build[@]}" "${checks[@]}" "${kernel[@]}" "${emulated[@]}"
        "${rootfs[@]}" "${bench[@]}")
      ;;
    *)
      echo "setup.sh: no group '$group';" \
        "groups: build checks kernel emulated rootfs bench all" >&2
      exit 2
      ;;
  esac
done

if ! command -v dpkg-query apt-get >/dev/null; then
  echo "setup.sh: not a Debian system; the packages to find there are:" \
    "${wanted[*]}" >&2
  exit 1
fi

# Names of `wanted` that are not installed, each once. (dpkg-query fails when
# it does not know one of the names: that one is missing.)
find_missing() {
  local installed name
  installed=" $(dpkg-query -W -f '${db:Status-Status}:${Package} ' \
    "${wanted[@]}" 2>/dev/null || true) "
  missing=()
  for name in "${wanted[@]}"; do
    if [[ $installed != *" installed:$name "* &&
      " ${missing[*]} " != *" $name "* ]]; then
      missing+=("$name")
    fi
  done
}

find_missing
if ((${#missing[@]} == 0)); then
  exit 0
fi
if ((EUID != 0)); then
  echo "setup.sh: these packages are missing: ${missing[*]}" >&2
  echo "setup.sh: as root: apt-get update && apt-get install" \
    "--no-install-recommends ${missing[*]}" >&2
  exit 1
fi

echo "setup.sh: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get -q update && apt-get -qy -o DPkg::Lock::Timeout=300 install \
  --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
  cat "$log" >&2
  echo "setup.sh: apt-get failed (its output is above)" >&2
  exit 1
fi
