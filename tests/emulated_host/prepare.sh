#!/bin/bash
# Makes what the emulated host boots, once, and prints the folder that holds it:
# vmlinux (Debian's own kernel), initramfs (busybox, the modules, guest_*.sh),
# and for tests that boot a stock kernel bzImage, the same as Debian packs it,
# and modules.cpio, what the agent's initramfs needs for it.
#
# The folder is in ${CATNAP_CACHE:-~/.cache/catnap}/emulated-host/. The kernel
# is the newest that linux-image-amd64 named when it was first needed; delete
# the folder to take a newer one. Nothing is installed on this machine but, as
# root, the packages of `cmake/setup.sh emulated`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)

# Loaded in this order; their dependencies come by themselves (but the checksum
# that the file systems look for by name).
modules=(crc32c_generic crc32c-intel virtio_pci virtio_blk virtio_console
  qemu_fw_cfg 9pnet_virtio 9p overlay ext4 xfs kvm-amd loop tun vhost_vsock
  vhost_net)

fail() {
  echo "emulated host: $*" >&2
  exit 1
}

"$project/cmake/setup.sh" emulated >&2 ||
  fail "it needs the packages named above"

cache=${CATNAP_CACHE:-$HOME/.cache/catnap}/emulated-host
hash=$(cat "${BASH_SOURCE[0]}" "$here"/guest_*.sh \
  "$project/cmake/make_module_archive.sh" | sha256sum | cut -c 1-16)
result=$cache/$hash
if [[ -d $result ]]; then
  echo "$result"
  exit 0
fi

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
if [[ -d $result ]]; then
  echo "$result"
  exit 0
fi
rm -rf "$cache"/.new.*  # Left by a caller that was killed.
work=$(mktemp -d "$cache/.new.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Downloads Debian's kernel into $cache/kernel/{boot,lib}. Needs the network and
# apt's lists, no root.
fetch_kernel() {
  local name
  find_kernel() {
    name=$(apt-cache depends linux-image-amd64 2>/dev/null |
      sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  }
  find_kernel
  if [[ -z $name ]] && ((EUID == 0)); then
    apt-get -q update >"$work/log" 2>&1 || true
    find_kernel
  fi
  [[ -n $name ]] || fail "apt knows no package linux-image-amd64;" \
    "as root: apt-get update"
  echo "emulated host: downloading $name" >&2
  mkdir "$work/download" "$work/kernel"
  (cd "$work/download" && apt-get -q download "$name") >"$work/log" 2>&1 || {
    cat "$work/log" >&2
    fail "apt-get download $name failed (its output is above);" \
      "as root: apt-get update"
  }
  dpkg-deb -x "$work"/download/*.deb "$work/kernel"
  rm -rf "$work/download"
  mv -T "$work/kernel" "$cache/kernel"
}

# The ELF kernel inside bzImage $1, to stdout: it boots a second sooner than
# the compressed one.
unpack_kernel() {
  local sectors offset length
  sectors=$(od -An -tu1 -j 0x1f1 -N 1 "$1")
  offset=$(od -An -tu4 -j 0x248 -N 4 "$1")
  length=$(od -An -tu4 -j 0x24c -N 4 "$1")
  # The last 4 bytes of the payload are the size it unpacks to.
  head -c "$(((sectors + 1) * 512 + offset + length - 4))" "$1" |
    tail -c "$((length - 4))" | xz -dc
}

[[ -d $cache/kernel ]] || fetch_kernel
images=("$cache"/kernel/boot/vmlinuz-*)
version=${images[0]##*/vmlinuz-}
mkdir "$work/result"
unpack_kernel "${images[0]}" >"$work/result/vmlinux"
ln -s "../kernel/boot/${images[0]##*/}" "$work/result/bzImage"

root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,mnt,lower,overlay,lib/modules}
cp "$(command -v busybox)" "$root/bin/busybox"
cp "$here/guest_init.sh" "$root/init"
cp "$here/guest_run.sh" "$root/"
chmod 755 "$root/init" "$root/guest_run.sh"

# busybox's depmod finds the dependencies; then only what is needed stays.
tree=$cache/kernel
busybox depmod -b "$tree" "$version"
"$project/cmake/make_module_archive.sh" "$tree" "$version" \
  "$work/result/modules.cpio"
declare -A dependencies=() seen=()
while IFS=: read -r path needs; do
  name=${path##*/}
  name=${name%.ko}
  dependencies[${name//-/_}]="$path$needs"
done <"$tree/lib/modules/$version/modules.dep"
to=$root/lib/modules/$version
for module in "${modules[@]}"; do
  files=${dependencies[${module//-/_}]:-}
  [[ -n $files ]] || fail "kernel $version has no module $module"
  for file in $files; do
    if [[ -z ${seen[$file]:-} ]]; then
      seen[$file]=1
      mkdir -p "$to/${file%/*}"
      # Without its signature and types: to check them takes a second.
      objcopy --strip-debug --remove-section=.BTF \
        "$tree/lib/modules/$version/$file" "$to/$file"
    fi
  done
done
cp "$tree/lib/modules/$version/modules.builtin"* "$to/"
busybox depmod -b "$root" "$version"
echo "${modules[*]}" >"$root/modules"

(
  cd "$root"
  find . -print0 | LC_ALL=C sort -z |
    cpio --null --create --format=newc --owner=0:0 --quiet
) >"$work/result/initramfs"
chmod 755 "$work/result"
mv -T "$work/result" "$result"
echo "$result"
