#!/usr/bin/env bash
# Packs what tools/gpu_check.sh needs besides the repository itself into one folder, small enough to carry to a
# machine with a GPU: binary, libraries, kernel tests (all stripped), and the shapes where they are here.
# Usage: tools/pack_gpu_check.sh BUILD_FOLDER FOLDER      there: tools/gpu_check.sh --folder FOLDER
set -euo pipefail

build=${1:?usage: tools/pack_gpu_check.sh BUILD_FOLDER FOLDER}
to=${2:?usage: tools/pack_gpu_check.sh BUILD_FOLDER FOLDER}
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/lib" "$work/tests" "$to"
strip -o "$work/weir" "$build/weir"
for test in "$build"/tests/kernels_*; do
  [ -x "$test" ] && strip -o "$work/tests/$(basename "$test")" "$test"
done
ldd "$build/weir" | sed -nE 's/^\s*(\S+) => (\S+) .*/\1 \2/p' | while read -r name path; do
  case $name in
    libc.so*|libm.so*|libgcc_s.so*|libstdc++.so*|libz.so*|libdl.so*|librt.so*|libpthread.so*) ;;
    *) cp -L "$path" "$work/lib/$name" ;;
  esac
done
# The tests share most of their code: one archive with a dictionary larger than all of them.
tar -C "$work" --sort=name -cf - weir lib tests | xz -T1 -6 --lzma2=preset=6,dict=192MiB > "$to/files.tar.xz"
shapes=${WEIR_SHARED_DIR:-$root/../shared}/shapes
if [ -d "$shapes" ]; then
  mkdir -p "$to/shapes"
  cp "$shapes"/*.json "$to/shapes/"
fi
du -sh "$to" | cut -f1
