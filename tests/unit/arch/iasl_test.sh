#!/bin/sh
# iasl must take every table of the smallest and of the largest machine, find
# nothing to say about the DSDT, and make the same bytes of it again.
# Usage: iasl_test.sh ACPI_DUMP. Exit status 77: iasl is not installed.
set -eu
command -v iasl > /dev/null || exit 77
dump=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

fail() {
  echo "$*"
  cat "$folder/log"
  exit 1
}

# check_machine VCPUS DEVICES
check_machine() {
  rm -f "$folder"/*
  "$dump" "$1" "$2" "$folder"
  for name in FACP APIC XSDT DSDT; do
    table=$folder/$name
    iasl -d "$table.aml" > "$folder/log" 2>&1 || fail "disassemble $name"
    grep -q -i -E 'error|warning|invalid|unknown' "$folder/log" "$table.dsl" &&
      fail "iasl about $name: $(grep -i -E 'error|warning|invalid|unknown' \
        "$table.dsl")"
    # Without optimizations, so that it keeps each name as it was written.
    iasl -oa -p "$folder/again_$name" "$table.dsl" > "$folder/log" 2>&1 ||
      fail "compile $name"
    grep -q '0 Errors, 0 Warnings, 0 Remarks' "$folder/log" ||
      fail "iasl has remarks about $name"
    # The header names the compiler; behind it all must be the same.
    tail -c +37 "$table.aml" > "$folder/ours"
    tail -c +37 "$folder/again_$name.aml" > "$folder/theirs"
    cmp "$folder/ours" "$folder/theirs" || fail "$name comes back changed"
  done
  echo "iasl accepts the tables of $1 vCPUs and $2 devices"
}

check_machine 1 0
check_machine 2 1
check_machine 32 18
