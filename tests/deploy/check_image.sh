#!/usr/bin/env bash
# Makes a dist folder of the build and runs tools/check_image.sh on it. Usage: check_image.sh BUILD_FOLDER
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
limit=150
if grep -qE '^WEIR_CUDA_USED(:\w+)?=.+' "$1/CMakeCache.txt"; then limit=1000; fi
"$root/tools/make_dist.py" "$1" "$folder" >/dev/null
code=0
"$root/tools/check_image.sh" "$folder" $limit || code=$?
exit $code
