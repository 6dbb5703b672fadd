#!/bin/bash
# Makes a guest's initramfs from a static program that is to be process 1.
#
#   cmake/make_initramfs.sh INIT OUTPUT [PATH=FILE]...
#
# Each FILE is put at PATH (`a/b`, no slash before it), readable by all.
# The same INIT gives the same bytes (no times, no inode numbers, owner root),
# without root. The archive is not compressed: unpacking would cost boot time.
set -euo pipefail

if (($# < 2)); then
  echo "usage: make_initramfs.sh INIT OUTPUT [PATH=FILE]..." >&2
  exit 2
fi
init=$(realpath "$1")
output=$(realpath "$2")
shift 2

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir "$root/proc" "$root/sys" "$root/dev" "$root/run" "$root/tmp"
cp "$init" "$root/init"
chmod 755 "$root" "$root"/*
for file in "$@"; do
  install -D -m 644 "${file#*=}" "$root/${file%%=*}"
done
chmod 1777 "$root/tmp"
find "$root" -exec touch -h -d @0 {} +
(
  cd "$root"
  find . -print0 | LC_ALL=C sort -z |
    cpio --null --create --format=newc --reproducible --owner=0:0 --quiet
) >"$output.new"
mv "$output.new" "$output"
