#!/usr/bin/env bash
# Runs a dist folder inside bare systems (debootstrap's minbase: a package manager and nothing else). As root, with
# debootstrap installed. Usage: tools/check_dist.sh dist/weir-VERSION [bookworm|noble ...]
set -euo pipefail

dist=$(realpath "${1:?usage: tools/check_dist.sh DIST_FOLDER [bookworm|noble ...]}")
shift
[ "$#" -gt 0 ] || set -- bookworm noble
command -v debootstrap >/dev/null || { echo "debootstrap is missing: apt-get install debootstrap" >&2; exit 1; }
cache=${XDG_CACHE_HOME:-$HOME/.cache}/weir-bare-systems
mkdir -p "$cache"
scripts=/usr/share/debootstrap/scripts
for suite in "$@"; do
  root=$cache/$suite
  if [ ! -e "$root/ready" ]; then
    rm -rf "$root"
    case $suite in
      # Debian's debootstrap may know neither newer Ubuntus nor their keys; nothing of the system leaves it.
      noble) flags=(--no-check-gpg); mirror=http://archive.ubuntu.com/ubuntu
             script=$scripts/noble; [ -e "$script" ] || script=$scripts/zesty ;;
      *) flags=(); mirror=http://deb.debian.org/debian; script=$scripts/$suite ;;
    esac
    debootstrap "${flags[@]}" --variant=minbase --components=main "$suite" "$root" "$mirror" "$script" >"$cache/$suite.log" 2>&1 ||
      { tail -n 5 "$cache/$suite.log" >&2; exit 1; }
    touch "$root/ready"
  fi
  # A mount namespace of its own: nothing stays mounted, whatever happens.
  unshare --mount bash -ec '
    mkdir -p "$1/weir" && mount --bind -o ro "$2" "$1/weir" && mount -t proc proc "$1/proc"
    exec chroot "$1" bash -ec "
      . /etc/os-release; echo \"\$PRETTY_NAME, \$(dpkg-query -f . -W | wc -c) packages\"
      cd /weir
      ! ldd bin/weir | grep \"not found\"
      bin/weir --version
      bin/weir check models/weir-tiny | tail -n 1
      bin/weir generate models/weir-tiny --temperature 0 --max-tokens 12 --prompt \"Once upon a time\""' \
    - "$root" "$dist"
done
