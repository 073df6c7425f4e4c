#!/bin/sh
# provision.sh [--offline]: install sandrun from /checkout into /opt/sandrun, with what its tests need.
#
# Promises: `sandrun` in /usr/local/bin; may be repeated. The distribution's python-prctl is
# used where there is one, hence --system-site-packages: it needs no compiler. Offline the system's
# pip and setuptools build it: the setuptools that Debian 12 puts into an environment is too old.
set -eu
python=python3
offline=
without=
if [ "${1-}" = --offline ]; then
    # The local box has everything installed: pip must not even look for a network.
    offline="--no-index --no-build-isolation" without=--without-pip
elif command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -q -y --no-install-recommends python3-venv python3-prctl make git
elif command -v dnf >/dev/null; then
    dnf install -q -y python3.11 python3.11-pip make git
    python=python3.11
elif command -v apk >/dev/null; then
    apk add -q python3 make git
    rc-update -q add cgroups boot && rc-service -q cgroups start
else
    echo "provision: no package manager that is known here" >&2
    exit 1
fi
# shellcheck disable=SC2086
"$python" -m venv --system-site-packages $without /opt/sandrun
# From a copy: the build writes into the folder that it builds.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r /checkout/. "$copy/"
# shellcheck disable=SC2086
/opt/sandrun/bin/python -m pip install -q --disable-pip-version-check $offline --upgrade "${copy}[test]" || {
    [ -z "$offline" ] || echo "hint: is the box older than pyproject.toml? Make it anew: README.md" >&2
    exit 1
}
ln -sf /opt/sandrun/bin/sandrun /usr/local/bin/sandrun
/usr/local/bin/sandrun --version # by its path: sudo of Alma leaves that folder out
