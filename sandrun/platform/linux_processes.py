"""What the Linux kernel reports about processes, from /proc (proc(5)).

For a process that is gone or hidden from us, a function returns False, 0 or an empty list, unless
its docstring states otherwise.
"""

import errno
import os
import sys
import time

from sandrun.bare import signal as _signal
from sandrun.model import RUNS_VARIABLE, Process

assert sys.platform == "linux"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

NO_PROC = "/dev/null"
"""A path below which there is never a file."""
MOUNT_PROC = "mount -t proc proc /proc, or unshare --mount-proc instead of unshare --pid alone"


def become_subreaper() -> bool:
    """Let orphans among our descendants become our children (prctl(2)); False: not possible."""
    from sandrun.platform import linux_syscalls  # loads _ctypes

    return linux_syscalls.set_child_subreaper()


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent exits. Exits at once if it already did."""
    from sandrun.platform import linux_syscalls

    linux_syscalls.set_parent_death_signal(9)  # without it, this process exits by itself, later
    if os.getppid() != parent:
        os._exit(0)


_INITS = frozenset(
    b"systemd init tini docker-init podman-init catatonit dumb-init pause bwrap s6-svscan "
    b"runit openrc-init dinit launchd".split()
)
"""Names of init processes that reap adopted orphans at once."""


def orphans_are_reaped() -> bool:
    """Whether the init process of our pid namespace is known to reap orphans at once. In many
    containers it is cat, tail, sleep or a server, which reap late or never."""
    return _try_read(f"{PROC}/1/comm").strip() in _INITS


def thread_count() -> int:
    """The number of threads on this host (proc(5): loadavg); 0: not known."""
    words = _try_read("/proc/loadavg").split()
    return int(words[3].partition(b"/")[2]) if words else 0


def read(path: "str | bytes") -> bytes:
    """The content of a small file of /proc or a cgroup. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _own_proc() -> str:
    """`/proc` if it shows our own pid namespace, else `NO_PROC`.

    After `unshare --pid` without `--mount-proc`, and in many nested containers, the pids in /proc
    belong to another namespace. NSpid lists our pid in every namespace from that of /proc down to
    our own (proc(5), Linux 4.1). A /proc of a namespace in which we have no pid has no `self`.
    """
    status = _try_read("/proc/self/status")
    field = b"\nNSpid:" if b"\nNSpid:" in status else b"\nPid:"
    numbers = status.partition(field)[2].partition(b"\n")[0].split()
    return "/proc" if numbers == [b"%d" % os.getpid()] else NO_PROC


_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


class Stat:
    """The fields of /proc/PID/stat (proc(5)). `start` is in clock ticks after boot; `cpu` is in
    seconds and includes that of reaped children (`reaped`); `size` (of the address space) and `rss`
    are in bytes; `faults` counts page faults; `stack` is the address at which the stack starts, 0
    for a process of another user."""

    __slots__ = (
        *("cpu", "faults", "name", "parent", "reaped", "rss", "size", "stack", "start", "state"),
        "threads",
    )

    def __init__(self, pid: int) -> None:
        head, _, tail = read(f"{PROC}/{pid}/stat").rpartition(b")")
        self.name = head.partition(b"(")[2].decode("utf-8", "replace")
        fields = tail.split()
        self.state = fields[0].decode()
        self.parent = int(fields[1])
        self.faults = int(fields[7]) + int(fields[9])
        self.reaped = (int(fields[13]) + int(fields[14])) / _TICKS
        self.cpu = (int(fields[11]) + int(fields[12])) / _TICKS + self.reaped
        self.threads = int(fields[17])
        self.start = int(fields[19])
        self.size = int(fields[20])
        self.rss = int(fields[21]) * _PAGE
        self.stack = int(fields[25])


def data_size(pid: int) -> int:
    """The data and stack of a process in bytes: about what RLIMIT_DATA counts (proc(5))."""
    words = _try_read(f"{PROC}/{pid}/statm").split()
    return int(words[5]) * _PAGE if words else 0


def field_bytes(text: bytes, name: bytes) -> int:
    """The number of kB after `name` in the text of a /proc file, in bytes; 0 if it is missing."""
    words = text.partition(name)[2].split(None, 1)
    return int(words[0]) * 1024 if words else 0


def anonymous_memory(at: str) -> "tuple[int, int]":
    """The memory, not backed by a file, of the process or thread whose directory in /proc is `at`,
    in bytes: private (swapped-out memory included), and shared. Raises OSError.

    proc(5): status, Linux 4.5. Without its lines, all resident memory counts as private.
    """
    text = read(f"{at}/status")
    private = field_bytes(text, b"\nRssAnon:" if b"\nRssAnon:" in text else b"\nVmRSS:")
    return private + field_bytes(text, b"\nVmSwap:"), field_bytes(text, b"\nRssShmem:")


def arguments(pid: int) -> "list[str]":
    """The command line. Raises OSError."""
    return [os.fsdecode(word) for word in read(f"{PROC}/{pid}/cmdline").split(b"\0")[:-1]]


def environ(pid: int) -> "dict[str, str]":
    """The environment with which the process's program was started. Raises OSError."""
    entries = read(f"{PROC}/{pid}/environ").split(b"\0")
    pairs = (os.fsdecode(entry).partition("=") for entry in entries)
    return {name: value for name, _, value in pairs if name}


def working_directory(pid: int) -> str:
    """The current working directory of a process. Raises OSError."""
    return os.readlink(f"{PROC}/{pid}/cwd")


def owner(pid: int) -> int:
    """The effective uid of a process. Raises OSError."""
    return os.stat(f"{PROC}/{pid}").st_uid


def has_exited(pid: int) -> bool:
    """Whether no thread of the process is alive; the process may be a zombie."""
    try:
        stat = Stat(pid)
        return stat.state in "ZX" and stat.threads <= 1
    except OSError:
        return _has_exited_unseen(pid)


def _has_exited_unseen(pid: int) -> bool:
    """The same for a process that /proc does not show: it is gone, or hidden (hidepid), or /proc
    shows another namespace. A pidfd is readable once no thread is alive (pidfd_open(2))."""
    pidfd = open_pidfd(pid)
    if pidfd < 0:
        return True
    import select

    try:
        waiter = select.poll()
        waiter.register(pidfd, select.POLLIN)
        return bool(waiter.poll(0))
    finally:
        os.close(pidfd)


def is_oom_protected(pid: int) -> bool:
    """Whether the OOM killer never selects the process (proc(5): oom_score_adj)."""
    return _try_read(f"/proc/{pid}/oom_score_adj").strip() == b"-1000"


def is_pending(pid: int, signum: int) -> bool:
    """Whether the signal is pending for a process that blocks it (proc(5): ShdPnd)."""
    bits = _try_read(f"{PROC}/{pid}/status").partition(b"ShdPnd:\t")[2][:16] or b"0"
    return bool(int(bits, 16) >> (signum - 1) & 1)


def children(pid: int) -> "list[int]":
    """The children of all threads of `pid`, zombies included (/proc/PID/task/*/children)."""
    found: list[int] = []
    try:
        for task in os.listdir(f"{PROC}/{pid}/task"):
            found += map(int, read(f"{PROC}/{pid}/task/{task}/children").split())
    except OSError:
        pass
    return found


def open_pidfd(pid: int) -> int:
    """A pidfd (pidfd_open(2)): while it is open, `kill_process` signals that process and no other.
    -1: there is no such process, or this kernel has no pidfds (before Linux 5.3)."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1


def kill_process(pid: int, pidfd: int) -> bool:
    """SIGKILL the process of that pidfd; without one (-1) or without the system call, the process
    that now has the pid. False: it lives, and we are not permitted to kill it."""
    if pidfd >= 0:
        try:
            _signal.pidfd_send_signal(pidfd, 9)
            return True
        except OSError as error:
            if error.errno != errno.ENOSYS:  # by its pid we could hit a process that got it since
                return error.errno == errno.ESRCH
    try:
        os.kill(pid, 9)
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def find_reaper() -> int:
    """The process that adopts orphans among our descendants, found by making one; 0: not known. It
    is the nearest ancestor that is a subreaper, or the init process of our pid namespace
    (find_new_reaper, kernel/exit.c)."""
    read_end, write_end = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        return 0
    if child == 0:
        try:
            _report_reaper(write_end)
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    answer = os.read(read_end, 32)
    os.close(read_end)
    return int(answer or 0)


def _report_reaper(pipe: int) -> None:
    """Make an orphan that writes the pid of its new parent."""
    parent = os.getpid()
    if os.fork():
        return
    for _ in range(1000):
        if os.getppid() != parent:
            os.write(pipe, b"%d" % os.getppid())
            break
        time.sleep(0.0005)


def has_mark(environ: bytes, mark: str) -> bool:
    """Whether `mark` is a whole entry of SANDRUN_RUNS in an environment (proc(5))."""
    start = f"{RUNS_VARIABLE}=".encode()
    runs = next((e for e in environ.split(b"\0") if e.startswith(start)), b"")
    return bool(mark) and b":%s:" % os.fsencode(mark) in b":%s:" % runs[len(start) :]


def marked_processes(mark: str, limit: str, among: "list[int] | None" = None) -> "list[int]":
    """The processes, except this one, that were started in the run of that mark, or that have the
    line `limit` (with single blanks) among their resource limits.

    A double fork, setsid(2) or closing descriptors does not hide a process from this. The limit
    also reveals processes that cleared their environment, and those of root (sudo in a run), whose
    environment we cannot read.
    """
    if among is None:
        among = [int(entry) for entry in os.listdir(PROC) if entry.isdigit()]
    return [pid for pid in among if pid != os.getpid() and _is_marked(pid, mark, limit)]


def wait_for_marked_process(mark: str, limit: str, seconds: float) -> "list[int]":
    """The first process marked in one of these ways that starts within `seconds`, in a list; else
    an empty list."""
    deadline = time.monotonic() + seconds
    last = 0
    while time.monotonic() < deadline:
        number = last_pid()
        for pid in range(number, max(number - 64, min(last, number - 1)), -1):
            if _is_marked(pid, mark, limit) and not has_exited(pid):
                return [pid]
        last = number
    return []


def last_pid() -> int:
    """The pid that was assigned last to a process or thread (proc(5): loadavg); 0: not known."""
    words = _try_read("/proc/loadavg").split()
    return int(words[4]) if words else 0


FEW_PIDS = 200
"""Testing that many pids one by one costs less than listing all processes."""


def has_started_since(pid: int, but: "Iterable[int]" = ()) -> bool:
    """Whether there is a process or zombie, not in `but`, whose pid was assigned after `pid`. Also
    True if too many pids were assigned since then, or pids have wrapped around."""
    last = last_pid()
    if not 0 <= last - pid < FEW_PIDS:
        return True
    numbers = set(range(pid + 1, last + 1)).difference(but)
    return any(os.path.exists(f"{PROC}/{number}") for number in numbers)


def _is_marked(pid: int, mark: str, limit: str) -> bool:
    limits = _try_read(f"{PROC}/{pid}/limits") if limit else b""
    # Any user can read that limit and set it for their own processes, so it proves nothing there.
    if limit and limit.encode() in b" ".join(limits.split()) and _user(pid) in (0, os.getuid()):
        return True
    return has_mark(_try_read(f"{memory_directory(pid)}/environ"), mark)


def memory_directory(pid: int) -> str:
    """The directory of /proc that shows the memory of a process: its own, or that of a live thread
    if the thread group leader has exited."""
    try:
        stat = Stat(pid)
        if stat.state in "ZX" and stat.threads > 1:
            for task in os.listdir(f"{PROC}/{pid}/task"):
                if int(task) != pid and _try_read(f"{PROC}/{pid}/task/{task}/statm")[:2] != b"0 ":
                    return f"{PROC}/{pid}/task/{task}"
    except OSError:
        pass
    return f"{PROC}/{pid}"


def _user(pid: int) -> int:
    """The real uid of a process (proc(5)); -1: it is gone."""
    _, _, words = _try_read(f"{PROC}/{pid}/status").partition(b"\nUid:")
    return int(words.split()[0]) if words else -1


def _try_read(path: str) -> bytes:
    try:
        return read(path)
    except OSError:
        return b""


PROC = _own_proc()
"""The directory with one directory per pid; a /proc of another pid namespace is never read."""


def describe(pid: int, memory: "int | None" = None) -> "Process | None":
    """A description of a process; its memory is the anonymous memory unless `memory` is given.
    None: it is gone. For a live process that /proc does not show, only the pid is known."""
    try:
        at = f"{PROC}/{pid}"
        if not (line := read(f"{at}/cmdline")):
            at = memory_directory(pid)
            line = read(f"{at}/cmdline")
        words = line.replace(b"\0", b" ").decode("utf-8", "replace")
        text = "".join(c if c.isprintable() else "?" for c in words.strip())
        if memory is None:
            memory = sum(anonymous_memory(at))
        return Process(pid, memory, text[:200] or f"[{Stat(pid).name}]")
    except (OSError, IndexError):
        return None if has_exited(pid) else Process(pid, memory or 0, "[not shown by /proc]")
