"""What cgroup v1 and v2 share: our own group, the processes of a group, the groups of dead runs.

Invariant: the supervisor and the keeper hold a lock on their run's group (flock on its directory),
so a group of ours without a lock belongs to a dead run and may be removed with its processes. Only
our user and root can open the directory and lock it. flock(2) never blocks (LOCK_NB).

Proof before a kill
- The group is ours: it is named `sandrun-<run id>`, lies below the mount of its hierarchy, and our
  user made it. It is the group of the run in question (`check_ours`), or no process holds its lock
  (`collect`). No other group and no process outside such a group is touched.
- The process is a member: it is signalled only while a pidfd refers to it and the group, read after
  the pidfd was opened, still lists its pid (`kill_members`). So a reused pid is never signalled.
"""

import errno
import fcntl
import os
import sys
import time

assert sys.platform == "linux"

from sandrun.model import TOO_LARGE_TO_SIGNAL, Unusable, is_run_id
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "sandrun-"
"""Every group of ours is `sandrun-<run id>`, below our own group and nowhere else."""
_BATCH = 64
"""Processes pinned by a pidfd at a time: RLIMIT_NOFILE may be low."""
MAIN = "main"
"""The group inside a v2 run's group that holds the processes. Nested runs are made beside it."""
KILL_SECONDS = 10.0
_MAKE_SECONDS = 1.0
"""Seconds for which a group is made again if another process's `collect` removes it before it is
locked."""


def _lines(path: str) -> "list[str]":
    """The lines of a file in /proc/self. Raises Unusable if /proc does not show this process."""
    try:
        return processes.read(path).decode("utf-8", "surrogateescape").split("\n")
    except FileNotFoundError:
        raise Unusable(f"there is no {path}", processes.MOUNT_PROC) from None


_mounts: "list[tuple[str, list[str], str, str]]" = []


def _mount(controller: str) -> "tuple[str, str]":
    """The mounted subtree of a v1 controller, or of the v2 hierarchy (''), and its mount point."""
    if not _mounts:  # read once: a run needs every controller
        for line in _lines("/proc/self/mountinfo"):
            fields, _, more = line.partition(" - cgroup")
            if more:
                fstype, *rest = more.split(" ")
                root, mount = fields.split(" ")[3:5]
                _mounts.append((fstype, rest[-1].split(","), root, mount))
    for fstype, options, root, mount in _mounts:
        if controller in options if controller else fstype == "2":
            return root, mount
    raise Unusable(f"no {_hierarchy(controller)} is mounted")


def _hierarchy(controller: str) -> str:
    return f"cgroup v1 {controller} controller" if controller else "cgroup v2 hierarchy"


def own_mount(controller: str) -> str:
    """The mount point of a v1 controller, or of the v2 hierarchy (''). Raises Unusable."""
    return _mount(controller)[1]


def own_groups() -> "list[str]":
    """The lines of /proc/self/cgroup, for several calls of `own_group`. Raises Unusable."""
    return _lines("/proc/self/cgroup")


def own_group(controller: str, groups: "list[str] | None" = None) -> str:
    """The directory of our own group in a v1 controller or in the v2 hierarchy (''). `groups`: the
    result of `own_groups`, if this process was not moved since.

    Raises Unusable. If only a subtree is mounted (in a container), /proc/self/cgroup still has the
    whole path; mountinfo has the path of the mounted subtree (proc(5), cgroups(7)).
    """
    root, mount = _mount(controller)
    path = _group_in(groups or own_groups(), controller)
    if not path:
        raise Unusable(f"sandrun is in no group of the {_hierarchy(controller)}")
    # Our path means nothing in a mount that was made outside our cgroup namespace.
    if root.startswith("/..") or path.startswith("/.."):
        raise Unusable(
            f"{mount} shows the host's groups, not ours",
            "start the container without the bind mount of /sys/fs/cgroup",
        )
    inside = path if root == "/" else path.removeprefix(root)
    return os.path.normpath(mount + "/" + inside)


def _group_in(lines: "list[str]", controller: str) -> str:
    """The group in the hierarchy of a controller, by the lines of /proc/PID/cgroup; '' for none."""
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if path and controller in controllers.split(","):
            return path
    return ""


def group_of(pid: int, controller: str) -> str:
    """The group of a process as in /proc/PID/cgroup. Raises OSError if the process is gone."""
    text = processes.read(f"{processes.PROC}/{pid}/cgroup").decode("utf-8", "surrogateescape")
    return _group_in(text.split("\n"), controller)


def in_hierarchy(path: str, controller: str) -> str:
    """The path in /proc/PID/cgroup of the group with the directory `path`, as in `own_group`."""
    root, mount = _mount(controller)
    return root.rstrip("/") + path.removeprefix(mount.rstrip("/"))


def is_run_name(name: str) -> bool:
    """Whether it is the name of a run's group; a user's own `sandrun-builds` is not."""
    return name.startswith(PREFIX) and is_run_id(name.removeprefix(PREFIX))


def check_ours(path: str, run_id: str, controller: str) -> None:
    """Raise Unusable unless `path` is the group that our user made for that run."""
    mount = own_mount(controller)
    named = is_run_name(os.path.basename(path)) and path.endswith(f"/{PREFIX}{run_id}")
    if not named or os.path.normpath(path) != path or not path.startswith(mount + "/"):
        raise Unusable(f"{path!r} is not the group of run {run_id} below {mount}")
    try:
        owner = os.lstat(path).st_uid
    except FileNotFoundError:
        return  # it is gone
    except (OSError, ValueError) as error:
        raise Unusable(f"{path!r}: {error}") from None
    if owner != os.geteuid():
        raise Unusable(f"{path} belongs to uid {owner}, not to us")


def members(path: str) -> "list[int]":
    """The processes in a group and all groups below it, with zombies; without those outside our
    pid namespace."""
    found: list[int] = []
    for directory, _, _ in os.walk(path):
        try:
            found.extend(map(int, processes.read(directory + "/cgroup.procs").split()))
        except OSError:
            continue
    return [pid for pid in found if pid]  # 0 stands for one outside our pid namespace


def count_tasks(path: str, file: str) -> int:
    """The number of lines of the control file `file` in a group and in all groups below it."""
    count = 0
    for directory, _, _ in os.walk(path):
        try:
            count += processes.read(f"{directory}/{file}").count(b"\n")
        except OSError:
            continue
    return count


def live_pids(path: str) -> "list[int]":
    """The live processes in a group and all groups below it, without zombies."""
    # A listed process may have forked and died before it was examined. So read again until every
    # listed process was already dead in the reading before.
    dead: set[int] = set()
    for _ in range(100):
        found = members(path)
        live = [pid for pid in found if not processes.has_exited(pid)]
        if live or dead.issuperset(found):
            break
        dead = set(found)
    return live


def is_too_large_to_signal(path: str) -> bool:
    """Whether there are too many processes, zombies included, to examine each one: beside a fork
    bomb of N processes we get 1/N of a processor."""
    return count_tasks(path, "cgroup.procs") > TOO_LARGE_TO_SIGNAL


def move_out(path: str, file: str) -> None:
    """Move every process of a group, and of all groups below it, by writing its pid to `file`."""
    deadline = time.monotonic() + KILL_SECONDS
    while (found := live_pids(path)) and time.monotonic() < deadline:
        for pid in found:
            try:
                with open(file, "w") as procs:
                    procs.write(str(pid))
            except OSError:
                continue  # it is gone


def kill_members(path: str) -> None:
    """SIGKILL the present members of a group and of all groups below it, with the proof above."""
    found = members(path)
    for start in range(0, len(found), _BATCH):
        pinned = {pid: processes.open_pidfd(pid) for pid in found[start : start + _BATCH]}
        still = set(members(path))
        for pid, pidfd in pinned.items():
            if pid in still:
                processes.kill_process(pid, pidfd)
            if pidfd >= 0:
                os.close(pidfd)


def kill_each(path: str, done: "Callable[[], bool]") -> None:
    """SIGKILL the members of a group until `done`. Raises TimeoutError with the remaining pids."""
    deadline = time.monotonic() + KILL_SECONDS
    pause = 0.001
    while True:
        kill_members(path)
        if done():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(live_pids(path))
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def remove(path: str) -> None:
    """Remove an empty group and all groups below it; one that stays busy for 2 s is left."""
    deadline = time.monotonic() + 2
    for directory, _, _ in os.walk(path, topdown=False):
        while True:
            try:
                os.rmdir(directory)
            except OSError as error:
                # Exiting tasks keep a group busy for a moment after the last one was killed.
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(0.002)
                    continue
            break


def enter(file: str) -> None:
    """Move the calling process (`cgroup.procs`) or thread (`tasks`) into the group of `file`."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    except OSError as error:
        raise OSError(error.errno, error.strerror, file) from None
    finally:
        os.close(fd)


def adopt_orphans() -> None:
    """Become a subreaper unless PID 1 is known to reap orphans; otherwise the run's orphans would
    stay zombies. Called when the group is made, if possible before the run's turn, because it takes
    1 ms. No container depends on it."""
    if os.getpid() != 1 and not processes.orphans_are_reaped():
        processes.become_subreaper()


def make_locked(path: str) -> int:
    """Make a group and lock it; return the descriptor that holds the lock.

    Raises OSError, and TimeoutError if another process keeps it locked.
    """
    deadline = time.monotonic() + _MAKE_SECONDS
    fd = -1
    first = True
    while fd < 0:
        try:
            # Mode 711: other users cannot open the directory for reading, which flock(2) needs. But
            # they can open its files: a program with another user, such as a JVM, reads its limits.
            os.mkdir(path, 0o711)
        except FileExistsError:
            if first:
                raise
        if not first:  # another process's `collect` is removing it
            time.sleep(0.001)
        fd, first = lock(path), False
        if fd < 0 and time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock", path)
    return fd


def lock(path: str) -> int:
    """Lock a group without blocking; -1 if it is gone or locked."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_ino == os.stat(path).st_ino:
            return fd
    except (FileNotFoundError, BlockingIOError):
        pass
    if fd >= 0:
        os.close(fd)
    return -1


def collect(parent: str, end: "Callable[[str], None]") -> None:
    """Call `end(path)` for each group of a dead run below `parent`, while holding its lock."""
    try:
        names = [name for name in os.listdir(parent) if is_run_name(name)]
    except OSError:
        return
    for name in names:
        path = f"{parent}/{name}"
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_uid == os.geteuid():
                end(path)
        except OSError:
            continue
        finally:
            os.close(fd)
