#!/usr/bin/env bash
# Runs the page's tests: run_node.sh BUILD [--browser] FILE... . Exit 77 (skipped) where there is no Node, or with
# --browser no Chromium.
set -euo pipefail
build=$1
shift
skip() {
  echo "skipped: $1"
  exit 77
}
[ -x "$build/node/bin/node" ] || skip "no $build/node/bin/node; tools/provide_node.sh $build provides it"
if [ "$1" = "--browser" ]; then
  shift
  if [ -z "${WEIR_CHROMIUM:-}" ]; then
    WEIR_CHROMIUM=$(command -v chromium || command -v chromium-browser || command -v google-chrome) ||
      skip "no Chromium; tools/install_dependencies.sh --test installs it, WEIR_CHROMIUM says where one is"
  fi
  [ -d "$build/node/node_modules/playwright-core" ] || skip "no playwright-core; tools/provide_node.sh $build provides it"
  export WEIR_CHROMIUM
fi
export WEIR_NODE_MODULES=$build/node/node_modules WEIR_BUILD_DIR=$build
exec "$build/node/bin/node" --test --test-timeout=60000 "$@"
