#!/bin/bash
# Runs a command as root in a machine emulated by QEMU that has hardware KVM
# (AMD SVM with nested paging, in software), with this machine's files.
#
#   tests/emulated_host/run.sh [--timeout SECONDS] [--out DIR]...
#     [--env NAME=VALUE]... [--if-needed] [--cpus N] [--memory MIB] [--no-flush]
#     -- CMD ARG...
#
# README.md beside this file says what the command finds. Exit status: the
# command's own; 124 when the time was up; 125 when the emulated host failed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
project=$(cd "$here/../.." && pwd)

fail() {
  echo "emulated host: $*" >&2
  exit 125
}

timeout=600
cpus=1
memory=6144
outs=()
environment=()
if_needed=
cache=writeback
while (($# > 0)); do
  case $1 in
    --timeout | --out | --env | --cpus | --memory)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --timeout) timeout=$2 ;;
        --out) outs+=("$2") ;;
        --env) environment+=("$2") ;;
        --cpus) cpus=$2 ;;
        --memory) memory=$2 ;;
      esac
      shift 2
      ;;
    --if-needed)
      if_needed=1
      shift
      ;;
    --no-flush)
      cache=unsafe
      shift
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown argument '$1' (the command comes after --)" ;;
  esac
done
(($# > 0)) || fail "no command; usage: run.sh [OPTION]... -- CMD ARG..."
[[ $timeout =~ ^[0-9]+$ && $cpus =~ ^[0-9]+$ && $memory =~ ^[0-9]+$ ]] ||
  fail "--timeout, --cpus and --memory take whole numbers"
for setting in "${environment[@]}"; do
  [[ $setting =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] ||
    fail "--env takes NAME=VALUE, not '$setting'"
done

if [[ -n $if_needed ]]; then
  probe=${CATNAP_PROBE:-$project/build/release/examples/probe_host}
  if [[ -n ${CATNAP_EMULATED_HOST:-} ]] || "$probe" >/dev/null 2>&1; then
    exec timeout --foreground "$timeout" env "${environment[@]}" "$@"
  fi
  [[ -x $probe ]] ||
    echo "emulated host: used, since there is no probe at $probe" >&2
fi

boot=$("$here/prepare.sh") || exit 125

# $1 as one word of the POSIX shell, whatever bytes it holds.
quote() {
  printf "'%s'" "${1//\'/\'\\\'\'}"
}

# The script that guest_run.sh reads.
write_command() {
  local name index=0
  printf 'directory='
  quote "$PWD"
  printf '\nouts="'
  for ((index = 0; index < ${#outs[@]}; index++)); do
    printf 'out%d ' "$index"
  done
  printf '"\n'
  for ((index = 0; index < ${#outs[@]}; index++)); do
    printf 'out_%d=' "$index"
    quote "${outs[index]}"
    printf '\n'
  done
  # shellcheck disable=SC2016  # The guest expands it.
  printf 'run() {\n  cd "$directory" || exit 126\n  exec $bb setsid $bb env -i'
  printf ' '
  quote "PATH=$PATH:/usr/sbin:/sbin"
  for name in HOME LANG LC_ALL TMPDIR "${!CATNAP_@}"; do
    if [[ -n ${!name:-} ]]; then
      printf ' '
      quote "$name=${!name}"
    fi
  done
  printf ' TERM=dumb USER=root LOGNAME=root CATNAP_EMULATED_HOST=1'
  for name in "${environment[@]}"; do
    printf ' '
    quote "$name"
  done
  # The new PATH finds the command, not busybox's.
  printf " /bin/sh -c 'exec \"\$@\"' sh"
  for name in "$@"; do
    printf ' '
    quote "$name"
  done
  printf '\n}\n'
}

for index in "${!outs[@]}"; do
  mkdir -p "${outs[index]}" || fail "--out ${outs[index]}: cannot make it"
  outs[index]=$(realpath "${outs[index]}")
done

# All files of a run are unlinked before QEMU starts: it opens them by their
# descriptors, and nothing is left behind however this ends.
temporary=$(mktemp -d "${TMPDIR:-/tmp}/catnap-emulated-host.XXXXXX")
qemu=
timer=
# shellcheck disable=SC2317  # The traps reach it.
clean_up() {
  rm -rf "$temporary"
  [[ -z $qemu ]] || kill -9 "$qemu" 2>/dev/null || true
  [[ -z $timer ]] || kill -9 "$timer" 2>/dev/null || true
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
write_command "$@" >"$temporary/command"
mkfs=/usr/sbin  # Not in the PATH of everybody.
truncate -s 16G "$temporary/ext4" "$temporary/xfs"
if ! "$mkfs"/mkfs.ext4 -qF -E lazy_itable_init=1,lazy_journal_init=1,nodiscard \
  "$temporary/ext4" ||
  ! "$mkfs"/mkfs.xfs -qK -m reflink=1 "$temporary/xfs"; then
  fail "cannot format the scratch disks in $temporary"
fi
: >"$temporary/console"
: >"$temporary/status"
exec 3<>"$temporary/command" 4<>"$temporary/ext4" 5<>"$temporary/xfs" \
  6<>"$temporary/console" 7<>"$temporary/status"
rm -rf "$temporary"

# A pipe each: what is behind this program's own descriptors may be a file
# that must be appended to, a terminal or a socket.
exec 8> >(exec cat 3>&- 4>&- 5>&- 6>&- 7>&-)
copy_out=$!
exec 9> >(exec cat >&2 3>&- 4>&- 5>&- 6>&- 7>&- 8>&-)
copy_err=$!

# shellcheck disable=SC2054  # The commas are QEMU's.
devices=(
  -fw_cfg name=opt/catnap/command,file=/proc/self/fd/3
  -fsdev "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"
  -device virtio-9p-pci,fsdev=root,mount_tag=root
  -drive "if=none,id=ext4,file=/proc/self/fd/4,format=raw,discard=unmap,cache=$cache"
  -device virtio-blk-pci,drive=ext4
  -drive "if=none,id=xfs,file=/proc/self/fd/5,format=raw,discard=unmap,cache=$cache"
  -device virtio-blk-pci,drive=xfs
  -device virtio-serial-pci
  -chardev file,id=out,path=/proc/self/fd/8
  -device virtserialport,chardev=out,nr=1
  -chardev file,id=err,path=/proc/self/fd/9
  -device virtserialport,chardev=err,nr=2
  -chardev file,id=status,path=/proc/self/fd/7
  -device virtserialport,chardev=status,nr=3
  -chardev file,id=console,path=/proc/self/fd/6
  -serial chardev:console
)
for index in "${!outs[@]}"; do
  devices+=(
    -fsdev "local,id=out$index,path=${outs[index]//,/,,},security_model=none,multidevs=remap"
    -device "virtio-9p-pci,fsdev=out$index,mount_tag=out$index"
  )
done

# All of QEMU on one CPU. Its emulation of #VMEXIT clears a bit of the vCPU's
# pending interrupts by an instruction without lock prefix, and its other
# threads set bits in the same word the same way: running side by side they
# lose interrupts, or deliver vector 0, a few times a minute. One CPU executes
# such an instruction whole. A run beside another takes a CPU of its own.
choose_cpu() {
  local range first last
  for range in $(sed -n 's/^Cpus_allowed_list:\t//p' /proc/self/status |
    tr , ' '); do
    first=${range%-*} last=${range#*-}
    for ((; first <= last; first++)); do
      : "${cpu:=$first}"
      exec {cpu_lock}>"$boot/../cpu-$first.lock" || return 0
      if flock -n "$cpu_lock"; then
        cpu=$first
        return 0
      fi
      exec {cpu_lock}>&-
    done
  done
}
cpu=
choose_cpu

# A killed run.sh takes them with it.
setpriv --pdeathsig KILL taskset -c "$cpu" qemu-system-x86_64 \
  -M q35,i8042=off,hpet=off,smbus=off,sata=off,graphics=off,vmport=off \
  -accel tcg,thread=multi -cpu max,la57=off -smp "$cpus" -m "$memory" \
  -nodefaults -no-user-config -display none -no-reboot \
  -kernel "$boot/vmlinux" -initrd "$boot/initramfs" \
  -append "console=ttyS0 quiet loglevel=4 panic=-1 tsc=reliable nokaslr \
mitigations=off no_timer_check" \
  "${devices[@]}" </dev/null >&6 2>&6 8>&8 9>&9 &
qemu=$!
exec 8>&- 9>&-
setpriv --pdeathsig KILL sleep "$timeout" &
timer=$!
wait -n -p ended "$qemu" "$timer" || true
if [[ $ended == "$timer" ]]; then
  timer=
  kill -9 "$qemu"
fi
wait "$qemu" 2>/dev/null || true
qemu=
wait "$copy_out" "$copy_err" || true

# From the start: the descriptors' own positions are where QEMU wrote.
status=$(cat /proc/self/fd/7)
if [[ $status =~ ^[0-9]+$ ]]; then
  exit "$status"
fi
echo "emulated host: the end of its console:" >&2
tail -n 30 /proc/self/fd/6 | tr -d '\r' >&2
if [[ -z $timer ]]; then
  echo "emulated host: stopped after $timeout s (--timeout)" >&2
  exit 124
fi
fail "it ended before the command did"
