#!/bin/sh
# kernel.sh source|package OUT: a User Mode Linux kernel from Debian's packages, as one program.
#
# source:  the newest kernel source that Debian's backports carry, configured by uml.config.
# package: Debian 12's user-mode-linux, ready made and older; README.md lists what it lacks.
# Promises: OUT appears whole or not at all; apt and the compiler live in a private root that is
# thrown away, so the host needs neither a compiler nor other package sources.
# Needs mmdebstrap (and uidmap for a plain user); compiling takes some 2 GB of disk.
set -eu
from=$1 out=$2 here=$(dirname "$(realpath "$0")")
work=$(mktemp -d "${TMPDIR:-/tmp}/sandrun-kernel.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 143' HUP INT TERM # or dash would leave without the line above
# Root's mmdebstrap mounts /proc, /sys and the host's own /dev/shm (writable!) in its tree. In a
# namespace of their own they go with it even on SIGKILL, and no later `rm -r` can follow them out.
private=
[ "$(id -u)" != 0 ] || private="unshare --mount --propagation private"

if [ "$from" = package ]; then
    $private mmdebstrap --quiet --variant=apt --include=user-mode-linux \
        --customize-hook="copy-out /usr/bin/linux.uml $work" bookworm /dev/null </dev/null
    mv "$work/linux.uml" "$out"
    exit
fi

# The mirror that mmdebstrap chose for trixie also has its backports.
# shellcheck disable=SC2016
backports='sed "s/ trixie / trixie-backports /" "$1/etc/apt/sources.list" |
    grep -m1 trixie-backports >"$1/etc/apt/sources.list.d/backports.list"'
cat >"$work/compile" <<'E'
#!/bin/sh
set -eu
mkdir /build
tar -C /build --strip-components=1 -xf "$(ls /usr/src/linux-source-*.tar.xz | tail -n 1)"
cd /build
make -s ARCH=um tinyconfig
scripts/kconfig/merge_config.sh -m .config /uml.config >/dev/null
make -s ARCH=um olddefconfig
# Options are renamed from one kernel to the next. One that holds up nothing is only named; without
# a controller the whole laboratory would be a pretence.
for option in $(grep -v '^#' /uml.config | cut -d= -f1); do
    grep -q "^$option=" .config && continue
    echo "not in force: $option"
    case $option in *CGROUP* | *MEMCG* | *_PSI) exit 1 ;; esac
done
make -s ARCH=um -j"$(nproc)" linux >/dev/null
strip -o /linux-uml linux
E
# shellcheck disable=SC2016
$private mmdebstrap --quiet --variant=apt --setup-hook="$backports" \
    --aptopt='Acquire::Retries "3"' --aptopt='APT::Install-Recommends "false"' \
    --include='linux-source/trixie-backports,gcc,libc6-dev,make,flex,bison,bc,libelf-dev,xz-utils' \
    --customize-hook="copy-in $here/uml.config $work/compile /" \
    --customize-hook='chroot "$1" sh /compile' \
    --customize-hook="copy-out /linux-uml $work" \
    trixie /dev/null </dev/null
mv "$work/linux-uml" "$out"
