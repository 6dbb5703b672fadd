#!/bin/bash
# check_format.sh [--fix] [FILE...]
#
# Fails and shows where if a C or C++ file is not as clang-format wants it;
# --fix rewrites the files instead. Without FILEs: all that git knows or would
# add.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=(--dry-run --Werror)
if [[ ${1:-} == --fix ]]; then
  mode=(-i)
  shift
fi
if (($# > 0)); then
  files=("$@")
elif git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  mapfile -t files < <(git ls-files --cached --others --exclude-standard \
    '*.h' '*.cc' '*.c' | while read -r f; do
      if [[ -f $f ]]; then echo "$f"; fi
    done)
else
  mapfile -t files < <(find include lib tests bench examples \
    -name '*.h' -o -name '*.cc' -o -name '*.c')
fi
printf '%s\0' "${files[@]}" |
  xargs -0 -n 20 -P "$(nproc)" clang-format-14 \
    --style=file:cmake/clang-format.yaml "${mode[@]}"
echo "format: ${#files[@]} files"
