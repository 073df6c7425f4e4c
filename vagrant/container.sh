#!/bin/sh
# container.sh base OUT.tar SUITE: the root file system that stands for Containerfile's BASE
# container.sh image OUT BASE.tar STORE SUITE: what is in the image of vagrant/Containerfile:
#                                   OUT/root.tar, and what it says of itself: OUT/config.json
#
# Promises: Containerfile is built as it stands, by a real builder (buildah), without a registry:
# BASE is a minimal Debian SUITE from its packages, under the name that Containerfile gives it. What
# the host's apt and pip know of mirrors, proxies and certificates is lent to the build and is not in
# the image (empty files mark the place). STORE keeps the layers, so that a changed source costs
# only the steps after it.
# Leaves to others: caching and locks (labparts.py), running the image (tests/vm).
# Needs buildah and mmdebstrap; a plain user needs uidmap as well.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
verb=$1 out=$2
work=$(mktemp -d "${TMPDIR:-/tmp}/sandrun-container.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 143' HUP INT TERM # or dash would leave without the line above

# Like the image whose name it has: apt leaves no caches behind. The certificates are here because the
# build's own are lent, read-only, to where that package would put them.
base() { # SUITE
    apt_transport
    cat >"$work/clean" <<'E'
#!/bin/sh
cat >"$1/etc/apt/apt.conf.d/docker-clean" <<'A'
APT::Keep-Downloaded-Packages "false";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
A
rm -f "$1"/var/cache/apt/*.bin
E
    chmod 755 "$work/clean"
    private= # as in image.sh: mounts that go with their namespace
    [ "$(id -u)" != 0 ] || private="unshare --mount --propagation private"
    $private mmdebstrap --quiet --variant=minbase --include=ca-certificates \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --aptopt='Acquire::Retries "3"' --aptopt="$work/apt.conf" \
        --customize-hook="$work/clean \"\$1\"" "$1" "$out" </dev/null
}

store() { # ARGUMENT...: buildah, with a store of our own and nothing of the user's
    buildah --root "$layers" --runroot "$work/run" "$@"
}

import_base() { # NAME BASE.tar
    store inspect --type image "$1" >/dev/null 2>&1 && return
    container=$(store from scratch)
    store add -q "$container" "$2" /
    store commit -q --rm "$container" "$1"
}

apt_transport() { # as in image.sh
    apt-config dump | grep -E '^Acquire::(https?|Check-[A-Za-z-]+|Retries)\b.* "[^"]' \
        >"$work/apt.conf" || :
}

# How the host reaches its mirrors: options of `buildah bud`, one a line.
lent() {
    apt_transport
    {
        echo '[global]'
        # A directory of this host means nothing inside.
        python3 -m pip config list 2>/dev/null | grep -v file: |
            sed -nE "s/^(global|:env:)\.(index-url|extra-index-url|proxy|trusted-host)='(.*)'$/\2 = \3/p"
    } >"$work/pip.conf"
    printf '%s\n' "$work/apt.conf:/etc/apt/apt.conf.d/90host:ro" "$work/pip.conf:/etc/pip.conf:ro"
    # Certificates are links from one of these directories to another.
    for directory in /etc/ssl/certs /usr/share/ca-certificates /usr/local/share/ca-certificates; do
        [ ! -d "$directory" ] || printf '%s\n' "$directory:$directory:ro"
    done
}

image() { # BASE.tar SUITE
    suite=$2
    base=$(sed -n "s/^ARG BASE=\(.*:\)[a-z]*/\1$suite/p" "$here/Containerfile")
    import_base "$base" "$1"
    lent >"$work/lent"
    set -- --build-arg "BASE=$base"
    while IFS= read -r volume; do set -- "$@" --volume "$volume"; done <"$work/lent"
    for name in http_proxy https_proxy no_proxy; do
        eval "[ -z \"\${$name-}\" ] || set -- \"\$@\" --build-arg \"$name=\$$name\""
    done
    # Each stage has a name, so that pruning leaves the layers of both.
    for stage in build final; do
        target=
        [ $stage = final ] || target="--target $stage"
        # shellcheck disable=SC2086 # two words, or none
        store bud --pull-never --layers --isolation chroot --network host "$@" $target \
            --file "$here/Containerfile" --tag "localhost/sandrun-$stage-$suite" "$here/.."
    done
    store rmi --prune --force
    # Unpacked here: `podman load` takes four minutes in the laboratory.
    mkdir -p "$out"
    store inspect --type image "localhost/sandrun-final-$suite" >"$out/config.json"
    container=$(store from --pull-never "localhost/sandrun-final-$suite")
    tar -C "$(store mount "$container")" --numeric-owner -cf "$out/root.tar" .
    store rm "$container"
}

case $verb in
base) base "$3" ;;
image)
    # Mounts that go with their namespace; a plain user may make them in a user namespace only.
    if [ "${6-}" ]; then
        layers=$4 && image "$3" "$5"
    elif [ "$(id -u)" = 0 ]; then
        unshare --mount --propagation private "$0" "$@" private
    else
        buildah unshare "$0" "$@" private
    fi
    ;;
esac
