#!/bin/bash
# Builds the guest kernel from Debian's linux-source-6.1 with our configuration
# (lib/guest/kernel/catnap.config) and keeps it in a cache.
#
#   cmake/build_guest_kernel.sh [--copy-to DIR]
#
# Prints the folder that holds vmlinux (ELF, stripped), bzImage, config,
# version, COPYING and NOTICE.md. With --copy-to those files are also put into
# DIR; files there that are the same already are not touched.
#
# The cache is ${CATNAP_CACHE:-~/.cache/catnap}/guest-kernel/<hash>/, by the
# hash of everything the result depends on, so a second call costs nothing. A
# folder in it is complete or not there; callers at the same time wait for the
# one that builds. The build takes about 3 minutes on 2 cores and 2 GB of disk
# in the cache, freed at its end.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kernel=$project/lib/guest/kernel
package=linux-source-6.1
source=/usr/src/$package.tar.xz

fail() {
  echo "build_guest_kernel.sh: $*" >&2
  exit 1
}

copy_to=
while (($# > 0)); do
  case $1 in
    --copy-to)
      copy_to=${2:?"build_guest_kernel.sh: --copy-to needs a folder"}
      shift 2
      ;;
    *) fail "unknown argument '$1'; usage: [--copy-to DIR]" ;;
  esac
done

"$project/cmake/setup.sh" kernel >&2 ||
  fail "the guest kernel needs the packages named above" \
    "(or configure with -DCATNAP_GUEST_KERNEL=NONE)"
[[ -r $source ]] || fail "package $package is installed without $source"

version=$(dpkg-query -W -f '${Version}' "$package")
hash=$({
  echo "$version"
  gcc --version
  cat "$kernel/catnap.config" "$kernel/NOTICE.md" "${BASH_SOURCE[0]}"
} | sha256sum | cut -c 1-16)
cache=${CATNAP_CACHE:-$HOME/.cache/catnap}/guest-kernel
result=$cache/$hash

# Fails, naming each line of the fragment that the configuration $1 does not
# have as asked (because a dependency is missing, or the name is gone).
check_config() {
  local line name wrong=0
  while IFS= read -r line; do
    case $line in
      CONFIG_*) grep -qxF "$line" "$1" && continue ;;
      '# CONFIG_'*' is not set')
        name=${line#\# }
        grep -q "^${name%% *}=" "$1" || continue
        ;;
      *) continue ;;
    esac
    echo "build_guest_kernel.sh: did not take: $line" >&2
    wrong=1
  done <"$kernel/catnap.config"
  ((wrong == 0)) || fail "lib/guest/kernel/catnap.config does not fit $version"
}

build() {
  local tree=$work/$package out=$work/result
  tar -C "$work" -xf "$source"
  mkdir "$out"
  # The same source, fragment and compiler give the same bytes.
  export KBUILD_BUILD_USER=catnap KBUILD_BUILD_HOST=guest KBUILD_BUILD_VERSION=1
  KBUILD_BUILD_TIMESTAMP=$(date -u -d "@$(stat -c %Y "$tree/Makefile")")
  export KBUILD_BUILD_TIMESTAMP
  unset MAKEFLAGS MAKELEVEL KCFLAGS KCONFIG_CONFIG ARCH CROSS_COMPILE
  make -s -C "$tree" KCONFIG_ALLCONFIG="$kernel/catnap.config" allnoconfig
  check_config "$tree/.config"
  make -s -C "$tree" -j"$(nproc)" vmlinux bzImage
  strip --strip-all -o "$out/vmlinux" "$tree/vmlinux"
  cp "$tree/arch/x86/boot/bzImage" "$kernel/NOTICE.md" "$out/"
  # The kernel's COPYING only names the texts that apply.
  cat "$tree/COPYING" "$tree/LICENSES/preferred/GPL-2.0" \
    "$tree/LICENSES/exceptions/Linux-syscall-note" >"$out/COPYING"
  cp "$tree/.config" "$out/config"
  echo "$package $version" >"$out/version"
  chmod -R u=rwX,go=rX "$out"
  chmod 644 "$out"/*
}

if [[ ! -d $result ]]; then
  mkdir -p "$cache"
  exec 9>"$cache/.lock"
  flock 9
  if [[ ! -d $result ]]; then
    # Whoever left these behind was killed: it would hold the lock.
    rm -rf "$cache"/.build.*
    work=$(mktemp -d "$cache/.build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    echo "build_guest_kernel.sh: building $package $version" >&2
    # (`if ! build` would switch -e off inside it.)
    set +e
    (
      set -e
      build
    ) >"$work/log" 2>&1
    status=$?
    set -e
    if ((status != 0)); then
      tail -n 60 "$work/log" >&2
      fail "the build failed (the end of its output is above)"
    fi
    mv -T "$work/result" "$result"
  fi
  exec 9>&-
fi

if [[ -n $copy_to ]]; then
  mkdir -p "$copy_to"
  for file in "$result"/*; do
    target=$copy_to/${file##*/}
    if ! cmp -s "$file" "$target"; then
      cp "$file" "$target.new.$$"
      mv "$target.new.$$" "$target"
    fi
  done
fi
echo "$result"
