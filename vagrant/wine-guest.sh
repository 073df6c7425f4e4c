#!/bin/sh
# wine-guest.sh ROOT FOLDER COMMAND...: COMMAND in a throw-away copy of ROOT, FOLDER/checkout and
# FOLDER/out as its C:\checkout (the working directory) and C:\out. With FOLDER '', in ROOT itself.
#
# Invariant: it is PID 1 of namespaces made for it, so wineserver and all of Wine's processes end
# with COMMAND, whatever ends it. Leaves those namespaces to the caller (wine-lab, wine.sh).
set -eu
root=$1 folder=$2
shift 2
if [ "$folder" ]; then
    mkdir "$folder/layers" "$folder/root"
    mount -t tmpfs tmpfs "$folder/layers"
    mkdir "$folder/layers/upper" "$folder/layers/work"
    mount -t overlay -o "lowerdir=$root,upperdir=$folder/layers/upper,workdir=$folder/layers/work" \
        overlay "$folder/root"
    root=$folder/root
    for name in checkout out; do
        mkdir "$root/wine/drive_c/$name"
        mount --bind "$folder/$name" "$root/wine/drive_c/$name"
    done
fi
for node in null zero random urandom tty; do mount --bind "/dev/$node" "$root/dev/$node"; done
mkdir -p "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -sf pts/ptmx "$root/dev/ptmx"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
[ -z "$folder" ] || set -- sh -c 'cd /wine/drive_c/checkout && exec "$@"' sh "$@"
# No Mono, no Gecko, no menus: each would be asked for, or waited for.
exec /usr/sbin/chroot "$root" env -i HOME=/root USER=root TERM="${TERM:-dumb}" LANG=C.UTF-8 \
    PATH=/usr/lib/wine:/usr/bin:/bin WINEPREFIX=/wine WINEPATH='C:\python' \
    WINEDEBUG="${WINEDEBUG:--all}" WINEDLLOVERRIDES='mscoree,mshtml,winemenubuilder.exe=' \
    PYTHONPATH='C:\checkout' PYTHONDONTWRITEBYTECODE=1 PYTEST_ADDOPTS="${PYTEST_ADDOPTS-}" \
    SANDRUN_LAB=wine SANDRUN_LAB_OUT='C:\out' SANDRUN_TEST_SCALE="${SANDRUN_TEST_SCALE:-3}" \
    "$@"
