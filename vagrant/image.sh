#!/bin/sh
# image.sh OUT.ext4 [FLAVOUR [SUITE]]: the laboratory's root file system, from Debian's packages;
# FLAVOUR is plain or containers, SUITE bookworm (systemd 252), trixie (257) or forky (testing).
#
# Promises: OUT appears whole or not at all; nothing of the host is changed (a private apt root, no
# mount); a system whose only job is lab.service, which runs /job/guest.sh of the folder that the
# host passes as `lab=` on the kernel line. All that may change from run to run lives there, not here.
# Leaves to others: caching (lab), the kernel (kernel.sh), the Python packages (lab, on a disk of their own).
# Needs mmdebstrap and e2fsprogs; a plain user needs fakeroot and uidmap as well.
set -eu
out=$1 flavour=${2:-plain} suite=${3:-bookworm}
work=$(mktemp -d "${TMPDIR:-/tmp}/sandrun-image.XXXXXX")
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 143' HUP INT TERM # or dash would leave without the line above
# Root's mmdebstrap mounts /proc, /sys and the host's own /dev/shm (writable!) in its tree. In a
# namespace of their own they go with it even on SIGKILL, and no later `rm -r` can follow them out.
private=
[ "$(id -u)" != 0 ] || private="unshare --mount --propagation private"
chmod 755 "$work" # a plain user's hooks run as another uid of his
as_root=fakeroot
[ "$(id -u)" != 0 ] || as_root=

packages=systemd,systemd-sysv,libpam-systemd,dbus,dbus-user-session,sudo,kmod,python3,python3-prctl
packages=$packages,procps,psmisc,iproute2,util-linux,make,git,tmux
size=1500M
if [ "$flavour" = containers ]; then
    packages=$packages,podman,crun,runc,docker.io,uidmap,ca-certificates
    size=3000M
fi

# How the host's apt reaches the archive, and whether it takes an old copy of it: what testing's
# Release files say is valid for a week, and mmdebstrap asks the host for its keys only.
apt-config dump | grep -E '^Acquire::(https?|Check-[A-Za-z-]+)\b.* "[^"]' >"$work/apt.conf" || :

# bootstrap TAR PACKAGES [OPTION...]: no manuals, no translations; they triple the size.
bootstrap() {
    tar=$1 include=$2
    shift 2
    $private mmdebstrap --quiet --variant=minbase --include="$include" \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --aptopt='Acquire::Retries "3"' --aptopt="$work/apt.conf" "$@" "$suite" "$tar" </dev/null
}

cat >"$work/lab.service" <<'E'
[Unit]
Description=The laboratory's one job
# The plain user's manager is up before the job starts: what a login would have found.
After=systemd-user-sessions.service systemd-logind.service dbus.service user@1000.service
Wants=systemd-logind.service dbus.service user@1000.service
FailureAction=poweroff-force
[Service]
Type=exec
Delegate=yes
TimeoutSec=infinity
ExecStart=/usr/lib/sandrun-lab/lab-job
E
cat >"$work/lab.target" <<'E'
[Unit]
Description=Boot, do the job, power off
Requires=basic.target lab.service
After=basic.target
AllowIsolate=yes
E
cat >"$work/lab-job" <<'E'
#!/bin/sh
# Kept in the image, so kept short: find the host's folder and do what it says.
for word in $(cat /proc/cmdline); do
    case $word in lab=*) folder=${word#lab=} ;; esac
done
# 6.x kernels with the new mount interface want hostfs=PATH, older ones the bare path.
mount -t hostfs -o "hostfs=$folder" none /job 2>/dev/null || mount -t hostfs -o "$folder" none /job
sh /job/guest.sh
umount /job
systemctl poweroff -ff
E
cat >"$work/setup" <<'E'
#!/bin/sh
# Runs on the host as (perhaps mapped) root; $1 is the new tree, $2 the folder with our files.
set -eu
root=$1 units=$1/etc/systemd/system
chroot "$root" useradd -m -u 1000 -s /bin/bash -G sudo vagrant
echo 'vagrant ALL=(ALL) NOPASSWD: ALL' >"$root/etc/sudoers.d/vagrant"
mkdir -p "$root/job" "$root/var/lib/systemd/linger" "$root/etc/systemd/journald.conf.d"
touch "$root/var/lib/systemd/linger/vagrant"
echo lab >"$root/etc/hostname"
echo '127.0.0.1 localhost lab' >"$root/etc/hosts"
: >"$root/etc/fstab"
echo 5a4d0000000000000000000000000001 >"$root/etc/machine-id"
printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/lab.conf"
install -m 644 "$2/lab.service" "$2/lab.target" "$units/"
# Not in /usr/local: the disk of the Python packages will cover it.
install -D -m 755 "$2/lab-job" "$root/usr/lib/sandrun-lab/lab-job"
# What a machine without disks, screens and network only waits for: half of the boot.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-pstore.service systemd-random-seed.service \
    systemd-update-utmp.service systemd-journal-flush.service systemd-modules-load.service \
    systemd-sysusers.service systemd-firstboot.service systemd-machine-id-commit.service \
    systemd-remount-fs.service systemd-tmpfiles-clean.timer getty@tty1.service \
    serial-getty@ttyS0.service sys-kernel-debug.mount sys-kernel-tracing.mount \
    sys-kernel-config.mount sys-fs-fuse-connections.mount dev-hugepages.mount \
    proc-sys-fs-binfmt_misc.automount modprobe@drm.service modprobe@dm_mod.service \
    modprobe@fuse.service modprobe@loop.service modprobe@configfs.service \
    modprobe@efi_pstore.service docker.service docker.socket containerd.service \
    podman.service podman.socket podman-auto-update.timer podman-restart.service; do
    ln -sf /dev/null "$units/$unit"
done
rm -f "$root/etc/resolv.conf"
E
chmod 755 "$work/setup"

bootstrap "$work/root.tar" "$packages" --customize-hook="$work/setup \"\$1\" $work"

# One fakeroot session for unpacking and mke2fs: what it pretends about owners does not outlive it.
# shellcheck disable=SC2016
$as_root sh -euc '
    work=$1 out=$2 size=$3
    mkdir "$work/root"
    tar -C "$work/root" --exclude="./dev/*" -xpf "$work/root.tar"
    truncate -s "$size" "$out.part"
    mke2fs -q -F -t ext4 -O ^has_journal,^metadata_csum -m 0 -L root -d "$work/root" "$out.part"
' sh "$work" "$out" "$size"
mv "$out.part" "$out"
