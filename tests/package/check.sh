#!/bin/sh
# check.sh STEP static|shared
#
# One step of the package tests, run by ctest, which passes the paths:
#   SOURCE BUILD   this project and its build folder
#   BUILD_LINKAGE  static or shared: what BUILD makes
#   WORK           a scratch folder that the steps share
#   CMAKE CXX      the programs to use
#
# Steps:
#   stage             installs the library under WORK and moves it, since users
#                     unpack packages where they like
#   find_package      a stranger's CMake project uses the installed tree
#   pkg_config        so does one without CMake
#   add_subdirectory  a stranger's CMake project contains the sources
#   exports           the shared library shows only what CATNAP_EXPORT marks
#
# Build folders are kept, so that a second run is quick; what is installed is
# made anew each time.
set -eu
step=$1
linkage=$2
here=$SOURCE/tests/package
stage=$WORK/$linkage
tree=$WORK/$step.$linkage
shared=OFF
if [ "$linkage" = shared ]; then shared=ON; fi
launcher="$here/reuse_objects.sh;$BUILD"
unset DESTDIR

configure() {  # configure SOURCE_DIR OPTION...
  source_dir=$1
  shift
  "$CMAKE" -G Ninja -S "$source_dir" -B "$tree" \
    -DCMAKE_CXX_COMPILER="$CXX" -DCMAKE_DISABLE_PRECOMPILE_HEADERS=ON "$@"
}

case $step in
  stage)
    rm -rf "$stage" "$stage.first"
    from=$BUILD
    if [ "$linkage" != "$BUILD_LINKAGE" ]; then
      configure "$SOURCE" -DBUILD_SHARED_LIBS=$shared \
        -DCMAKE_CXX_COMPILER_LAUNCHER="$launcher" \
        -DCATNAP_BUILD_TESTS=OFF -DCATNAP_BUILD_BENCH=OFF \
        -DCATNAP_BUILD_EXAMPLES=OFF -DCATNAP_GUEST_KERNEL=NONE
      "$CMAKE" --build "$tree"
      from=$tree
    fi
    "$CMAKE" --install "$from" --component catnap --prefix "$stage.first"
    mv "$stage.first" "$stage"
    test -s "$stage/share/doc/catnap/LICENSE"
    "$stage/libexec/catnap/catnap-rootfs" --version
    ;;
  find_package)
    configure "$here/stranger" -DCMAKE_PREFIX_PATH="$stage"
    "$CMAKE" --build "$tree"
    "$tree/stranger"
    "$tree/stranger_bare"
    ;;
  pkg_config)
    PKG_CONFIG_PATH=$(dirname "$(find "$stage" -name catnap.pc)")
    export PKG_CONFIG_PATH
    static=
    if [ "$linkage" = static ]; then static=--static; fi
    mkdir -p "$tree"
    # shellcheck disable=SC2046,SC2086  # pkg-config prints words.
    "$CXX" -std=c++20 -Wall -Wextra -Wpedantic -Werror \
      "$here/stranger/main.cc" -o "$tree/stranger" \
      $(pkg-config $static --cflags --libs catnap)
    "$(pkg-config --variable=libexecdir catnap)/catnap-rootfs" --version
    LD_LIBRARY_PATH=$stage/lib "$tree/stranger"
    ;;
  add_subdirectory)
    # The shared case is a parent project that uses the dependencies itself.
    configure "$here/stranger" -DSTRANGER_CATNAP_SOURCE="$SOURCE" \
      -DBUILD_SHARED_LIBS=$shared -DSTRANGER_BRINGS_DEPENDENCIES=$shared \
      -DCMAKE_CXX_COMPILER_LAUNCHER="$launcher"
    "$CMAKE" --build "$tree"
    "$tree/stranger"
    ;;
  exports)
    library=$(find "$stage" -name libcatnap.so)
    # Every name that a CATNAP_EXPORT of a public header introduces.
    cat "$SOURCE"/include/catnap/*.h | sed 's|//.*||' | tr '\n' ' ' |
      grep -oE 'CATNAP_EXPORT [^;{]*[;{]' |
      sed -nE 's/.*(class|struct) CATNAP_EXPORT ([A-Za-z0-9_]+).*/\2/p
               t
               s/^CATNAP_EXPORT ([A-Za-z0-9_]+) *(final)? *[:{].*/\1/p
               t
               s/^CATNAP_EXPORT [^(]*[ &*]([A-Za-z0-9_]+|operator[^( ]+)\(.*/\1/p' |
      sort -u >"$WORK/marked"
    test -s "$WORK/marked"
    nm --dynamic --defined-only --demangle "$library" |
      sed 's/^[0-9a-f]* [A-Za-z] //' >"$WORK/exported"
    grep -q '^catnap::ReasonOf(' "$WORK/exported"
    bad=0
    while IFS= read -r symbol; do
      name=${symbol#"vtable for "}
      name=${name#VTT for }
      name=${name#"typeinfo for "}
      name=${name#"typeinfo name for "}
      name=${name%%(*}
      case $name in
        catnap::*) ;;
        *) echo "not ours: $symbol"; bad=1; continue ;;
      esac
      found=0
      for part in $(echo "${name%%\[*}" | sed 's/::/ /g'); do
        if grep -qxF -- "$part" "$WORK/marked"; then found=1; fi
      done
      if [ $found = 0 ]; then echo "not marked: $symbol"; bad=1; fi
    done <"$WORK/exported"
    exit $bad
    ;;
  *)
    echo "check.sh: no step '$step'" >&2
    exit 2
    ;;
esac
