#!/bin/sh
# reuse_objects.sh BUILT COMPILER ARG...
#
# A compiler launcher for builds of the library in other projects: takes the
# object of the build in BUILT where that exists, so that the package tests
# need not compile the library three more times. One file is always
# compiled, because include paths and flags are what such a build gets wrong,
# and they are the same for all.
built=$1
shift
out= depfile= previous=
for argument in "$@"; do
  case $previous in
    -o) out=$argument ;;
    -MF) depfile=$argument ;;
  esac
  previous=$argument
done
case $out in
  */catnap_objects.dir/base/status.cc.o) ;;
  */*_objects.dir/*)
    from=$built/lib/CMakeFiles/${out##*/CMakeFiles/}
    if cp "$from" "$out" 2>/dev/null; then
      if [ -n "$depfile" ]; then echo "$out: $from" >"$depfile"; fi
      exit 0
    fi ;;
esac
exec "$@"
