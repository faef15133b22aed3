#!/bin/sh
# Puts Debian's etcd-server into a folder of the cache, to be measured beside. Nothing is installed: the
# package is unpacked, no daemon starts. Prints the program's path.
set -eu
folder="${CONCLAVE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/conclave}/etcd"
program="$folder/usr/bin/etcd"
if [ ! -x "$program" ]; then
    if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
        echo "fetch-etcd: apt-get and dpkg are needed; elsewhere, put etcd 3.4 at $program" >&2
        exit 1
    fi
    mkdir -p "$folder"
    cd "$folder"
    # apt cannot drop its rights in a private folder, and says so; that is fine.
    if ! apt-get download etcd-server >fetch.log 2>&1; then
        cat fetch.log >&2
        echo "fetch-etcd: run 'apt-get update' and try again" >&2
        exit 1
    fi
    dpkg -x etcd-server_*.deb .
    rm -f etcd-server_*.deb
fi
echo "$program"
