"""Mount and IPC namespaces for one process, in which chosen directories are empty and private.

Promises that either the whole plan is in force before the command's first instruction, or the
command is not started. The forked child enters the namespaces between entering its container and
exec. So the command keeps its pid, parent, process group, container and exit code, and is
supervised like any other. What the run writes there is charged to its container, and the kernel
removes it with the run's last process, however that ends.

Mechanism (unshare(2), mount_namespaces(7), ipc_namespaces(7)): in a mount namespace, a tmpfs covers
each directory, and what the command needs of the covered directory is bound back. Root needs
nothing else. A plain user needs a user namespace whose only uid and gid are the user's own, like
that of `unshare --map-current-user` (user_namespaces(7)): exec drops the capabilities, and
set-user-ID programs gain nothing in it.

Measured as a plain user, compared with the bare command: these calls cost 2.7 ms, 2 of them for
ctypes; `unshare sh -c 'mount ...; exec "$@"'` costs 4.5 ms, and its failures look like the
command's; `bwrap` costs 2.1 ms, but it stays as the command's parent, takes signals and job control
from it, sets no_new_privs, and is usually not installed.
"""

import errno
import os
import stat
import sys

from sandrun.model import SandrunError
from sandrun.platform import processes, spawn

assert sys.platform == "linux"

_NEWNS, _NEWIPC, _NEWUSER = 0x20000, 0x08000000, 0x10000000  # <linux/sched.h>
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8  # <linux/mount.h>, and ST_NOEXEC of statvfs(3)
_BIND, _REC, _SLAVE = 1 << 12, 1 << 14, 1 << 19


class Plan:
    """Which directories to cover, and what to bind back into them.

    Each of the `steps` is a directory and three lists of names below it: directories to make,
    symbolic links to copy, and paths to bind back. A bind mount is made at the real path, so the
    links on the way to it, and on the way to each covered directory, are copied too.
    """

    def __init__(self, directories: "list[str]", names: "set[str]", cwd: str, ipc: bool) -> None:
        """`directories` are real paths, outer ones first. `names` are the paths that must still
        work; they are bound back unless they are among `directories`. `cwd` is the path of the
        directory in which the command starts."""
        import ctypes  # before the fork: the child only makes calls

        self.libc = ctypes.CDLL(None, use_errno=True)
        self.long = ctypes.c_ulong
        self.errno = ctypes.get_errno
        self.flags = _NEWNS | (_NEWIPC if ipc else 0)
        self.ids = os.geteuid(), os.getegid()
        self.cwd = cwd
        self.options = ""
        """The options of each tmpfs (tmpfs(5))."""
        self.steps: list[tuple[str, list[str], list[str], list[str]]] = []
        kept, links = set(), set()
        for name in names:
            # A relative name could not be looked up if the current directory was removed.
            if os.path.isabs(name) and os.path.exists(name):
                path, passed = _follow(name)
                kept.add(path)
                links |= passed
        kept -= set(directories)
        for path in directories:
            self._add(path, {k for k in kept if is_below(k, path)}, links)

    def _add(self, path: str, kept: "set[str]", links: "set[str]") -> None:
        """Add a directory to cover. The directories that contain it were added before."""
        outer = next((step for step in reversed(self.steps) if is_below(path, step[0])), None)
        if outer and not any(is_below(path, f"{outer[0]}/{k}") for k in outer[3]):
            outer[1].append(path[len(outer[0]) + 1 :])
            return

        def below(found: "set[str]") -> "list[str]":
            visible = (f for f in found if not any(is_below(f, k) for k in kept))
            return sorted(f[len(path) + 1 :] for f in visible if is_below(f, path))

        self.steps.append((path, [], below(links), below(kept)))

    def enter(self) -> None:
        """Enter the namespaces with this process, which has only one thread.

        Raises OSError. The plan may then be half in force, so the process must end.
        """
        self._unshare()
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        is_named = is_current(self.cwd)
        # An unmount outside must be seen here, and no mount of ours may be seen outside.
        self._mount("", "/", "", _REC | _SLAVE)
        for step in self.steps:
            self._cover(*step)
        if self.flags & _NEWIPC and os.path.isdir("/dev/mqueue"):
            self._mount("mqueue", "/dev/mqueue", "mqueue", _NOSUID | _NODEV | _NOEXEC)
        if is_named and any(is_below(self.cwd, step[0]) for step in self.steps):
            os.chdir(self.cwd)
        else:
            os.fchdir(here)  # its path may be gone, or lead to another directory by now
        os.close(here)

    def _unshare(self) -> None:
        if self.libc.unshare(self.flags) == 0:
            return
        if self.ids[0] == 0 or self.errno() != errno.EPERM:
            raise self._error("unshare(2)")
        if self.libc.unshare(self.flags | _NEWUSER):
            raise self._error("unshare(2)")
        uid, gid = self.ids
        files = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, text in files.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    def _cover(
        self, directory: str, made: "list[str]", links: "list[str]", kept: "list[str]"
    ) -> None:
        """Cover a directory. We stay in the covered one, so relative names still reach what it
        contains."""
        os.chdir(directory)
        noexec = os.statvfs(".").f_flag & _NOEXEC
        info = os.stat(".")
        self._mount("tmpfs", directory, "tmpfs", _NOSUID | _NODEV | noexec, self.options)
        _copy_owner_and_mode(directory, info)
        for name in made + kept:
            _make_target(directory, name)
        for name in links:
            _copy_link(directory, name)
        for name in kept:
            self._mount(name, f"{directory}/{name}", "", _BIND | _REC)

    def _mount(self, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        words = [os.fsencode(word) or None for word in (source, target, kind)]
        if self.libc.mount(*words, self.long(flags), os.fsencode(options) or None):
            raise self._error(f"mount(2) on {target}")

    def _error(self, what: str) -> OSError:
        return OSError(self.errno(), os.strerror(self.errno()), what)


def _follow(path: str) -> "tuple[str, set[str]]":
    """The real path, and the symbolic links on the way, each under its directory's real path."""
    at, rest = "/", path.split("/")[::-1]
    links: list[str] = []
    while rest and len(links) < 40:  # path_resolution(7)
        part = rest.pop()
        if part == "..":
            at = os.path.dirname(at)
        if part in ("", ".", ".."):
            continue
        here = os.path.join(at, part)
        try:
            target = os.readlink(here)
        except OSError:
            at = here
            continue
        links.append(here)
        rest += target.split("/")[::-1]
        at = "/" if target.startswith("/") else at
    return at, set(links)


def is_current(path: str) -> bool:
    """Whether an absolute path leads to the current directory."""
    try:
        return os.path.isabs(path) and os.path.samefile(path, ".")
    except OSError:
        return False


def is_below(path: str, directory: str) -> bool:
    return path.startswith(directory + "/")


def _make_target(directory: str, name: str) -> None:
    """Make an empty file or directory in `directory` on which to mount our relative `name`."""
    at = ""
    for part in name.split("/"):
        at += "/" + part
        info = os.stat("." + at)
        if stat.S_ISDIR(info.st_mode):
            if not os.path.isdir(directory + at):
                os.mkdir(directory + at)
                _copy_owner_and_mode(directory + at, info)
        else:
            os.close(os.open(directory + at, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))


def _copy_link(directory: str, name: str) -> None:
    """Make a copy in `directory` of the symbolic link with our relative `name`."""
    above = os.path.dirname(name)
    if above:
        _make_target(directory, above)
    path = f"{directory}/{name}"
    os.symlink(os.readlink(name), path)
    if os.geteuid() == 0:
        info = os.lstat(name)
        try:
            os.lchown(path, info.st_uid, info.st_gid)  # for protected_symlinks in proc(5)
        except OSError:
            pass  # the owner does not exist in our user namespace


def _copy_owner_and_mode(path: str, info: os.stat_result) -> None:
    if os.geteuid() == 0:
        try:
            os.chown(path, info.st_uid, info.st_gid)
        except OSError:
            pass  # the owner does not exist in our user namespace
    os.chmod(path, stat.S_IMODE(info.st_mode))


def attempt(planned: Plan) -> "SandrunError | None":
    """Enter the namespaces in a child process. Returns the error, or None if that worked."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            planned.enter()
            os.write(write_end, b"+")
        except OSError as error:
            os.write(write_end, spawn.encode_failure("N", error))
        finally:
            os._exit(0)
    os.close(write_end)
    answer = os.read(read_end, 4096)
    os.close(read_end)
    os.waitpid(pid, 0)
    return None if answer == b"+" else refusal(*spawn.decode_failure(answer)[1:])


_SWITCHES = (
    ("user.max_mnt_namespaces", b"0", "15000", True),
    ("user.max_ipc_namespaces", b"0", "15000", True),
    ("user.max_user_namespaces", b"0", "15000", False),
    ("kernel.unprivileged_userns_clone", b"0", "1", False),  # Debian's and Arch's kernels
    ("kernel.apparmor_restrict_unprivileged_userns", b"1", "0", False),  # Ubuntu 23.10
)
"""Settings that forbid namespaces: the name, the value that forbids, one that allows, and whether
it forbids root too."""


def refusal(number: int, what: str) -> SandrunError:
    """The error of a run that cannot have its own directories and IPC, with a way to allow them."""
    text = f"a run cannot have a /tmp or IPC of its own here: {what}: {os.strerror(number)}"
    return SandrunError(text, _hint(number))


def _hint(number: int) -> str:
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "something there was renamed or removed in between: start it again"
    is_root = os.geteuid() == 0
    for name, off, on, for_root in _SWITCHES:
        path = "/proc/sys/" + name.replace(".", "/")
        if (for_root or not is_root) and _read(path).strip() == off:
            return f"allow namespaces{'' if for_root else ', or run as root'}: sysctl {name}={on}"
    mounts = _read("/proc/self/mountinfo").splitlines()
    if mounts and not any(mount.split()[4] == b"/" for mount in mounts):
        return "the root directory is not a mount point, as in a chroot: mount --bind DIR DIR first"
    if number not in (errno.EPERM, errno.EACCES, errno.ENOSPC):
        return ""
    if is_root:
        return "a container needs the right to mount: --cap-add SYS_ADMIN"
    return "this container or kernel does not let users make namespaces: run as root"


def _read(path: str) -> bytes:
    try:
        return processes.read(path)
    except OSError:
        return b""  # this kernel has no such setting
