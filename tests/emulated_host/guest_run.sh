#!/bin/busybox sh
# shellcheck shell=dash
# Process 1 of the emulated host, second half: the host's files are at their
# own paths. Mounts the rest, runs the command, reports its status, powers off.
#
# The command arrives as a QEMU firmware file that run.sh wrote: a script that
# sets `directory` and `outs`, defines `run` (which ends in exec) and nothing
# else. Ports: 1 takes standard output, 2 standard error, 3 the exit status.
here=/run/emulated_host
bb=$here/busybox
$bb cat /sys/firmware/qemu_fw_cfg/by_name/opt/catnap/command/raw \
  >$here/command
outs=
# shellcheck source=/dev/null
. $here/command

mount_scratch() {
  $bb mkdir -p /scratch/ext4 /scratch/xfs
  $bb mount -t ext4 -o noinit_itable,discard /dev/vda /scratch/ext4
  $bb mount -t xfs -o discard /dev/vdb /scratch/xfs
  $bb chmod 1777 /scratch/ext4 /scratch/xfs
}

mount_scratch &
scratch=$!
$bb mkdir -p /dev/pts /dev/shm /dev/mqueue
$bb mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$bb mount -t tmpfs -o mode=1777 tmpfs /dev/shm
$bb mount -t mqueue mqueue /dev/mqueue
$bb mount -t cgroup2 cgroup2 /sys/fs/cgroup
$bb mount -t tracefs tracefs /sys/kernel/tracing
$bb ln -sf /proc/self/fd /dev/fd
$bb ln -sf /proc/self/fd/0 /dev/stdin
$bb ln -sf /proc/self/fd/1 /dev/stdout
$bb ln -sf /proc/self/fd/2 /dev/stderr
$bb chmod 666 /dev/kvm
$bb ip link set lo up
$bb hostname emulated-host
index=0
for out in $outs; do
  # The path is in the variable out_<index>: it may hold any byte.
  eval "path=\$out_$index"
  # shellcheck disable=SC2154  # Just assigned.
  $bb mount -t 9p -o trans=virtio,version=9p2000.L,cache=mmap,msize=512000 \
    "$out" "$path"
  index=$((index + 1))
done
wait $scratch

$bb mkfifo $here/stdout $here/stderr
$bb cat $here/stdout >/dev/vport3p1 &
copy_out=$!
$bb cat $here/stderr >/dev/vport3p2 &
copy_err=$!

# Held open here until the command has ended, so that the copiers see the end
# of the stream only then.
exec 3>$here/stdout 4>$here/stderr
(
  exec >$here/stdout 2>$here/stderr </dev/null 3>&- 4>&-
  run
) &
wait $!
status=$?
exec 3>&- 4>&-

# Whatever the command left running would hold the streams open.
for process in /proc/[0-9]*; do
  pid=${process#/proc/}
  case $pid in
    1 | "$copy_out" | "$copy_err") ;;
    *) [ -e "$process/exe" ] && $bb kill -9 "$pid" 2>/dev/null ;;
  esac
done
wait $copy_out $copy_err

index=0
for out in $outs; do
  eval "path=\$out_$index"
  $bb umount "$path" || $bb sync
  index=$((index + 1))
done
echo "$status" >/dev/vport3p3
$bb poweroff -nf
