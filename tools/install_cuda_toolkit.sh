#!/usr/bin/env bash
# Brings the pinned CUDA toolkit as Python wheels (real toolkit files, about 550 MB to fetch, 1.5 GB on disk) where
# none is installed. No GPU and no root needed. Usage: tools/install_cuda_toolkit.sh FOLDER
set -euo pipefail

folder=${1:?usage: tools/install_cuda_toolkit.sh FOLDER}
wheels=(
  nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 nvidia-cublas==13.0.2.14 nvidia-nvtx==13.0.85
)
stamp=$folder/installed
[ "$(cat "$stamp" 2>/dev/null)" = "${wheels[*]}" ] && exit 0

echo "Fetching the CUDA 13.0 toolkit into $folder"
part=$folder.part
rm -rf "$part"
trap 'rm -rf "$part"' EXIT
python3 -m venv "$part/venv"
"$part/venv/bin/pip" install -q --disable-pip-version-check --no-cache-dir --no-compile --no-deps \
  --target "$part" "${wheels[@]}"
rm -rf "$part/venv"
root=$part/nvidia/cu13
ln -sfn lib "$root/lib64"
# CMake and linkers look for unversioned names.
for library in cublas cublasLt cudart; do
  ln -sf "lib$library.so.13" "$root/lib/lib$library.so"
done
echo "${wheels[*]}" > "$part/installed"
rm -rf "$folder"
mv "$part" "$folder"
