#!/bin/busybox sh
# shellcheck shell=dash
# Process 1 of the emulated host, first half, in the initramfs: loads modules,
# mounts the host's files read-only with a layer of memory over them, and hands
# over to guest_run.sh there. What it says goes to QEMU's serial console.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
# shellcheck disable=SC2046  # One word for each module.
$bb modprobe -a $($bb cat /modules)

set -e
$bb mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 \
  root /lower
$bb mount -t tmpfs -o size=90%,mode=755 tmpfs /overlay
$bb mkdir /overlay/upper /overlay/work
$bb mount -t overlay \
  -o lowerdir=/lower,upperdir=/overlay/upper,workdir=/overlay/work \
  overlay /mnt

for directory in proc sys dev run; do
  [ -d /mnt/$directory ] || $bb mkdir /mnt/$directory
done
$bb mount --move /proc /mnt/proc
$bb mount --move /sys /mnt/sys
$bb mount --move /dev /mnt/dev
$bb mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /mnt/run
$bb mkdir /mnt/run/emulated_host
$bb cp $bb /guest_run.sh /mnt/run/emulated_host/
$bb mkdir -p /mnt/run/lock
exec $bb switch_root /mnt /run/emulated_host/busybox sh \
  /run/emulated_host/guest_run.sh
