"""What cgroup v1 and v2 share: where we are, what lives in a group, and groups of dead runs.

Invariant: a run's group is locked (flock on its directory) by its supervisor and keeper while
either lives, so a group of ours that is not locked belongs to a dead run and may be ended. Nobody
but our own user and root can open the directory, hence lock it; no lock is waited for.

What proves that a process may be killed
- Its group is ours: named `sandrun-<run id>`, below the mount of its hierarchy, made by our own
  user, and either that of the run in question (`check_ours`) or one that nobody has locked
  (`collect`). A group of another name or owner is never touched, nor is anything outside of one.
- The process is a member: a number is only signalled while a pidfd holds on to the process and
  the group, read again after that was opened, still lists the number (`kill_members`). So a number
  that was given to somebody else meanwhile is never hit.
"""

import errno
import fcntl
import os
import time

from sandrun.model import Unusable, is_run_id
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandrun.backends.escapes import Escapes
    from sandrun.model import Escape
    from sandrun.platform import spawn

PREFIX = "sandrun-"
"""Every group of ours is `sandrun-<run id>`, below our own group and nowhere else."""
_BATCH = 64
"""Processes pinned by a pidfd at a time: RLIMIT_NOFILE may be low."""
MAIN = "main"
"""The group inside a v2 run's group that holds its processes; nested runs are made beside it."""
KILL_SECONDS = 10.0
_INSTANT = 0.02
"""Seconds that a run lasts before it is looked for what left it."""
_SLICE = 0.002
"""Seconds that such a look may take while a limit is to be watched."""
_MAKE_SECONDS = 1.0
"""Seconds for which a new group is made again when a `collect` removes it before it is locked."""
CROWD = 2000
"""So many processes are no build: they are killed, not told to end."""


class RunGroup:
    """What the containers of v1 and v2 share: the run's processes, those included that have left
    its group (`sandrun.backends.escapes`).

    Nothing is paid for those by a run that ends within an instant and leaves nothing: no number of
    a process was given after its command's.
    """

    own: "set[int]"
    mark = ""
    _escapes: "Escapes | None" = None
    _command = _supervisor = 0
    _since = 0.0
    _look_at = 0.0

    def home(self) -> "tuple[str, str]":
        """The group that has the limit on memory, and its v1 controller ('': v2)."""
        raise NotImplementedError

    def start(
        self, argv: "list[str]", env: "Mapping[str, str]", caller: "spawn.CallerState"
    ) -> int:
        """`spawn`, in the version's own way."""
        raise NotImplementedError

    def end(self) -> None:
        """`kill`, of what is inside."""
        raise NotImplementedError

    def spawn(
        self, argv: "list[str]", env: "Mapping[str, str]", caller: "spawn.CallerState"
    ) -> int:
        self._command = self.start(argv, env, caller)
        self._supervisor = os.getpid()
        self._since = time.monotonic()
        self._look_at = self._since + _INSTANT
        return self._command

    @property
    def escaped(self) -> "Mapping[int, Escape]":
        return self._escapes.found if self._escapes else {}

    def live_pids(self) -> "list[int]":
        found = live_pids(self.home()[0])
        # Without a mark it is a dead run's, or a group beside another.
        if self.mark and (not found or time.monotonic() >= self._look_at):
            command = self._command
            if command and not self._escapes and not processes.born_since(command, self.own):
                return found
            self._look_at = time.monotonic() + self._escaped().look_at_all()
        return found + (self._escapes.live() if self._escapes else [])

    def look_outside(self) -> None:
        """Look for processes that left, for a moment, if that is due."""
        if time.monotonic() >= self._look_at:
            due = self._escaped().look(_SLICE)
            self._look_at = time.monotonic() + (due or 0.0)

    def kill(self) -> None:
        stay: list[int] = []
        for end in (self.end, self._escaped().kill) if self.mark else (self.end,):
            try:
                end()
            except TimeoutError as error:
                stay += error.args[0]
        if stay:
            raise TimeoutError(stay)

    def _escaped(self) -> "Escapes":
        if not self._escapes:
            from sandrun.backends import escapes

            # A keeper that was started later has a copy of us, and other children.
            command = self._command if os.getpid() == self._supervisor else 0
            self._escapes = escapes.Escapes(*self.home(), self.mark, command, self._since)
        return self._escapes


def _lines(path: str) -> "list[str]":
    """The lines of a file about ourselves. Raises Unusable where no /proc knows us."""
    try:
        return processes.read(path).decode("utf-8", "surrogateescape").split("\n")
    except FileNotFoundError:
        raise Unusable(f"there is no {path}", processes.MOUNT_PROC) from None


_mounts: "list[tuple[str, list[str], str, str]]" = []


def _mount(controller: str) -> "tuple[str, str]":
    """Which part of the v1 controller, or of the v2 hierarchy (''), is mounted, and where."""
    if not _mounts:  # read once: a run asks for every controller
        for line in _lines("/proc/self/mountinfo"):
            fields, _, more = line.partition(" - cgroup")
            if more:
                fstype, *rest = more.split(" ")
                root, mount = fields.split(" ")[3:5]
                _mounts.append((fstype, rest[-1].split(","), root, mount))
    for fstype, options, root, mount in _mounts:
        if controller in options if controller else fstype == "2":
            return root, mount
    raise Unusable(f"no {_what(controller)} is mounted")


def _what(controller: str) -> str:
    return f"cgroup v1 {controller} controller" if controller else "cgroup v2 hierarchy"


def own_mount(controller: str) -> str:
    """The mount point of a v1 controller, or of the v2 hierarchy (''). Raises Unusable."""
    return _mount(controller)[1]


def own_group(controller: str) -> str:
    """The directory of our own group: of a v1 controller, or of the v2 hierarchy (''); Unusable.

    Where only a subtree is mounted (a container), /proc/self/cgroup still tells the whole path;
    mountinfo tells which part of it the mount shows (proc(5), cgroups(7)).
    """
    root, mount = _mount(controller)
    path = _named(_lines("/proc/self/cgroup"), controller)
    if not path:
        raise Unusable(f"we are in no group of the {_what(controller)}")
    # A mount from outside our cgroup namespace shows a tree in which our path means nothing.
    if root.startswith("/..") or path.startswith("/.."):
        raise Unusable(
            f"{mount} shows the host's groups, not ours",
            "start the container without the bind mount of /sys/fs/cgroup",
        )
    inside = path if root == "/" else path.removeprefix(root)
    return os.path.normpath(mount + "/" + inside)


def _named(lines: "list[str]", controller: str) -> str:
    """The group in a controller's hierarchy, by the lines of a /proc/PID/cgroup; '': in none."""
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if path and controller in controllers.split(","):
            return path
    return ""


def group_of(pid: int, controller: str) -> str:
    """The group of a process as /proc tells it, not its directory. Raises OSError: it is gone."""
    text = processes.read(f"{processes.PROC}/{pid}/cgroup").decode("utf-8", "surrogateescape")
    return _named(text.split("\n"), controller)


def in_hierarchy(path: str, controller: str) -> str:
    """The group with that directory as /proc tells it (see `own_group`)."""
    root, mount = _mount(controller)
    return root.rstrip("/") + path.removeprefix(mount.rstrip("/"))


def is_run(name: str) -> bool:
    """Whether a group's name is one that we give: somebody's own `sandrun-builds` is not."""
    return name.startswith(PREFIX) and is_run_id(name.removeprefix(PREFIX))


def check_ours(path: str, run_id: str, controller: str) -> None:
    """Raise Unusable unless `path` can only be the group that our user made for that run."""
    mount = own_mount(controller)
    named = is_run(os.path.basename(path)) and path.endswith(f"/{PREFIX}{run_id}")
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


def listed(path: str) -> "list[int]":
    """The processes in a group and all below it, dead ones too, as far as we can see them."""
    found: list[int] = []
    for directory, _, _ in os.walk(path):
        try:
            found.extend(map(int, processes.read(directory + "/cgroup.procs").split()))
        except OSError:
            continue
    return [pid for pid in found if pid]  # 0: outside of our pid namespace


def live_pids(path: str) -> "list[int]":
    """The live processes in a group and all below it; zombies left out."""
    # One that was listed and is dead by now may have forked in between: look again, until all that
    # are listed were dead before.
    dead: set[int] = set()
    for _ in range(100):
        found = listed(path)
        live = [pid for pid in found if not processes.is_zombie(pid)]
        if live or dead.issuperset(found):
            break
        dead = set(found)
    return live


def is_too_large_to_signal(path: str) -> bool:
    """Whether there are so many processes, dead ones too, that a look at each would take too long:
    where all of a fork bomb want to run, we get one part in as many of a processor."""
    count = 0
    for directory, _, _ in os.walk(path):
        try:
            count += processes.read(directory + "/cgroup.procs").count(b"\n")
        except OSError:
            continue
    return count > CROWD


def few(path: str) -> "list[int]":
    """The live processes, for a look at each; none if they are a crowd."""
    return [] if is_too_large_to_signal(path) else live_pids(path)


def move_out(path: str, file: str) -> None:
    """Move every process in a group, and below it, to where we are by writing it to `file`."""
    deadline = time.monotonic() + KILL_SECONDS
    while (found := live_pids(path)) and time.monotonic() < deadline:
        for pid in found:
            try:
                with open(file, "w") as procs:
                    procs.write(str(pid))
            except OSError:
                continue  # it is gone


def kill_members(path: str) -> None:
    """SIGKILL what is in a group and below it now, and nobody else (see above)."""
    found = listed(path)
    for start in range(0, len(found), _BATCH):
        pinned = {pid: processes.pin(pid) for pid in found[start : start + _BATCH]}
        still = set(listed(path))
        for pid, pidfd in pinned.items():
            if pid in still:
                processes.kill(pid, pidfd)
            if pidfd >= 0:
                os.close(pidfd)


def kill_each(path: str, done: "Callable[[], bool]") -> None:
    """SIGKILL what is in the group until `done`. Raises TimeoutError with the pids that stay."""
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
    """Remove an empty group and all below it; what does not go in two seconds stays."""
    deadline = time.monotonic() + 2
    for directory, _, _ in os.walk(path, topdown=False):
        while True:
            try:
                os.rmdir(directory)
            except OSError as error:
                # Dying tasks keep a group busy for an instant after the last one was killed.
                if error.errno == errno.EBUSY and time.monotonic() < deadline:
                    time.sleep(0.002)
                    continue
            break


def enter(file: str) -> None:
    """Move the calling process (`cgroup.procs`) or thread (`tasks`) into the file's group."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, b"0")
    except OSError as error:
        raise OSError(error.errno, error.strerror, file) from None
    finally:
        os.close(fd)


def adopt() -> None:
    """Before the command starts: where nobody reaps orphans at once, have them become ours, or all
    that the command leaves behind would stay as zombies. No container's work rests on it."""
    if os.getpid() != 1 and not processes.orphans_are_reaped():
        processes.become_subreaper()


def make(path: str) -> int:
    """Make a group of ours and lock it; the descriptor whose lock says that it lives.

    Raises OSError; TimeoutError when others keep it locked.
    """
    deadline = time.monotonic() + _MAKE_SECONDS
    fd = -1
    first = True
    while fd < 0:
        try:
            # Mode 711: flock(2) needs a descriptor, and opening a directory needs the right to
            # read it. Its files can still be opened by name: a command that became another user
            # reads its own limits there, as a JVM does.
            os.mkdir(path, 0o711)
        except FileExistsError:
            if first:
                raise
        if not first:  # somebody's `collect` took it for a dead run's, and removes it
            time.sleep(0.001)
        fd, first = _lock(path), False
        if fd < 0 and time.monotonic() > deadline:
            raise TimeoutError(errno.ETIMEDOUT, "somebody else holds its lock", path)
    return fd


def _lock(path: str) -> int:
    """Lock a group without blocking; -1 if it is gone or its lock is held."""
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
    """End the groups of dead runs below `parent` by `end(path)`, each under its lock."""
    try:
        names = [name for name in os.listdir(parent) if is_run(name)]
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
