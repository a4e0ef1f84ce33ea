#!/usr/bin/env bash
# Builds the image of deploy/docker from a dist folder, on a bare Debian made here (no registry is asked), and runs it
# as a container runtime would: process 1, user 65532, read-only root. Prints sizes. As root, with buildah and
# debootstrap. Usage: tools/check_image.sh FOLDER_WITH_weir-VERSION [LIMIT_MB_WITHOUT_MODEL]
set -euo pipefail
cd "$(dirname "$0")/.."

dist=$(realpath "${1:?usage: tools/check_image.sh DIST_FOLDER [LIMIT_MB]}")
limit_mb=${2:-150}
for tool in buildah debootstrap; do
  command -v $tool >/dev/null || { echo "skipped: $tool is missing: apt-get install $tool" >&2; exit 77; }
done
[ "$(id -u)" -eq 0 ] || { echo "skipped: building images this way needs root" >&2; exit 77; }

# The bare Debian of check_dist.sh.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/weir-bare-systems
base=$cache/bookworm
if [ ! -e "$base/ready" ]; then
  mkdir -p "$cache" && rm -rf "$base"
  debootstrap --variant=minbase --components=main bookworm "$base" http://deb.debian.org/debian >"$cache/bookworm.log" 2>&1 ||
    { tail -n 5 "$cache/bookworm.log" >&2; exit 1; }
  touch "$base/ready"
fi

work=$(mktemp -d)
server=
clean_up() {
  [ -z "$server" ] || kill -9 "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap clean_up EXIT
b() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }

# What the build needs of the base is a shell and the system's libraries; the rest would only be copied around.
mkdir "$work/base" "$work/context"
tar -C "$base" --exclude=./weir --exclude=./proc --exclude=./sys --exclude=./dev --exclude=./usr/share/locale \
  --exclude=./usr/share/man --exclude=./var/cache --exclude=./var/lib/apt -cf - . | tar -C "$work/base" -xf -
container=$(b from scratch)
b copy --quiet "$container" "$work/base" / >/dev/null
b commit --quiet --format docker "$container" bare-debian >/dev/null
b rm "$container" >/dev/null
rm -rf "$work/base"

mkdir "$work/context/dist" "$work/context/tools"
cp -r deploy "$work/context/"
cp tools/install_dependencies.sh "$work/context/tools/"
cp -r "$dist"/weir-* "$work/context/dist/"
build() {  # NAME MODEL
  b build --isolation chroot --format docker --quiet --layers=false -f deploy/docker/Dockerfile -t "$1" \
    --build-arg BUILD_BASE=localhost/bare-debian --build-arg DIST=given --build-arg MODEL="$2" "$work/context" >"$work/build.log" 2>&1 ||
    { cat "$work/build.log" >&2; exit 1; }
}
build weir 1
container=$(b from localhost/weir)
root=$(b mount "$container")

with=$(du -sm --apparent-size "$root" | cut -f1)
without=$(du -sm --apparent-size --exclude=models "$root" | cut -f1)
packed=$(tar -C "$root" --exclude=./opt/weir/models -cf - . | gzip -1 | wc -c)
echo "image: $with MB, $without MB without the model (limit $limit_mb), $((packed / 1000000)) MB of it to transfer"
[ "$without" -le "$limit_mb" ] || { echo "the image is larger than $limit_mb MB" >&2; exit 1; }
for tool in bin/sh usr/bin/sh bin/bash usr/bin/apt; do
  [ ! -e "$root/$tool" ] || { echo "the image has /$tool" >&2; exit 1; }
done
b inspect --type image localhost/weir >"$work/image.json"
python3 - "$work/image.json" <<'PYTHON'
import json, sys
config = json.load(open(sys.argv[1]))["Docker"]["config"]
assert config["User"] == "65532:65532", config["User"]
assert config["Entrypoint"] == ["/opt/weir/bin/weir"], config["Entrypoint"]
assert config["Healthcheck"]["Test"][1:] == ["/opt/weir/bin/weir", "health"], config["Healthcheck"]
print("runs as", config["User"], *config["Cmd"][:2])
PYTHON

# Process 1 of its own namespaces, nothing writable but /tmp.
mkdir -m 777 "$work/tmp"
: >"$work/log"
unshare --mount --pid --fork --kill-child bash -ec '
  mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
  mount --bind "$2" "$1/tmp" && mount -t proc proc "$1/proc"
  exec chroot --userspec=65532:65532 "$1" /opt/weir/bin/weir serve /opt/weir/models/weir-tiny --threads 2 \
    --grpc 127.0.0.1:0 --http 127.0.0.1:0 --metrics 127.0.0.1:0 --ready-file /tmp/ready.json' - "$root" "$work/tmp" >"$work/log" 2>&1 &
server=$!
for _ in $(seq 300); do
  [ ! -e "$work/tmp/ready.json" ] || break
  kill -0 $server 2>/dev/null || { cat "$work/log" >&2; exit 1; }
  sleep 0.1
done
address=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["grpc"])' "$work/tmp/ready.json")
http=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["http"])' "$work/tmp/ready.json")
inner=$(pgrep -P $server)
grep -qP '^Uid:\t65532\t65532' "/proc/$inner/status" || { echo "does not run as 65532" >&2; exit 1; }
grep -qE '^NSpid:.*\s1$' "/proc/$inner/status" || { echo "is not process 1" >&2; exit 1; }
if touch "/proc/$inner/root/opt/weir/written" 2>/dev/null; then echo "its root is writable" >&2; exit 1; fi

inside() { nsenter -t "$inner" -m -p -r -w -S 65532 -G 65532 -- /opt/weir/bin/weir "$@"; }
inside health --server "$address"
! inside health --server 127.0.0.1:1 2>/dev/null || { echo "health says yes of nobody" >&2; exit 1; }
inside generate --server "$address" --temperature 0 --max-tokens 12 --prompt "Once upon a time"
python3 - "http://$http" <<'PYTHON'
import json, sys, urllib.request
for path in ("/ready", "/v1/models", "/"):
    with urllib.request.urlopen(sys.argv[1] + path, timeout=10) as answer:
        print("GET", path, answer.status, json.load(answer)["data"][0]["id"] if path == "/v1/models" else "")
PYTHON
kill -TERM "$inner"
code=0
wait $server || code=$?
server=
[ "$code" -eq 0 ] || { echo "ended with $code after SIGTERM" >&2; cat "$work/log" >&2; exit 1; }
echo "drained and ended with 0 as process 1"
