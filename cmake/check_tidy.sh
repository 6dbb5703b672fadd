#!/bin/bash
# check_tidy.sh [--quick [REV]] [--deep] [-p BUILD_DIR] [FILE...]
#
# Runs clang-tidy with cmake/clang-tidy.yaml; fails on any finding. Looks at
# FILEs, or with --quick at the sources that differ from REV (HEAD), or at
# every source in the compile database of BUILD_DIR (build/release).
#
# clang-tidy spends nearly all its time on what sources include, not on the
# sources. So up to a dozen C++ sources of a folder are looked at together, as
# one file of their text (not of #includes: the analyzer follows paths in the
# main file only). Those that cannot be compiled beside the ones before them (a
# name in two unnamed namespaces) wait for the next round.
#
# The analyzer follows the paths through each function up to a number of states
# that takes a third of the time that its own bound does; --deep has its own.
#
# What had no finding is not looked at again while it, what it includes and the
# rules stay as they are: ${CATNAP_CACHE:-~/.cache/catnap}/tidy says so.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
build=build/release
quick=
analyzer=(--extra-arg=-Xclang --extra-arg=-analyzer-config
  --extra-arg=-Xclang --extra-arg=max-nodes=20000)
files=()
while (($# > 0)); do
  case $1 in
    --quick)
      quick=HEAD
      if [[ ${2:-} != "" && ${2:-} != -* ]]; then quick=$2; shift; fi ;;
    --deep) analyzer=() ;;
    -p) build=$2; shift ;;
    -*) echo "check_tidy.sh: unknown option $1" >&2; exit 2 ;;
    *) files+=("$(realpath "$1")") ;;
  esac
  shift
done
database=$build/compile_commands.json
if [[ ! -f $database ]]; then
  echo "check_tidy.sh: no $database; configure that build first" >&2
  exit 2
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What the database has, less what others generated or own.
sed -nE 's/^ *"file": "(.*)",?$/\1/p' "$database" | sort -u |
  { grep "^$root/" || true; } | { grep -v "^$root/build/" || true; } \
  >"$work/known"
if [[ -n $quick ]]; then
  mapfile -t files < <(
    { git diff --name-only "$quick"; git ls-files --others --exclude-standard; } |
      sed "s|^|$root/|" | sort -u | comm -12 - "$work/known")
elif ((${#files[@]} == 0)); then
  mapfile -t files <"$work/known"
else
  mapfile -t files < <(printf '%s\n' "${files[@]}" | sort -u)
fi

# Include paths and definitions of all targets serve for each of them.
mapfile -t flags < <(grep '"command":' "$database" |
  grep -oE ' (-isystem |-[ID])[^ ]+' | sed 's/^ //; s/\\\\*"/"/g' | sort -u |
  sed 's/^-isystem /-isystem\n/')
flags+=(-std=c++20)
tidy=(clang-tidy-14 --quiet --config-file=cmake/clang-tidy.yaml "${analyzer[@]}"
  --header-filter="^$root/(include|lib|tests|bench|examples)/")

# Prints the findings of one clang-tidy run, less its counts of the warnings
# that the header filter left out.
run_tidy() {
  local status=0 output
  output=$("${tidy[@]}" "$@" 2>&1) || status=1
  grep -vE '^[0-9]+ warnings?( and .*)? generated|^$' <<<"$output" || true
  return $status
}

# join_sources UNIT SOURCE...: writes the sources' text to UNIT, and which of its
# lines are whose to UNIT.map.
join_sources() {
  local unit=$1 n=0 line=1 source
  shift
  : >"$unit"
  : >"$unit.map"
  for source in "$@"; do
    n=$((n + 1))
    # Programs have a main(), and fuzz targets an entry of one name.
    {
      printf '#define main Main%d\n' $n
      printf '#define LLVMFuzzerTestOneInput Fuzz%d\n' $n
      cat "$source"
      printf '\n#undef main\n#undef LLVMFuzzerTestOneInput\n'
    } >>"$unit"
    printf '%d %s\n' $((line + 1)) "$source" >>"$unit.map"
    line=$(($(wc -l <"$unit") + 1))
  done
}

# Names the source and its line where its input names UNIT and the line there.
map_lines() {
  awk -v unit="$1" '
    NR == FNR { first[NR] = $1; source[NR] = $2; n = NR; next }
    index($0, unit ":") == 1 {
      rest = substr($0, length(unit) + 2)
      line = rest + 0
      for (i = n; i > 1 && first[i] >= line; --i) {}
      sub("^[0-9]+", line - first[i], rest)
      $0 = source[i] ":" rest
    }
    { print }' "$1.map" -
}

# tidy_together NAME SOURCE...
tidy_together() {
  local name=$1 round=0 unit source status=0 now later
  local here=()  # Sources may include what lies beside them.
  local fewer=()
  shift
  # The analyzer follows every path through every assertion of a test, for
  # longer than all else takes: it looks at what users run.
  if [[ $name == tests* ]]; then fewer=(--checks=-clang-analyzer-\*); fi
  mapfile -t here < <(printf '%s\n' "${@%/*}" | sort -u | sed 's/^/-iquote/')
  while (($# > 0)); do
    unit=$work/$name.$round.cc
    now=("$@")
    later=()
    join_sources "$unit" "${now[@]}"
    if ! clang++-14 -fsyntax-only -w -ferror-limit=0 "${flags[@]}" "${here[@]}" \
      "$unit" 2>&1 | map_lines "$unit" >"$unit.errors"; then
      now=()
      for source in "$@"; do
        if ((${#now[@]} > 0)) &&
          grep -qE "^$source:[0-9:]+ (fatal )?error: " "$unit.errors"; then
          later+=("$source")
        else
          now+=("$source")
        fi
      done
      join_sources "$unit" "${now[@]}"
    fi
    run_tidy "${fewer[@]}" "$unit" -- "${flags[@]}" "${here[@]}" \
      >"$unit.findings" || status=1
    map_lines "$unit" <"$unit.findings"
    set -- "${later[@]}"
    round=$((round + 1))
  done
  return $status
}

# One job per line: a name, then the sources, which lie in one folder: a change
# there leaves the others' jobs as they were.
printf '%s\n' "${files[@]}" | awk -v at_most=12 -v root="$root/" '
  NF == 0 { next }
  /\.c$/ { print "c" ++c " " $0; next }
  {
    folder = substr($0, length(root) + 1)
    sub("/[^/]*$", "", folder)
    gsub("/", "_", folder)
    all[folder] = all[folder] " " $0
  }
  END {
    for (folder in all) {
      n = split(all[folder], source, " ")
      units = int((n + at_most - 1) / at_most)
      for (u = 0; u < units; ++u) {
        printf "%s.%d", folder, u
        for (i = int(n * u / units); i < int(n * (u + 1) / units); ++i)
          printf " %s", source[i + 1]
        print ""
      }
    }
  }' | sort >"$work/jobs"

# Prints the project's files that a file includes, by way of others as well, and
# itself: "FILE INCLUDED" for each pair, sources and headers alike.
# shellcheck disable=SC2016  # Perl's variables.
list_includes() {
  find include lib tests bench examples -name '*.h' -o -name '*.cc' \
    -o -name '*.c' | sort | perl -we '
    my %includes;
    chomp(my @files = <STDIN>);
    my %known = map { $_ => 1 } @files;
    for my $file (@files) {
      my ($folder) = $file =~ m{(.*)/};
      open(my $in, "<", $file) or die "$file: $!";
      while (<$in>) {
        next unless m{^\s*#\s*include\s*[<"]([^>"]+)[>"]};
        my ($found) = grep { $known{$_} }
          map { "$_/$1" } $folder, "include", "lib", "tests", "bench";
        push @{$includes{$file}}, $found if defined $found;
      }
    }
    for my $file (@files) {
      my %seen = ($file => 1);
      my @next = ($file);
      while (defined(my $at = shift @next)) {
        print "$file $at\n";
        push @next, grep { !$seen{$_}++ } @{$includes{$at} // []};
      }
    }'
}
list_includes >"$work/includes"

cache=${CATNAP_CACHE:-$HOME/.cache/catnap}/tidy
mkdir -p "$cache"
find "$cache" -type f -mtime +30 -delete
common=$({
  clang-tidy-14 --version
  printf '%s\n' "${flags[@]//$root/}" "${analyzer[@]}"
  cat cmake/check_tidy.sh cmake/clang-tidy.yaml
  dpkg-query -W libfmt-dev libabsl-dev liburing-dev libzstd-dev catch2 2>&1 ||
    true
} | sha256sum)

# remember KEY COMMAND...: runs it, and notes when it found nothing.
remember() {
  local key=$1
  shift
  "$@" && : >"$cache/$key"
}

failed=0
running=0
limit=$(nproc)
while read -r name sources; do
  # shellcheck disable=SC2086
  key=$({
    echo "$common"
    printf '%s\n' $sources | sed "s|^$root/||" |
      awk 'NR == FNR { wanted[$0]; next } $1 in wanted { print $2 }' \
        - "$work/includes" | sort -u | xargs sha256sum
  } | sha256sum | cut -c 1-64)
  if [[ -e $cache/$key ]]; then
    touch "$cache/$key"
    continue
  fi
  if ((running == limit)); then
    wait -n || failed=1
    running=$((running - 1))
  fi
  # Paths of the project hold no spaces, or the database would not either.
  # shellcheck disable=SC2086
  if [[ $name =~ ^c[0-9] ]]; then
    remember "$key" run_tidy -p "$build" $sources >"$work/$name.out" &
  else
    remember "$key" tidy_together "$name" $sources >"$work/$name.out" &
  fi
  running=$((running + 1))
done <"$work/jobs"
while ((running > 0)); do
  wait -n || failed=1
  running=$((running - 1))
done
cat "$work"/*.out 2>/dev/null || true
if ((failed)); then
  echo "tidy: findings above"
  exit 1
fi
echo "tidy: ${#files[@]} files"
