#!/usr/bin/env bash
# Prints the path of a helm to test the chart with: the one on PATH, else one built once with Go into the folder
# given (two minutes). Exits with 77 and a sentence where there is neither helm nor Go.
# Usage: tools/provide_helm.sh FOLDER
set -euo pipefail

version=v3.17.3
folder=$(realpath -m "${1:?usage: tools/provide_helm.sh FOLDER}")
if command -v helm >/dev/null 2>&1; then
  command -v helm
elif [ -x "$folder/helm" ]; then
  echo "$folder/helm"
elif ! command -v go >/dev/null 2>&1 || ! go version | grep -qE 'go1\.(2[3-9]|[3-9][0-9])'; then
  echo "neither helm nor Go 1.23 or newer is on PATH: the chart is not checked with helm" >&2
  exit 77
else
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  GOBIN=$folder GOFLAGS=-mod=mod go install "helm.sh/helm/v3/cmd/helm@$version" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
  echo "$folder/helm"
fi
