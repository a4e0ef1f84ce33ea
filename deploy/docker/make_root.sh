#!/usr/bin/env bash
# Lays out the file system of the image: /opt/weir and the libraries of the system that it was built on.
# Usage: make_root.sh DIST_FOLDER ROOT_FOLDER WITH_MODEL(0|1)
set -euo pipefail
dist=$(echo "$1"/weir-*)
root=$2
[ -x "$dist/bin/weir" ] || { echo "there is no weir-*/bin/weir in $1: run make dist" >&2; exit 1; }

mkdir -p "$root/opt" "$root/usr/lib/x86_64-linux-gnu" "$root/usr/lib64" "$root/etc/ssl/certs" "$root/usr/share/doc" \
  "$root/models" "$root/proc" "$root/sys" "$root/dev"
mkdir -m 1777 "$root/tmp"
# As on the system that the binary knows: /lib and /lib64 point into /usr.
ln -s usr/lib "$root/lib"
ln -s usr/lib64 "$root/lib64"
cp -r "$dist" "$root/opt/weir"
[ "$3" = 1 ] || rm -rf "$root/opt/weir/models"

# Libraries of the system, by what the binary and its own libraries ask for; the loader itself.
for library in $(ldd "$root/opt/weir/bin/weir" "$root"/opt/weir/lib/*.so* | sed -nE 's/.* => (\/(usr\/)?lib\S+) .*/\1/p' | sort -u); do
  cp -L "$library" "$root/usr/lib/x86_64-linux-gnu/"
  package=$(dpkg -S "$(basename "$library")" 2>/dev/null | sed -nE 's/^([^:]+).*/\1/p' | head -n 1)
  cp -n "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package.txt" 2>/dev/null || true
done
cp -L /lib64/ld-linux-x86-64.so.2 "$root/usr/lib64/"

echo "weir:x:65532:65532:weir:/tmp:/sbin/nologin" >"$root/etc/passwd"
echo "weir:x:65532:" >"$root/etc/group"
echo "hosts: files dns" >"$root/etc/nsswitch.conf"
# For TLS to elsewhere, where the base has them.
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/" 2>/dev/null || true
