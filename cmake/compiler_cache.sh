# shellcheck shell=bash
# To be sourced by the scripts that build everything: CMake runs the compilers
# by way of ccache, so that a fresh clone compiles only what no clone on this
# machine has compiled before. In ${CATNAP_CACHE:-~/.cache/catnap}/ccache, at most
# 3 GB. Paths below the project's folder count relative to it.
if command -v ccache >/dev/null; then
  export CMAKE_C_COMPILER_LAUNCHER=ccache CMAKE_CXX_COMPILER_LAUNCHER=ccache
  export CCACHE_DIR="${CATNAP_CACHE:-$HOME/.cache/catnap}/ccache"
  export CCACHE_BASEDIR="$PWD" CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=3G
  # Precompiled headers need the first two.
  export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
fi
