"""What the Linux kernel knows of processes, from /proc (proc(5)).

A function that returns a truth value, a number or a list answers "no", 0 or nothing for a process
that is gone or hidden from us, unless its docstring says that it raises OSError.
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
"""A place in which there is no file, nor ever will be."""
MOUNT_PROC = "mount -t proc proc /proc, or unshare --mount-proc instead of unshare --pid alone"


def become_subreaper() -> bool:
    """Let orphans among our descendants become our children (prctl(2)); False: not here."""
    from sandrun.platform import linux_syscalls  # loads ctypes

    return linux_syscalls.set_child_subreaper()


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent exits, at once if it already did."""
    from sandrun.platform import linux_syscalls

    linux_syscalls.set_parent_death_signal(9)  # if that fails it exits by itself, only later
    if os.getppid() != parent:
        os._exit(0)


_INITS = frozenset(
    b"systemd init tini docker-init podman-init catatonit dumb-init pause bwrap s6-svscan "
    b"runit openrc-init dinit launchd".split()
)
"""Names of first processes that reap what they adopt, at once."""


def orphans_are_reaped() -> bool:
    """Whether the first process of our pid namespace is known to reap orphans at once. That of many
    a container (cat, tail, sleep, a server) does not, or only now and then."""
    return _try_read(f"{PROC}/1/comm").strip() in _INITS


def thread_count() -> int:
    """How many threads there are on this host (proc(5): loadavg); 0 where that is not told."""
    words = _try_read("/proc/loadavg").split()
    return int(words[3].partition(b"/")[2]) if words else 0


def read(path: "str | bytes") -> bytes:
    """A whole small file of /proc or a cgroup. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def _own_proc() -> str:
    """Where /proc tells of our own pid namespace; where it tells of another's, nowhere.

    After `unshare --pid` without `--mount-proc`, and in many a container inside a container, each
    number there is somebody else's. NSpid has a number for every namespace from that of the /proc
    down to the reader's (proc(5), Linux 4.1), and a /proc that does not know us has no `self`.
    """
    status = _try_read("/proc/self/status")
    field = b"\nNSpid:" if b"\nNSpid:" in status else b"\nPid:"
    numbers = status.partition(field)[2].partition(b"\n")[0].split()
    return "/proc" if numbers == [b"%d" % os.getpid()] else NO_PROC


_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGESIZE")


class Stat:
    """What /proc/PID/stat tells (proc(5)): identity, state, parent, start in clock ticks; `cpu` in
    seconds, that of reaped children (`reaped`) included; `size` (of its address space) and `rss` in
    bytes; `faults`: its page faults; `stack`: the address where its stack starts, 0 for another
    user's."""

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
    """How much data and stack a process has, in bytes: about what RLIMIT_DATA counts (proc(5))."""
    words = _try_read(f"{PROC}/{pid}/statm").split()
    return int(words[5]) * _PAGE if words else 0


def field_bytes(text: bytes, name: bytes) -> int:
    """The kilobytes after `name` in a file of /proc, as bytes; 0 where it is missing."""
    words = text.partition(name)[2].split(None, 1)
    return int(words[0]) * 1024 if words else 0


def anonymous_memory(at: str) -> "tuple[int, int]":
    """The memory of the process or thread in that directory of /proc that no file backs, in bytes:
    private, what was swapped out of that included, and shared. Raises OSError.

    proc(5): status, Linux 4.5; without those lines all that is resident counts as private.
    """
    text = read(f"{at}/status")
    private = field_bytes(text, b"\nRssAnon:" if b"\nRssAnon:" in text else b"\nVmRSS:")
    return private + field_bytes(text, b"\nVmSwap:"), field_bytes(text, b"\nRssShmem:")


def arguments(pid: int) -> "list[str]":
    """The command line. Raises OSError."""
    return [os.fsdecode(word) for word in read(f"{PROC}/{pid}/cmdline").split(b"\0")[:-1]]


def environ(pid: int) -> "dict[str, str]":
    """The environment with which its program was started. Raises OSError."""
    entries = read(f"{PROC}/{pid}/environ").split(b"\0")
    pairs = (os.fsdecode(entry).partition("=") for entry in entries)
    return {name: value for name, _, value in pairs if name}


def working_directory(pid: int) -> str:
    """Where it is. Raises OSError."""
    return os.readlink(f"{PROC}/{pid}/cwd")


def owner(pid: int) -> int:
    """The uid it runs as. Raises OSError."""
    return os.stat(f"{PROC}/{pid}").st_uid


def has_exited(pid: int) -> bool:
    """Whether the process is dead, reaped or not; a zombie leader with live threads is not."""
    try:
        stat = Stat(pid)
        return stat.state in "ZX" and stat.threads <= 1
    except OSError:
        return _has_ended(pid)


def _has_ended(pid: int) -> bool:
    """The same of a process that /proc does not show: it is gone, or hidden from us (hidepid), or
    /proc is another namespace's. A pidfd is readable once no thread lives (pidfd_open(2))."""
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
    """Whether the kernel's OOM killer spares the process, at any limit (proc(5): oom_score_adj)."""
    return _try_read(f"/proc/{pid}/oom_score_adj").strip() == b"-1000"


def is_pending(pid: int, signum: int) -> bool:
    """Whether the signal waits in the queue of a process that blocks it (proc(5): ShdPnd)."""
    bits = _try_read(f"{PROC}/{pid}/status").partition(b"ShdPnd:\t")[2][:16] or b"0"
    return bool(int(bits, 16) >> (signum - 1) & 1)


def children(pid: int) -> "list[int]":
    """The children of all threads of `pid`, dead ones too (/proc/PID/task/*/children)."""
    found: list[int] = []
    try:
        for task in os.listdir(f"{PROC}/{pid}/task"):
            found += map(int, read(f"{PROC}/{pid}/task/{task}/children").split())
    except OSError:
        pass
    return found


def open_pidfd(pid: int) -> int:
    """A pidfd (pidfd_open(2)): as long as it is open, `kill` hits that process or nobody. -1: there
    is no such process, or there are none here (before Linux 5.3, macOS)."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return -1


def kill_process(pid: int, pidfd: int) -> bool:
    """SIGKILL the process that was pinned; without a pidfd whoever has the number now. False: it is
    there, and we may not."""
    if pidfd >= 0:
        try:
            _signal.pidfd_send_signal(pidfd, 9)
            return True
        except OSError as error:  # EPERM and ENOSYS: a filter of system calls
            if error.errno == errno.ESRCH:
                return True
    try:
        os.kill(pid, 9)
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def find_reaper() -> int:
    """To whom orphans among our descendants go, seen at one that is made for this; 0: not seen. It
    is the nearest subreaper, or the first of our pid namespace (find_new_reaper, kernel/exit.c)."""
    read_end, write_end = os.pipe()
    try:
        child = os.fork()
    except OSError:
        os.close(read_end)
        os.close(write_end)
        return 0
    if child == 0:
        try:
            _say_who_adopts(write_end)
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    said = os.read(read_end, 32)
    os.close(read_end)
    return int(said or 0)


def _say_who_adopts(told: int) -> None:
    """Make an orphan that writes the number of its new parent."""
    parent = os.getpid()
    if os.fork():
        return
    for _ in range(1000):
        if os.getppid() != parent:
            os.write(told, b"%d" % os.getppid())
            break
        time.sleep(0.0005)


def has_mark(environ: bytes, mark: str) -> bool:
    """Whether `mark` is an entry of SANDRUN_RUNS, and a whole one, in an environment (proc(5))."""
    start = f"{RUNS_VARIABLE}=".encode()
    runs = next((e for e in environ.split(b"\0") if e.startswith(start)), b"")
    return bool(mark) and b":%s:" % os.fsencode(mark) in b":%s:" % runs[len(start) :]


def marked_processes(mark: str, limit: str, among: "list[int] | None" = None) -> "list[int]":
    """The processes that were started in the run of that mark, or that have the line `limit` among
    their limits (blanks squeezed); ourselves left out.

    Sees what escaped by double fork, setsid and closed descriptors; by the limit also what cleared
    its environment, and root's processes (sudo in a run), whose environment is hidden from us.
    """
    pids = among or [int(entry) for entry in os.listdir(PROC) if entry.isdigit()]
    return [pid for pid in pids if pid != os.getpid() and _is_marked(pid, mark, limit)]


def wait_for_marked_process(mark: str, limit: str, seconds: float) -> "list[int]":
    """The same among the processes that are born within so many seconds; at the first one."""
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
    """The number that was given last to a process or thread (proc(5): loadavg); 0: not told."""
    words = _try_read("/proc/loadavg").split()
    return int(words[4]) if words else 0


FEW_PIDS = 200
"""So many numbers are tried one by one, for less than it takes to list all processes."""


def has_started_since(pid: int, but: "Iterable[int]" = ()) -> bool:
    """Whether anything `but` those lives, or is a zombie, whose number was given after that one;
    True, too, when those are many, or the numbers have come round."""
    last = last_pid()
    if not 0 <= last - pid < FEW_PIDS:
        return True
    numbers = set(range(pid + 1, last + 1)).difference(but)
    return any(os.path.exists(f"{PROC}/{number}") for number in numbers)


def _is_marked(pid: int, mark: str, limit: str) -> bool:
    limits = _try_read(f"{PROC}/{pid}/limits") if limit else b""
    # Whoever reads that limit can give it to a process of theirs; root does not.
    if limit and limit.encode() in b" ".join(limits.split()) and _user(pid) in (0, os.getuid()):
        return True
    return has_mark(_try_read(f"{memory_directory(pid)}/environ"), mark)


def memory_directory(pid: int) -> str:
    """Where /proc tells of a process's memory: in its own directory, or, when its first thread has
    exited before others, in that of one of those."""
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
"""What stands before every number of a process: nothing below a /proc of others is ever read."""


def describe(pid: int, memory: "int | None" = None) -> "Process | None":
    """A process as people know it; memory is what it holds unless given. None: it is gone. Of one
    that lives and that /proc does not show us there is only the number."""
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
