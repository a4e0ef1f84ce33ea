#!/usr/bin/env bash
# Installs what a build of Weir needs on Debian 12 (or newer) and prints nothing when all is there.
# As root, or with sudo. Usage: tools/install_dependencies.sh [--dev | --test]
set -euo pipefail

packages=(
  build-essential cmake ninja-build ccache pkg-config curl ca-certificates
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev libre2-dev
  libc-ares-dev zlib1g-dev libssl-dev prometheus-cpp-dev libyaml-cpp-dev libspdlog-dev libcli11-dev
  nlohmann-json3-dev libboost1.81-dev libxxhash-dev libgtest-dev libgmock-dev libbenchmark-dev
  python3 python3-venv
)
if [ "${1:-}" = "--dev" ]; then
  packages+=(clang clang-format clang-tidy gdb)
fi
# The web page is tested in a real browser (110 MB, about half a minute), the dashboard by a real Prometheus.
if [ "${1:-}" = "--test" ]; then
  packages+=(chromium prometheus)
fi

# The Rust toolchain of a plain Debian 12 is too old for the text library; its backport for browsers
# is recent enough. A newer one on PATH (rustup, say) is used as it is.
rust_is_recent() {
  command -v cargo >/dev/null 2>&1 || return 1
  local minor
  minor=$(cargo --version | sed -E 's/^cargo 1\.([0-9]+).*/\1/')
  [ "${minor:-0}" -ge 85 ] 2>/dev/null
}
rust_is_recent || packages+=(cargo-web rustc-web)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
  sudo=()
elif command -v sudo >/dev/null 2>&1; then
  sudo=(sudo)
else
  echo "These packages are missing: ${missing[*]}" >&2
  echo "Install them as root, or install sudo and run make again." >&2
  exit 1
fi

echo "Installing ${#missing[@]} packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${sudo[@]}" apt-get update -qq &&
       DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends \
         "${missing[@]}"; } >"$log" 2>&1; then
  cat "$log" >&2
  echo "Installing the packages failed; the lines above say why." >&2
  exit 1
fi
