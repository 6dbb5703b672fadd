#!/bin/bash
# as_ordinary_user.sh CMD ARG...: runs CMD as the smallest user that the
# library serves: in group kvm, with 1,024 descriptors and 8 MiB of lockable
# memory, and without privileges.
#
# An ordinary user only gets the limits. Root becomes nobody, in a mount
# namespace where /dev/kvm is open to group kvm, and this project can be
# reached even in a folder that only root may enter. Nothing changes outside.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)
nobody=65534
kvm_group=$(getent group kvm | cut -d: -f3 || true)
kvm_group=${kvm_group:-65533}  # Any will do that no file here belongs to.
become=(setpriv "--reuid=$nobody" "--regid=$nobody" "--groups=$kvm_group"
  --inh-caps=-all --bounding-set=-all)

# A node of the same device, for the group. The one that others see stays.
open_kvm() {
  local node=$1/kvm
  mknod "$node" c "0x$(stat -c %t /dev/kvm)" "0x$(stat -c %T /dev/kvm)"
  chgrp "$kvm_group" "$node"
  chmod 660 "$node"
  mount --bind "$node" /dev/kvm
}

# The outermost folder that is closed becomes one that holds the way to the
# project and nothing else.
open_project() {
  local place=$1 folder=
  mkdir "$place/project"
  mount --rbind "$project" "$place/project"
  while IFS= read -r -d / name; do
    folder=$folder${name:+/$name}
    if [[ -n $folder ]] && ! "${become[@]}" test -x "$folder"; then
      mount -t tmpfs -o mode=755 tmpfs "$folder"
      mkdir -p "$project"
      mount --rbind "$place/project" "$project"
      cd "$project"
      return
    fi
  done <<<"$project"
  echo "as_ordinary_user.sh: nobody cannot enter $project" >&2
  exit 2
}

# The second half of root's way, inside the mount namespace.
become_nobody() {
  local place=$1 status=0
  shift
  mount -t tmpfs -o mode=755 tmpfs "$place"
  if [[ -e /dev/kvm ]]; then open_kvm "$place"; fi
  if ! "${become[@]}" test -x "$project"; then open_project "$place"; fi
  mkdir -m 700 "$place/home"
  chown "$nobody" "$place/home"
  ulimit -n 1024 -l 8192
  HOME=$place/home "${become[@]}" "$@" || status=$?
  exit $status
}

if (($# == 0)); then
  echo "usage: as_ordinary_user.sh CMD ARG..." >&2
  exit 2
fi
if [[ $1 == --become-nobody ]]; then
  shift
  become_nobody "$@"
fi
if ((EUID != 0)); then
  ulimit -n 1024 -l 8192
  exec "$@"
fi
place=$(mktemp -d)
trap 'rmdir "$place"' EXIT
unshare --mount --propagation private -- \
  "$here/as_ordinary_user.sh" --become-nobody "$place" "$@"
