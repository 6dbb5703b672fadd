#!/bin/bash
# Boots the same kernel and initramfs with Catnap and with QEMU's microvm, in
# turn, and compares how long each takes to the guest's first line from user
# space: 1 vCPU, 128 MiB, quiet console.
#
#   bench/peers/boot_vs_qemu.sh [--samples N] [--json FILE]     (default: 5)
#
#   boot/<vmm>/run_to_line     first entry of the guest to the line's last byte
#   boot/<vmm>/spawn_to_line   start of the process to the same
#
# <vmm> is catnap, qemu (with all CPU features of the host) and qemu_v2 (without
# those that Catnap's default baseline x86-64-v2 does not show, so that both
# guests run the same code: the kernel patches itself after these features).
#
# Both are read off one clock, the host kernel's trace of guest entries and port
# writes, so neither program measures itself. Needs build/release with the
# examples and the guest kernel, and QEMU. Runs in the emulated host where KVM
# does not run Linux; elsewhere it needs root, for the trace.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
boot_guest=$project/build/release/examples/boot_guest
kernel=$project/build/release/guest/vmlinux
initramfs=$project/build/release/guest/initramfs

fail() {
  echo "boot_vs_qemu.sh: $*" >&2
  exit 1
}

samples=5
json=
while (($# > 0)); do
  case $1 in
    --samples) samples=${2:?"--samples needs a number"} ;;
    --json) json=$(realpath "${2:?"--json needs a file"}") ;;
    *) fail "unknown argument '$1'; usage: [--samples N] [--json FILE]" ;;
  esac
  shift 2
done
for file in "$boot_guest" "$kernel" "$initramfs"; do
  [[ -r $file ]] || fail "no $file: build the preset release first"
done
"$project/cmake/setup.sh" emulated

# Enters the emulated host once, when it is needed.
if [[ -z ${CATNAP_BOOT_VS_QEMU:-} ]]; then
  arguments=(--samples "$samples")
  outs=()
  if [[ -n $json ]]; then
    arguments+=(--json "$json")
    outs=(--out "$(dirname "$json")")
  fi
  exec "$project/tests/emulated_host/run.sh" --if-needed --timeout 900 \
    "${outs[@]}" --env CATNAP_BOOT_VS_QEMU=1 -- \
    "${BASH_SOURCE[0]}" "${arguments[@]}"
fi

trace=/sys/kernel/tracing/instances/catnap_boot
mkdir "$trace" 2>/dev/null || fail "cannot trace in ${trace%/*}: it needs root"
results=$(mktemp)
cleaned() {
  rmdir "$trace"
  rm -f "$results"
}
trap cleaned EXIT
echo mono >"$trace/trace_clock"
echo 4096 >"$trace/buffer_size_kb"
echo 'port == 0x3f8' >"$trace/events/kvm/kvm_pio/filter"
echo 1 >"$trace/events/kvm/kvm_pio/enable"

words="console=ttyS0 quiet panic=-1"
boot_catnap() {
  exec "$boot_guest" "$kernel" "$initramfs" --memory-mib 128 --vcpus 1 \
    --command-line "$words"
}
# The least of a machine that still powers off. Its small firmware (qboot), the
# kernel's ELF entry and KVM's own IOAPIC are QEMU's quickest choices here.
boot_qemu() {
  local without=${1:-}
  exec qemu-system-x86_64 \
    -M microvm,pic=off,pit=off,rtc=off,acpi=on,ioapic2=off,x-option-roms=off \
    -M auto-kernel-cmdline=off -bios qboot.rom -cpu "host$without" -smp 1 -m 128 \
    -accel kvm,kernel-irqchip=on -nodefaults -no-user-config -display none \
    -no-reboot -serial stdio \
    -kernel "$kernel" -initrd "$initramfs" -append "$words"
}

boot_qemu_v2() {
  boot_qemu ",-erms,-fsrm,-pcid,-invpcid,-fsgsbase,-smap,-smep,-rdrand,\
-rdseed,-xsave,-avx,-avx2,-adx,-clflushopt,-clwb,-pku,-umip,-sha-ni,-aes,\
-pclmulqdq,-f16c,-fma,-movbe,-pdpe1gb"
}

# Reads a trace; prints run_to_line and spawn_to_line in µs.
# shellcheck disable=SC2016  # awk expands it.
times='
function hex(text,   value, i) {
  value = 0
  for (i = 1; i <= length(text); i++) {
    value = value * 16 + index("0123456789abcdef", substr(text, i, 1)) - 1
  }
  return value
}
{
  match($0, /[0-9]+\.[0-9]+: /)
  at = substr($0, RSTART, RLENGTH - 2)
  if (base == "") base = at
  at -= base
}
/tracing_mark_write: spawn/ { spawned = at }
/ kvm_entry: / && entered == "" { entered = at }
/ kvm_pio: pio_write at 0x3f8 / && reached == "" {
  match($0, /val 0x[0-9a-f]+/)
  value = hex(substr($0, RSTART + 6, RLENGTH - 6))
  if (value == 10) {
    if (line ~ /catnap-init:/) reached = at
    line = ""
  } else {
    line = line sprintf("%c", value)
  }
}
END {
  if (spawned == "" || entered == "" || reached == "") exit 1
  printf "%.0f %.0f\n", (reached - entered) * 1e6, (reached - spawned) * 1e6
}'

measure() {
  local vmm=$1 run spawn
  # Entries are many: the first exit switches their event off.
  local trigger=$trace/events/kvm/kvm_exit/trigger
  echo '!disable_event:kvm:kvm_entry' >"$trigger" 2>/dev/null || true
  echo 'disable_event:kvm:kvm_entry:1' >"$trigger"
  echo 1 >"$trace/events/kvm/kvm_entry/enable"
  echo >"$trace/trace"
  (
    echo spawn >"$trace/trace_marker"
    "boot_$vmm"
  ) >"$results.out" 2>&1 </dev/null || {
    cat "$results.out" >&2
    fail "$vmm ended with an error"
  }
  if ! awk "$times" "$trace/trace" >"$results.one"; then
    cat "$results.out" >&2
    fail "the trace of $vmm does not hold the whole boot"
  fi
  read -r run spawn <"$results.one"
  rm -f "$results.out" "$results.one"
  echo "boot/$vmm/run_to_line $run" >>"$results"
  echo "boot/$vmm/spawn_to_line $spawn" >>"$results"
}

# The first of each finds nothing in the page cache.
for vmm in catnap qemu qemu_v2; do measure $vmm; done
: >"$results"
for ((sample = 0; sample < samples; sample++)); do
  for vmm in catnap qemu qemu_v2; do measure $vmm; done
done

environment=kvm
[[ -z ${CATNAP_EMULATED_HOST:-} ]] || environment=emulated
host=$(printf '{"kernel": "%s", "cpu": "%s", "cores": %d}' "$(uname -r)" \
  "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)" \
  "$(nproc)")
echo "environment: $environment, host: $host"
printf '%-30s %6s %12s %12s %12s %12s %8s\n' \
  metric unit min p50 p99 max samples
exec 3>&1
lines=$(for metric in run_to_line spawn_to_line; do
  for vmm in catnap qemu qemu_v2; do
    grep "^boot/$vmm/$metric " "$results" | sort -k 2 -n |
      awk -v environment="$environment" -v host="$host" '
        { value[NR] = $2; name = $1 }
        END {
          middle = int((NR + 1) / 2)
          printf "{\"name\": \"%s\", \"unit\": \"us\", \"min\": %d, ", name,
            value[1]
          printf "\"p50\": %d, \"p99\": %d, \"max\": %d, \"samples\": %d, ",
            value[middle], value[NR], value[NR], NR
          printf "\"environment\": \"%s\", \"host\": %s}\n", environment, host
          printf "%-30s %6s %12d %12d %12d %12d %8d\n", name, "us", value[1],
            value[middle], value[NR], value[NR], NR >"/dev/fd/3"
        }'
  done
done)
[[ -z $json ]] || echo "$lines" >>"$json"
