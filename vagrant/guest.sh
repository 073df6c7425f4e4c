#!/bin/sh
# guest.sh: what the machine does, run there as root by lab.service; /job is the host's folder.
#
# Reads /job/settings (shell words), /job/site (sandrun as pip installed it), /job/checkout,
# /job/command.sh. Streams the command's output to the serial lines (ttyS0 stdout, ttyS1 stderr);
# writes /job/out/* and, last, /job/rc: its absence tells the host that the machine failed.
. /job/settings # HIERARCHY, PYTHON, USER, LOGIN, JUNIT, SCALE, IMAGE
stty -F /dev/ttyS0 raw -echo
stty -F /dev/ttyS1 raw -echo

fail() { # one line, and no /job/rc
    echo "lab: $*" >/dev/ttyS1
    stty -F /dev/ttyS1 raw
    exit
}

share() { # HOST-FOLDER DIRECTORY; 6.x kernels want hostfs=PATH, older ones the bare path
    mount -t hostfs -o "ro,hostfs=$1" none "$2" 2>/dev/null || mount -t hostfs -o "ro,$1" none "$2"
}

mount /dev/ubdb /usr/local || fail "the disk of Python packages does not mount"
# Times kept: compiled modules are valid only for the source of the second they name.
cp -r --preserve=timestamps /job/site/. /usr/local/ || fail "sandrun was not installed"
[ -n "$(find /usr/local -name "model.cpython-3${PYTHON#3.}.pyc" -print -quit)" ] ||
    python3 -m compileall -q "/usr/local/lib/python$PYTHON/dist-packages/sandrun"
mkswap -q /dev/ubdc && swapon /dev/ubdc || echo "lab: no swap" >/dev/ttyS1

case $HIERARCHY in
v2) grep -q memory /sys/fs/cgroup/cgroup.controllers ;;
v1) [ -d /sys/fs/cgroup/memory ] && [ ! -e /sys/fs/cgroup/unified ] ;;
hybrid) [ -d /sys/fs/cgroup/memory ] && [ -e /sys/fs/cgroup/unified/cgroup.procs ] ;;
esac || fail "this kernel did not give a $HIERARCHY hierarchy with a memory controller"

home=$(getent passwd "$USER" | cut -d: -f6)
install -d -o "$USER" -g "$USER" "$home/checkout"
install -d -m 1777 /run/lab-out
cp -r --preserve=mode,timestamps,links --no-dereference /job/checkout/. "$home/checkout/"
chown -R -h "$USER:$USER" "$home/checkout"
rootfs=
if [ -n "$IMAGE" ]; then
    rootfs=/srv/container
    mkdir /run/lab-image $rootfs
    share "$IMAGE" /run/lab-image && tar -C $rootfs -xpf /run/lab-image/root.tar &&
        cp /run/lab-image/config.json $rootfs.json || fail "the container's image does not unpack"
    # The working directory and the mount points, which rootless podman may not make in root's tree.
    mkdir -p $rootfs/project $rootfs/run/lab-out $rootfs/run/secrets $rootfs/dev/pts
    for name in etc/resolv.conf etc/hosts etc/hostname run/.containerenv; do
        [ -e $rootfs/$name ] || touch $rootfs/$name
    done
    ln -sf ../proc/self/mounts $rootfs/etc/mtab
fi

# Sourced by command.sh after the login has made its own environment.
cat >/run/lab-env <<E
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=$home LANG=C.UTF-8
export SANDRUN_LAB=$HIERARCHY SANDRUN_LAB_OUT=/run/lab-out SANDRUN_TEST_SCALE=$SCALE
${rootfs:+export SANDRUN_CONTAINER_ROOTFS=$rootfs}
${JUNIT:+export PYTEST_ADDOPTS=--junitxml=/run/lab-out/junit.xml}
cd $home/checkout
E
cp /job/command.sh /run/lab-command

# Pipes, as in CI: a serial line would be a terminal. The readers are given one second after the
# command, no more: what it leaves behind may hold the pipes open for ever.
mkfifo /run/lab-1 /run/lab-2
cat /run/lab-1 >/dev/ttyS0 &
readers=$!
cat /run/lab-2 >/dev/ttyS1 &
readers="$readers $!"
if [ -n "$LOGIN" ]; then
    # -l: through PAM, so systemd-logind makes a session scope (not delegated), as ssh would.
    runuser -l "$USER" -c 'sh /run/lab-command' </dev/null >/run/lab-1 2>/run/lab-2
else
    # In the service's own group, which is delegated: what a CI runner gives.
    env -i TERM=dumb USER=root LOGNAME=root SHELL=/bin/bash sh /run/lab-command \
        </dev/null >/run/lab-1 2>/run/lab-2
fi
rc=$?
for reader in $readers; do
    timeout 1 tail --pid="$reader" -f /dev/null
done
# stty drains the line: nothing is lost at power-off.
stty -F /dev/ttyS0 raw
stty -F /dev/ttyS1 raw
cp -r /run/lab-out/. /job/out/
echo "$rc" >/job/rc
