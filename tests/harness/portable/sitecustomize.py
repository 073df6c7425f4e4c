"""Simulates macOS for sandrun on Linux: SANDRUN_TEST_PROFILE=darwin.

Removes what macOS lacks, and implements libproc's calls from /proc, checking them against the
prototypes that sandrun declares. Everything else is real: processes, locks, signals, terminals. So
it proves that the code for macOS runs and is consistent; it proves nothing about macOS itself.

As on macOS:
- there is no sigtimedwait, pipe2, pidfd, memfd, eventfd, prlimit, real-time signal, prctl, inotify
  or /proc;
- flock(2) refuses a FIFO, poll(2) reports a hang-up only to a reader, and setrlimit(2) refuses
  RLIMIT_AS;
- an ignored signal is never pending;
- an orphan's parent is pid 1: here SANDRUN_TEST_REAPER, the process that adopts it.

`sys.platform` is `darwin` only while the modules are loaded that choose by it: the standard library
would not work otherwise.
"""

import _signal
import builtins
import ctypes
import errno
import fcntl
import io
import os
import resource
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterable

_open, _read = os.open, os.read
_GONE = ("pipe2", "pidfd_open", "memfd_create", "eventfd", "eventfd_read", "sched_getaffinity")
_UNKNOWN_SIGNALS = ("SIGRTMIN", "SIGRTMAX", "SIGPWR", "SIGSTKFLT")


def _strip() -> None:
    for name in _GONE:
        if hasattr(os, name):
            delattr(os, name)
    for module in (_signal, signal):
        for name in ("sigtimedwait", "sigwaitinfo", *_UNKNOWN_SIGNALS):
            if hasattr(module, name):
                delattr(module, name)
    del resource.prlimit
    _drop_ignored()
    sys.modules["prctl"] = None  # type: ignore[assignment]


def _drop_ignored() -> None:
    """XNU discards an ignored signal even if it is blocked; Linux keeps it pending."""
    wait: Callable[[Iterable[int]], int] = _signal.sigwait
    pending: Callable[[], set[int]] = _signal.sigpending

    def dropped() -> "set[int]":
        return {s for s in _signal.valid_signals() if _signal.getsignal(s) == _signal.SIG_IGN}

    def sigwait(signals: "Iterable[int]") -> int:
        while (signum := wait(signals)) in dropped():
            pass
        return signum

    def sigpending() -> "set[int]":
        while ignored := pending() & dropped():
            wait(ignored)
        return pending()

    _replace(_signal, sigwait, sigpending)


def _replace(module: object, *functions: "Callable[..., object]") -> None:
    for function in functions:
        setattr(module, function.__name__, function)


def _of_sandrun() -> bool:
    """Whether the caller's caller is code of sandrun."""
    return str(sys._getframe(2).f_globals.get("__name__")).startswith("sandrun")


def _without_proc(call: "Callable[..., object]") -> "Callable[..., object]":
    def guarded(path: object = ".", *args: object, **more: object) -> object:
        if (
            isinstance(path, str | bytes)
            and os.fsencode(path).startswith(b"/proc")
            and _of_sandrun()
        ):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return call(path, *args, **more)

    return guarded


def _hide_proc() -> None:
    for name in ("open", "listdir", "scandir", "readlink", "stat"):
        setattr(os, name, _without_proc(getattr(os, name)))
    builtins.open = _without_proc(io.open)  # type: ignore[assignment]


def flock(fd: int, operation: int, call: "Callable[[int, int], None]" = fcntl.flock) -> None:
    if stat.S_ISFIFO(os.fstat(fd).st_mode):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
    call(fd, operation)


def setrlimit(
    kind: int,
    limits: "tuple[int, int]",
    call: "Callable[[int, tuple[int, int]], None]" = resource.setrlimit,
) -> None:
    if kind == resource.RLIMIT_AS and limits[0] != resource.RLIM_INFINITY:
        raise ValueError("current limit exceeds maximum limit")
    call(kind, limits)


def thread_time(call: "Callable[[], float]" = time.thread_time) -> float:
    """One twentieth of the time: a simulated call of libproc reads a dozen files of /proc, a real
    one takes 5 us."""
    return call() / 20


class poll:
    """select.poll that reports only the events asked for."""

    def __init__(self, make: "Callable[[], select.poll]" = select.poll) -> None:
        self.real = make()

    def register(self, fd: int, events: int) -> None:
        if events:
            self.real.register(fd, events)

    def unregister(self, fd: int) -> None:
        self.real.unregister(fd)

    def poll(self, timeout: "float | None" = None) -> "list[tuple[int, int]]":
        return self.real.poll(timeout)


def _text(path: str) -> bytes:
    fd = _open(path, os.O_RDONLY)
    try:
        return _read(fd, 65536)
    finally:
        os.close(fd)


class _Function:
    """A function of libproc; checks that its prototype is declared and its buffer fits."""

    def __init__(self, answer: "Callable[..., int]") -> None:
        self.answer = answer
        self.argtypes: tuple[type, ...] | None = None

    def __call__(self, *args: object) -> int:
        assert self.argtypes is not None, "no prototype"
        assert len(args) == len(self.argtypes), args
        plain = [
            arg if kind is ctypes.c_void_p else kind(arg).value
            for kind, arg in zip(self.argtypes, args, strict=True)
        ]
        return self.answer(*plain)


class _Lib:
    """The functions of libSystem that sandrun calls; there are no others."""

    def __init__(self) -> None:
        for name in ("proc_listpids", "proc_pidinfo", "proc_pid_rusage", "mach_timebase_info"):
            setattr(self, name, _Function(getattr(self, "_" + name)))

    def _mach_timebase_info(self, to: object) -> int:
        base = to._obj  # type: ignore[attr-defined]
        base.numer, base.denom = 125, 3  # Apple silicon's: 24 MHz
        return 0

    def _proc_listpids(self, kind: int, of: int, to: object, size: int) -> int:
        buffer = to._obj  # type: ignore[attr-defined]
        assert ctypes.sizeof(buffer) == size, "the buffer's size"
        if kind == 6:  # PROC_PPID_ONLY
            reaper = int(os.environ.get("SANDRUN_TEST_REAPER", "1"))
            found = [pid for parent in {of, reaper if of == 1 else of} for pid in _children(parent)]
        else:
            assert kind == 4, kind  # PROC_UID_ONLY
            pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
            found = [pid for pid in pids if _uid(pid) == of]
        found = found[: len(buffer)]
        buffer[: len(found)] = found
        return len(found) * 4

    def _proc_pidinfo(self, pid: int, flavor: int, arg: int, to: object, size: int) -> int:
        assert (flavor, arg) == (13, 0), (flavor, arg)  # PROC_PIDT_SHORTBSDINFO
        info = to._obj  # type: ignore[attr-defined]
        assert ctypes.sizeof(info) == size == 64
        fields = _stat(pid)
        if not fields:
            return 0
        info.pbsi_pid, info.pbsi_ppid, info.pbsi_pgid = pid, int(fields[2]), int(fields[3])
        info.pbsi_comm, info.pbsi_uid = fields[0][:15], _uid(pid)
        info.pbsi_status = {b"T": 4, b"t": 4, b"Z": 5, b"X": 5, b"R": 2}.get(fields[1], 3)
        return size

    def _proc_pid_rusage(self, pid: int, flavor: int, to: object) -> int:
        assert flavor == 4, flavor  # RUSAGE_INFO_V4
        usage = to._obj  # type: ignore[attr-defined]
        assert ctypes.sizeof(usage) == 296
        fields = _stat(pid)
        if not fields or fields[1] in b"ZX" or os.geteuid() not in (0, _uid(pid)):
            return -1
        ticks = 24_000_000 // os.sysconf("SC_CLK_TCK")  # units of the timebase
        times = ("user_time", "system_time", "child_user_time", "child_system_time")
        for name, spent in zip(times, fields[12:16], strict=True):
            setattr(usage, f"ri_{name}", int(spent) * ticks)
        usage.ri_proc_start_abstime = int(fields[20]) * ticks
        usage.ri_phys_footprint = _footprint(pid)
        return 0


def _stat(pid: int) -> "list[bytes]":
    """The fields of /proc/PID/stat from the name on; empty: the process is gone."""
    try:
        head, _, tail = _text(f"/proc/{pid}/stat").rpartition(b")")
    except OSError:
        return []
    return [head.partition(b"(")[2], *tail.split()]


def _children(pid: int) -> "list[int]":
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        texts = [_text(f"/proc/{pid}/task/{task}/children") for task in tasks]
    except OSError:
        return []
    return [int(word) for text in texts for word in text.split()]


def _uid(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return -1


def _footprint(pid: int) -> int:
    """The anonymous and the shared memory, each in full."""
    try:
        words = _text(f"/proc/{pid}/status").split()
    except OSError:
        return 0
    names = (b"RssAnon:", b"RssShmem:", b"VmSwap:")
    return sum(int(words[words.index(name) + 1]) * 1024 for name in names if name in words)


def CDLL(name: "str | None", *args: object, **more: object) -> object:
    return _Lib() if name is None else _cdll(name, *args, **more)  # type: ignore[arg-type]


def _is_sandrun() -> bool:
    """Whether this interpreter was started as sandrun, and not as a command by a test."""
    words = sys.orig_argv[1:4]
    return any(f"/{word}".endswith("/sandrun") or "sandrun.cli" in word for word in words)


_cdll = ctypes.CDLL

if os.environ.get("SANDRUN_TEST_PROFILE") == "darwin" and _is_sandrun():
    _strip()
    _hide_proc()
    _replace(fcntl, flock)
    _replace(resource, setrlimit)
    _replace(select, poll)
    _replace(time, thread_time)
    _replace(ctypes, CDLL)
    _real = sys.platform
    sys.platform = "darwin"
    # These modules read sys.platform and choose for all others.
    import sandrun.model
    import sandrun.platform.processes  # noqa: F401

    sys.platform = _real
