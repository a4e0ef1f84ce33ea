#!/usr/bin/env bash
# Sees to it that a build finds a CUDA toolkit where it should have one. Fetches the pinned one into .cuda
# when none is installed and either an NVIDIA GPU is here or --always is given. Never fails: without a
# toolkit the build is for the CPU, and this says why.
set -uo pipefail
cd "$(dirname "$0")/.."

recent() {  # of 12.8 or newer?
  local version
  version=$("$1" --version 2>/dev/null | sed -nE 's/.*release ([0-9]+)\.([0-9]+).*/\1 \2/p')
  [ -n "$version" ] || return 1
  set -- $version
  [ "$1" -gt 12 ] || { [ "$1" -eq 12 ] && [ "$2" -ge 8 ]; }
}

# Somebody decided: nothing to provide.
case "${CMAKE_FLAGS:-}" in *WEIR_CUDA=OFF*|*WEIR_CUDA_ROOT=*) exit 0 ;; esac

if [ ! -e .cuda ]; then
  for nvcc in /usr/local/cuda/bin/nvcc "$(command -v nvcc)"; do
    [ -n "$nvcc" ] && recent "$nvcc" && exit 0
  done
  if [ "${1:-}" != "--always" ] && ! ls /dev/nvidia[0-9]* >/dev/null 2>&1 &&
     ! nvidia-smi -L >/dev/null 2>&1; then
    exit 0
  fi
fi
# Also where .cuda is there: the pins may have moved.
tools/install_cuda_toolkit.sh .cuda && exit 0
echo "The CUDA toolkit could not be fetched (the lines above say why): what is built now runs on the CPU only."
echo "Install CUDA 12.8 or newer, or run make cuda-toolkit where the Python package index can be reached."
exit 0
