#!/bin/bash
# Makes a root file system of Debian 12 with Python (all of its standard
# library), Flask and gunicorn, tar and fio, and the application of web/ in
# /srv/web, as a tar, from this machine's apt sources.
#
#   examples/debian_rootfs.sh
#
# Prints the tar's path. It is kept as
# ${CATNAP_CACHE:-~/.cache/catnap}/debian-rootfs/<hash>/rootfs.tar, by the hash
# of what it is made of, so a second call costs nothing; remove the folder to
# get newer packages. A folder there is complete or not there; callers at the
# same time wait for the one that makes it. Takes half a minute and the network,
# and needs root or what mmdebstrap needs instead (user namespaces).
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
suite=bookworm
packages=python3,python3-flask,gunicorn,fio,tar,coreutils

fail() {
  echo "debian_rootfs.sh: $*" >&2
  exit 1
}

(($# == 0)) || fail "takes no arguments"
hash=$({
  echo "$suite $packages"
  cat "${BASH_SOURCE[0]}" "$project"/examples/web/*
} | sha256sum | cut -c 1-16)
cache=${CATNAP_CACHE:-$HOME/.cache/catnap}/debian-rootfs
result=$cache/$hash

if [[ ! -d $result ]]; then
  "$project/cmake/setup.sh" rootfs >&2 || fail "it needs the packages above"
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
    echo "debian_rootfs.sh: making $suite with $packages" >&2
    mkdir "$work/result"
    # Caches of apt and manuals are of no use in a guest.
    mmdebstrap --variant=minbase --include="$packages" \
      --dpkgopt='path-exclude=/usr/share/man/*' \
      --dpkgopt='path-exclude=/usr/share/locale/*' \
      --dpkgopt='path-exclude=/usr/share/doc/*' \
      --dpkgopt='path-include=/usr/share/doc/*/copyright' \
      --customize-hook="copy-in '$project/examples/web' /srv" \
      "$suite" "$work/result/rootfs.tar" >"$work/log" 2>&1 9>&- || {
      tail -n 20 "$work/log" >&2
      fail "mmdebstrap failed (the end of its output is above)"
    }
    mv -T "$work/result" "$result"
  fi
  exec 9>&-
fi
echo "$result/rootfs.tar"
