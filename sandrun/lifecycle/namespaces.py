"""An own /tmp and own IPC for a run (`--private-tmp`, `--private-ipc`): it leaves nothing there.

Promises that either all of it is in force before the command's first instruction, or the command
is not started. The forked child makes it for itself between entering the container and exec, so
the command keeps its pid, parent, process group, container and exit code, and is supervised as any
other. What the run writes there is memory of its container, and is gone with its last process,
whoever is killed how: the kernel takes namespaces, and what is mounted in one, away with it.

Mechanism (unshare(2), mount_namespaces(7), ipc_namespaces(7)): a mount namespace in which a tmpfs
covers each directory; in it, what the command needs of the covered directory is bound back (see
`Plan`). Root does it as it is. A plain user needs a user namespace, where the only uid and gid are
its own, as `unshare --map-current-user` has it (user_namespaces(7)): exec takes the capabilities
away again, and set-user-ID programs gain nothing in it.

Compared with the other ways to it, as a plain user, above the bare command: these calls 2.7 ms, of
which ctypes is 2; `unshare sh -c 'mount ...; exec "$@"'` 4.5 ms, and its failures look like the
command's; `bwrap` 2.1 ms, but it stays as the parent of the command, takes signals and job control
from it, sets no_new_privs, and is not installed as a rule.
"""

import errno
import os
import stat
import sys

from sandrun import messages
from sandrun.config import project
from sandrun.model import DARWIN, SandrunError
from sandrun.platform import processes, spawn
from sandrun.queue.state import lock_root, open_state, pool_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandrun.lifecycle import Request

_NEWNS, _NEWIPC, _NEWUSER = 0x20000, 0x08000000, 0x10000000  # <linux/sched.h>
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8  # <linux/mount.h>, and ST_NOEXEC of statvfs(3)
_BIND, _REC, _SLAVE = 1 << 12, 1 << 14, 1 << 19
_TEMPORARY = ("TMPDIR", "TEMP", "TMP")
"""What names a directory for temporary files: POSIX, and Python's tempfile."""
_NOT_KEPT = frozenset((*_TEMPORARY, "PWD", "OLDPWD", "_"))
"""Variables whose directories are not bound back."""


class Plan:
    """What a run covers, and what of it is bound back: `steps`, each a directory and, by their
    names below it, directories to be made anew, links to be made as they are, what is to be bound.

    Bound back is what the command cannot do without, or was told to use: the project, its git
    directories, where it starts, its program, sandrun itself with the state of the queues that the
    run holds (so that a run inside of it finds them), and what the environment names (HOME, PATH,
    SSH_AUTH_SOCK, ...). TMPDIR is not: below a covered directory it is made anew, elsewhere it is
    covered itself. Whatever the command was told leads where it led outside: what is bound has its
    real path, and the links on the way to it are made again, also those on the way to TMPDIR.
    """

    def __init__(self, directories: "list[str]", names: "set[str]", cwd: str, ipc: bool) -> None:
        """`directories`: real paths, those around others first; `names`: what is to be found by
        these paths, which is bound unless it is one of `directories`; `cwd`: where the command
        starts, by its name."""
        import ctypes  # before the fork: the child only calls

        self.libc = ctypes.CDLL(None, use_errno=True)
        self.long = ctypes.c_ulong
        self.errno = ctypes.get_errno
        self.flags = _NEWNS | (_NEWIPC if ipc else 0)
        self.who = os.geteuid(), os.getegid()
        self.cwd = cwd
        self.options = ""
        self.steps: list[tuple[str, list[str], list[str], list[str]]] = []
        kept, links = set(), set()
        for name in names:
            # A relative name would be looked up in a directory that may have been removed.
            if os.path.isabs(name) and os.path.exists(name):
                path, passed = _follow(name)
                kept.add(path)
                links |= passed
        kept -= set(directories)
        for path in directories:
            self._add(path, {k for k in kept if _is_below(k, path)}, links)

    def _add(self, path: str, kept: "set[str]", links: "set[str]") -> None:
        """Add a directory to be covered; those around it were added before."""
        around = next((step for step in reversed(self.steps) if _is_below(path, step[0])), None)
        if around and not any(_is_below(path, f"{around[0]}/{k}") for k in around[3]):
            around[1].append(path[len(around[0]) + 1 :])
            return

        def below(found: "set[str]") -> "list[str]":
            seen = (f for f in found if not any(_is_below(f, k) for k in kept))
            return sorted(f[len(path) + 1 :] for f in seen if _is_below(f, path))

        self.steps.append((path, [], below(links), below(kept)))

    def enter(self) -> None:
        """Make it so for this process, which has one thread. Raises OSError; half of it may be made
        then, so the process must end."""
        self._unshare()
        here = os.open(".", os.O_PATH | os.O_CLOEXEC)
        is_named = _is_here(self.cwd)
        # What is unmounted outside shall not stay in use here, and nothing of ours gets out.
        self._mount("", "/", "", _REC | _SLAVE)
        for step in self.steps:
            self._cover(*step)
        if self.flags & _NEWIPC and os.path.isdir("/dev/mqueue"):
            self._mount("mqueue", "/dev/mqueue", "mqueue", _NOSUID | _NODEV | _NOEXEC)
        if is_named and any(_is_below(self.cwd, step[0]) for step in self.steps):
            os.chdir(self.cwd)
        else:
            os.fchdir(here)  # which may have lost its name, or somebody else has it now
        os.close(here)

    def _unshare(self) -> None:
        if self.libc.unshare(self.flags) == 0:
            return
        if self.who[0] == 0 or self.errno() != errno.EPERM:
            raise self._error("unshare(2)")
        if self.libc.unshare(self.flags | _NEWUSER):
            raise self._error("unshare(2)")
        uid, gid = self.who
        files = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, text in files.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)

    def _cover(
        self, directory: str, made: "list[str]", links: "list[str]", kept: "list[str]"
    ) -> None:
        """Cover a directory. What was in it is still seen by relative names: we stay there."""
        os.chdir(directory)
        noexec = os.statvfs(".").f_flag & _NOEXEC
        info = os.stat(".")
        self._mount("tmpfs", directory, "tmpfs", _NOSUID | _NODEV | noexec, self.options)
        _make_like(directory, info)
        for name in made + kept:
            _make_place(directory, name)
        for name in links:
            _make_link(directory, name)
        for name in kept:
            self._mount(name, f"{directory}/{name}", "", _BIND | _REC)

    def _mount(self, source: str, target: str, kind: str, flags: int, options: str = "") -> None:
        words = [os.fsencode(word) or None for word in (source, target, kind)]
        if self.libc.mount(*words, self.long(flags), os.fsencode(options) or None):
            raise self._error(f"mount(2) on {target}")

    def _error(self, what: str) -> OSError:
        return OSError(self.errno(), os.strerror(self.errno()), what)


def plan(request: "Request", env: "Mapping[str, str]") -> Plan:
    """What is planned for a run whose command gets the environment `env`. Raises SandrunError."""
    settings, cwd = request.settings, project.working_directory()  # may have been renamed
    top = _project(request, cwd)
    covered = ["/dev/shm"] if settings.private_ipc else []
    temporary: list[str] = []
    if settings.private_tmp:
        covered += ["/tmp", "/var/tmp"]
        temporary += (env.get(name, "") for name in _TEMPORARY)
    own = {os.path.realpath(path) for path in covered if os.path.isdir(path)}
    directories = own | {
        os.path.realpath(path) for path in temporary if os.path.isabs(path) and os.path.isdir(path)
    }
    _refuse({top, cwd, "/"}, env, own, directories - own)
    names = {top, cwd, "/", *temporary, *_state(request), *_git((top, cwd), env)}
    names |= {*_programs(request.command[0], cwd), *named(env)}
    if _is_here(env.get("PWD", "")):
        names.add(env["PWD"])
    planned = Plan(sorted(directories), names, cwd, bool(settings.private_ipc))
    if settings.backend != "none":  # a monitor does not see what no process maps
        planned.options = f"size={settings.memory}"
    return planned


def _project(request: "Request", cwd: str) -> str:
    """The project's name now that we are in `cwd`: it may have been renamed during the wait."""
    start, top = request.cwd, request.project
    is_inside = start == top or _is_below(start, top)
    inner = start[len(top) :]
    return cwd.removesuffix(inner) if is_inside and cwd.endswith(inner) else top


def _refuse(
    places: "set[str]", env: "Mapping[str, str]", own: "set[str]", temporary: "set[str]"
) -> None:
    """Raise SandrunError if covering a directory would hide what the run is in, or what is written
    to HOME. `own`: what the options name, `temporary`: what only TMPDIR names. That may be any
    directory, so no variable may name it that is not about temporary files too (SLURM_TMPDIR,
    RUNNER_TEMP), or sandrun's."""
    names = dict.fromkeys(map(os.path.realpath, places), "")
    for name, value in env.items():
        is_temporary = "TMP" in name.upper() or "TEMP" in name.upper()
        if not (is_temporary or name in _NOT_KEPT or name.startswith("SANDRUN_")):
            paths = filter(os.path.isabs, {value, *value.split(":")})
            for path in map(os.path.realpath, paths):
                if path in temporary or name == "HOME":
                    names.setdefault(path, name)
    for path in sorted((own | temporary) & set(names)):
        name = names[path]
        hint = f"have {'TMPDIR' if path in temporary else name} name another one"
        raise SandrunError(
            f"the run cannot have a {path} of its own: "
            + (f"{name} names it" if name else "its project or directory is there"),
            hint if name else "start in a directory below it, or have TMPDIR name another one",
        )


def _follow(path: str) -> "tuple[str, set[str]]":
    """The real path, and the symbolic links on the way to it, each by its directory's real path."""
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


def _is_here(path: str) -> bool:
    """Whether an absolute path leads to the current directory."""
    try:
        return os.path.isabs(path) and os.path.samefile(path, ".")
    except OSError:
        return False


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory + "/")


def _state(request: "Request") -> "Iterator[str]":
    """The state that a run inside of this one shares with us; what any run may need is made."""
    for path in (pool_path(), lock_root()):
        try:
            os.close(open_state(path))
            yield path
        except SandrunError:
            continue  # who needs it says so
    yield request.state
    yield from map(os.path.dirname, request.enclosing.split(os.pathsep))


def _git(starts: "tuple[str, str]", env: "Mapping[str, str]") -> "Iterator[str]":
    from sandrun.git import repository

    for start in starts:
        found = repository.find(start, env)
        if found:
            yield from (found.git_dir, found.common_dir, found.top)


def _programs(name: str, cwd: str) -> "Iterator[str]":
    """The command's program, if named by a path, and what sandrun itself is made of."""
    if "/" in name:
        path = os.path.normpath(os.path.join(cwd, name))
        yield path
        yield from _with_prefix(os.path.dirname(path))
    yield from (os.path.join(cwd, path) for path in (sys.prefix, *filter(None, sys.path)))


_SEPARATORS = str.maketrans(":;,=@", "     ")


def named(env: "Mapping[str, str]") -> "Iterator[str]":
    """The absolute paths in the environment's values: whole ones, lists, addresses of D-Bus."""
    for name, value in env.items():
        if name not in _NOT_KEPT:
            words = {value, *value.translate(_SEPARATORS).split()}
            for path in filter(os.path.isabs, words):
                yield from _with_prefix(os.path.normpath(path))
    host, _, number = env.get("DISPLAY", "").rpartition(":")
    if number and host in ("", "unix"):
        yield "/tmp/.X11-unix/X" + number.partition(".")[0]  # X(7)


def _with_prefix(path: str) -> "Iterator[str]":
    """A directory of programs, and the one above it, which has what they need (as in a venv)."""
    yield path
    above, name = os.path.split(path)
    if name in ("bin", "sbin"):
        yield above


def _make_place(directory: str, name: str) -> None:
    """Make a place in `directory` for what `name` is where we are."""
    at = ""
    for part in name.split("/"):
        at += "/" + part
        info = os.stat("." + at)
        if stat.S_ISDIR(info.st_mode):
            if not os.path.isdir(directory + at):
                os.mkdir(directory + at)
                _make_like(directory + at, info)
        else:
            os.close(os.open(directory + at, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC))


def _make_link(directory: str, name: str) -> None:
    """Make a link in `directory` like the one that `name` is where we are."""
    above = os.path.dirname(name)
    if above:
        _make_place(directory, above)
    path = f"{directory}/{name}"
    os.symlink(os.readlink(name), path)
    if os.geteuid() == 0:
        info = os.lstat(name)
        try:
            os.lchown(path, info.st_uid, info.st_gid)  # protected_symlinks in proc(5) asks for it
        except OSError:
            pass  # an owner outside of our user namespace


def _make_like(path: str, info: os.stat_result) -> None:
    if os.geteuid() == 0:
        try:
            os.chown(path, info.st_uid, info.st_gid)
        except OSError:
            pass  # an owner outside of our user namespace
    os.chmod(path, stat.S_IMODE(info.st_mode))


def check(request: "Request") -> None:
    """Raise SandrunError unless the run can have what is asked for; before the wait."""
    if DARWIN or sys.platform == "win32":
        raise SandrunError(
            "--private-tmp and --private-ipc need Linux: this system has no namespaces",
            "leave them out: private_tmp, private_ipc, SANDRUN_PRIVATE_TMP, SANDRUN_PRIVATE_IPC",
        )
    planned = plan(request, request.environment())
    for directory, _, _, kept in planned.steps:
        messages.decision(f"{directory} is the run's own, but for: {', '.join(kept) or 'nothing'}")
    refused = attempt(planned)
    if refused:
        raise refused


def attempt(planned: Plan) -> "SandrunError | None":
    """Why it cannot be done, by doing it in a child; None: it can."""
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
    said = os.read(read_end, 4096)
    os.close(read_end)
    os.waitpid(pid, 0)
    return None if said == b"+" else refusal(*spawn.decode_failure(said)[1:])


_SWITCHES = (
    ("user.max_mnt_namespaces", b"0", "15000", True),
    ("user.max_ipc_namespaces", b"0", "15000", True),
    ("user.max_user_namespaces", b"0", "15000", False),
    ("kernel.unprivileged_userns_clone", b"0", "1", False),  # Debian's and Arch's kernels
    ("kernel.apparmor_restrict_unprivileged_userns", b"1", "0", False),  # Ubuntu 23.10
)
"""What forbids namespaces: a name, the value that does, one that does not, whether to root too."""


def refusal(number: int, what: str) -> SandrunError:
    """Why the run cannot have directories and IPC of its own, and what to do."""
    text = f"a run cannot have a /tmp or IPC of its own here: {what}: {os.strerror(number)}"
    return SandrunError(text, _hint(number))


def _hint(number: int) -> str:
    if number in (errno.ENOENT, errno.ENOTDIR):
        return "something there was renamed or removed meanwhile: start it again"
    is_root = os.geteuid() == 0
    for name, off, on, for_root in _SWITCHES:
        path = "/proc/sys/" + name.replace(".", "/")
        if (for_root or not is_root) and _read(path).strip() == off:
            return f"allow namespaces{'' if for_root else ', or run as root'}: sysctl {name}={on}"
    mounts = _read("/proc/self/mountinfo").splitlines()
    if mounts and not any(mount.split()[4] == b"/" for mount in mounts):
        return "the root directory is no mount's, as in a chroot: mount --bind DIR DIR before that"
    if number not in (errno.EPERM, errno.EACCES, errno.ENOSPC):
        return ""
    if is_root:
        return "a container needs the right to mount: --cap-add SYS_ADMIN"
    return "this container or kernel lets users make no namespaces: run as root"


def _read(path: str) -> bytes:
    try:
        return processes.read(path)
    except OSError:
        return b""  # this kernel has no such switch
