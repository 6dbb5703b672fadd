#!/bin/bash
# make_program_root.sh OUT: a root file system of programs of this machine, as a
# tar: busybox, python3 with its standard library, fio and iperf3, each with the
# shared libraries that it names. A guest has the versions that are installed
# here; cmake/setup.sh installs them.
#
# All is below /usr in it, whether this machine's /bin and /lib are links or not.
set -euo pipefail
# Of the system, not what somebody put before it.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
out=$1

temporary=$(mktemp -d "$(dirname "$out")/program-root.XXXXXX")
trap 'rm -rf "$temporary"' EXIT
root=$temporary/root
mkdir -p "$root"/{usr/bin,usr/lib,usr/lib64,usr/sbin,etc,tmp,proc,sys,dev,run}
for name in bin lib lib64 sbin; do
  ln -s "usr/$name" "$root/$name"
done

# Prints where it is.
find_program() {
  command -v "$1" || {
    echo "make_program_root.sh: no $1: cmake/setup.sh build installs it" >&2
    return 1
  }
}

# take FILE [AS]: a file, or what a link leads to.
take() {
  local to=$root/${2:-$1}
  mkdir -p "$(dirname "$to")"
  cp -L --preserve=mode,timestamps "$1" "$to"
}

# take_libraries FILE...: what the loader would load for them, and itself. Lines
# are "NAME => PATH (ADDRESS)" or "PATH (ADDRESS)".
take_libraries() {
  local path
  { ldd "$@" 2>/dev/null || true; } | sed -nE \
    's/^\s+(\S+ => )?(\/\S+) \(0x[0-9a-f]+\)$/\2/p' | sort -u |
    while read -r path; do take "$path"; done
}

take "$(find_program busybox)" /usr/bin/busybox
for name in sh cat echo mkdir sleep sync; do
  ln -s busybox "$root/usr/bin/$name"
done
for name in fio iperf3 python3; do
  program=$(find_program "$name")
  take "$program" "/usr/bin/$name"
  take_libraries "$program"
done

# Without what tests it. Its files keep their times, by which it knows the
# bytecode beside them.
library=$(python3 -I -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
mkdir -p "$root$library"
tar -C "$library" --exclude=./test --exclude=./idlelib --exclude=./lib2to3 \
  --exclude='./config-*' --exclude=./dist-packages --exclude=./site-packages \
  -c . | tar -C "$root$library" -x
# Links to what belongs to this machine alone, such as sitecustomize.py.
find "$root$library" -lname '/*' -delete
mapfile -t modules < <(find "$library/lib-dynload" -name '*.so')
((${#modules[@]} == 0)) || take_libraries "${modules[@]}"

tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner \
  -cf "$temporary/tar" .
mv "$temporary/tar" "$out"
