#!/bin/bash
# Makes what a guest's initramfs needs for a stock kernel, whose drivers are
# modules: the modules, and /etc/catnap/modules, which names them in the order
# in which the guest agent loads them.
#
#   cmake/make_module_archive.sh ROOT VERSION OUTPUT [MODULE...]
#
# ROOT/lib/modules/VERSION is the kernel's, as depmod left it. Without MODULE
# it is all that a guest uses. The archive comes behind the agent's; the
# kernel unpacks both:
#
#   cat agent.initramfs OUTPUT >stock.initramfs
#
# The same modules give the same bytes. Needs cpio and objcopy, no root.
set -euo pipefail

if (($# < 3)); then
  echo "usage: make_module_archive.sh ROOT VERSION OUTPUT [MODULE...]" >&2
  exit 2
fi
tree=$1
version=$2
output=$(realpath "$3")
shift 3
modules=("$@")
if ((${#modules[@]} == 0)); then
  # ext4 asks for its checksum by name; so nothing says that it needs it.
  modules=(virtio_mmio virtio_blk virtio_net virtio-rng virtio_balloon
    vmw_vsock_virtio_transport crc32c_generic ext4 overlay)
fi

folder=$tree/lib/modules/$version
if [[ ! -e $folder/modules.dep ]]; then
  echo "make_module_archive: there is no $folder/modules.dep;" \
    "run depmod -b $tree $version first" >&2
  exit 1
fi
declare -A file_of=() needs_of=()
while IFS=: read -r path needs; do
  name=${path##*/}
  name=${name%.ko}
  file_of[${name//-/_}]=$path
  needs_of[$path]=$needs
done <"$folder/modules.dep"

# Puts $1 behind everything that it needs.
order=()
declare -A seen=()
add() {
  local need
  [[ -z ${seen[$1]:-} ]] || return 0
  seen[$1]=1
  for need in ${needs_of[$1]:-}; do
    add "$need"
  done
  order+=("$1")
}
for module in "${modules[@]}"; do
  name=${module//-/_}
  if [[ -n ${file_of[$name]:-} ]]; then
    add "${file_of[$name]}"
  elif ! grep -q "/${module//[-_]/[-_]}\.ko$" \
    "$folder/modules.builtin"; then
    echo "make_module_archive: kernel $version has no module $module" >&2
    exit 1
  fi
done

archive=$(mktemp -d)
trap 'rm -rf "$archive"' EXIT
mkdir -p "$archive/etc/catnap"
for path in "${order[@]}"; do
  to=lib/modules/$version/$path
  mkdir -p "$archive/${to%/*}"
  # Without debug information, types and signature: checking them takes time.
  objcopy --strip-debug --remove-section=.BTF \
    "$folder/$path" "$archive/$to"
  echo "/$to"
done >"$archive/etc/catnap/modules"
find "$archive" -type d -exec chmod 755 {} +
find "$archive" -type f -exec chmod 644 {} +
find "$archive" -exec touch -h -d @0 {} +
(
  cd "$archive"
  find . -mindepth 1 -print0 | LC_ALL=C sort -z |
    cpio --null --create --format=newc --reproducible --owner=0:0 --quiet
) >"$output.new"
mv "$output.new" "$output"
