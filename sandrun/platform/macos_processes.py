"""What the macOS kernel reports about processes, through libproc.

The functions are in every process (libSystem). The structures are those of <sys/proc_info.h> and
<sys/resource.h>; tests/layout.py compares them with the Darwin headers. For another user's process
libproc reports only name, state, owner and parent; memory, CPU time and start time are zero.

Command lines, environments (sysctl KERN_PROCARGS2) and directories come from psutil. The
environments of Apple's own programs, which System Integrity Protection guards, are hidden.
"""

import ctypes
import errno
import os
import sys

from sandrun.bare import signal as _signal
from sandrun.model import RUNS_VARIABLE, Process

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PPID_ONLY, _UID_ONLY = 6, 4  # PROC_PPID_ONLY, PROC_UID_ONLY of proc_listpids
_SHORTBSDINFO = 13  # PROC_PIDT_SHORTBSDINFO
_RUSAGE_V4 = 4  # RUSAGE_INFO_V4, macOS 10.13
_STATES = "?IRSTZ"  # SIDL 1, SRUN 2, SSLEEP 3, SSTOP 4, SZOMB 5 (<sys/proc.h>)
_ROOM = 512
_CHECK_SECONDS = 5.0
"""Seconds between two checks for the death of the parent (`die_with`)."""


class ProcBsdShortInfo(ctypes.Structure):
    """struct proc_bsdshortinfo."""

    _fields_ = (
        *((f"pbsi_{name}", ctypes.c_uint32) for name in ("pid", "ppid", "pgid", "status")),
        ("pbsi_comm", ctypes.c_char * 16),
        *(
            (f"pbsi_{name}", ctypes.c_uint32)
            for name in ("flags", "uid", "gid", "ruid", "rgid", "svuid", "svgid", "rfu")
        ),
    )


class RusageInfoV4(ctypes.Structure):
    """struct rusage_info_v4. Times, also the start time, in the units of mach_absolute_time."""

    _fields_ = (
        ("ri_uuid", ctypes.c_uint8 * 16),
        *(
            (f"ri_{name}", ctypes.c_uint64)
            for name in (
                "user_time", "system_time", "pkg_idle_wkups", "interrupt_wkups", "pageins",
                "wired_size", "resident_size", "phys_footprint", "proc_start_abstime",
                "proc_exit_abstime", "child_user_time", "child_system_time",
                "child_pkg_idle_wkups", "child_interrupt_wkups", "child_pageins",
                "child_elapsed_abstime", "diskio_bytesread", "diskio_byteswritten",
                "cpu_time_qos_default", "cpu_time_qos_maintenance", "cpu_time_qos_background",
                "cpu_time_qos_utility", "cpu_time_qos_legacy", "cpu_time_qos_user_initiated",
                "cpu_time_qos_user_interactive", "billed_system_time", "serviced_system_time",
                "logical_writes", "lifetime_max_phys_footprint", "instructions", "cycles",
                "billed_energy", "serviced_energy", "interval_max_phys_footprint",
                "runnable_time",
            )
        ),
    )  # fmt: skip


class Timebase(ctypes.Structure):
    """struct mach_timebase_info: nanoseconds are units times numer over denom."""

    _fields_ = (("numer", ctypes.c_uint32), ("denom", ctypes.c_uint32))


_VOID = ctypes.c_void_p
PROTOTYPES = {
    "proc_listpids": (ctypes.c_uint32, ctypes.c_uint32, _VOID, ctypes.c_int),
    "proc_pidinfo": (ctypes.c_int, ctypes.c_int, ctypes.c_uint64, _VOID, ctypes.c_int),
    "proc_pid_rusage": (ctypes.c_int, ctypes.c_int, _VOID),
    "mach_timebase_info": (_VOID,),
}
"""The argument types of every function called; each function returns an int."""

_libc = ctypes.CDLL(None)
for _name, _arguments in PROTOTYPES.items():
    getattr(_libc, _name).argtypes = _arguments

_timebase = Timebase()
_libc.mach_timebase_info(ctypes.byref(_timebase))
_UNIT = _timebase.numer / _timebase.denom / 1e9
"""Seconds in one unit of mach_absolute_time."""


def _short_info(pid: int) -> ProcBsdShortInfo:
    info = ProcBsdShortInfo()
    size = ctypes.sizeof(info)
    if _libc.proc_pidinfo(pid, _SHORTBSDINFO, 0, ctypes.byref(info), size) != size:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return info


PROC = NO_PROC = "/dev/null"
"""macOS has no /proc. Below this path there is never a file."""
MOUNT_PROC = "macOS has no /proc"


def read(path: "str | bytes") -> bytes:
    """The content of a small file. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        return file.readall()


def owner(pid: int) -> int:
    """The effective uid of a process. Raises OSError."""
    return int(_short_info(pid).pbsi_uid)


class Stat:
    """The known facts about a process. `rss` is the physical footprint in bytes (the memory that
    its exit would free, compressed pages included), `start` is in units of mach_absolute_time,
    `cpu` is in seconds and includes that of reaped children; `threads` and `stack` are not
    known."""

    __slots__ = ("cpu", "name", "parent", "rss", "stack", "start", "state", "threads")

    def __init__(self, pid: int) -> None:
        info = _short_info(pid)
        usage = RusageInfoV4()
        if _libc.proc_pid_rusage(pid, _RUSAGE_V4, ctypes.byref(usage)):
            usage = RusageInfoV4()
        self.name: str = info.pbsi_comm.decode("utf-8", "replace")
        self.state = _STATES[info.pbsi_status] if info.pbsi_status < len(_STATES) else "?"
        self.parent = int(info.pbsi_ppid)
        self.threads = 1
        self.stack = 0
        self.start = int(usage.ri_proc_start_abstime)
        self.rss = int(usage.ri_phys_footprint)
        times = usage.ri_user_time + usage.ri_system_time
        times += usage.ri_child_user_time + usage.ri_child_system_time
        self.cpu = times * _UNIT


def _list(kind: int, of: int) -> "list[int]":
    room = _ROOM
    while True:
        pids = (ctypes.c_int * room)()
        length = _libc.proc_listpids(kind, of, ctypes.byref(pids), ctypes.sizeof(pids))
        count = max(0, length) // ctypes.sizeof(ctypes.c_int)
        if count < room:
            return [pid for pid in pids[:count] if pid > 0]
        room *= 2  # a full buffer may have been too small


def children(pid: int) -> "list[int]":
    """The children of `pid`; those of 1 include all orphans."""
    return _list(_PPID_ONLY, pid)


def _processes() -> "list[int]":
    return _list(_UID_ONLY, os.geteuid())


def _ask(pid: int, method: str) -> "Any":
    import psutil

    try:
        return getattr(psutil.Process(pid), method)()
    except psutil.NoSuchProcess:
        raise ProcessLookupError(pid) from None
    except psutil.AccessDenied:
        raise PermissionError(pid) from None


def arguments(pid: int) -> "list[str]":
    """The command line. Raises OSError."""
    return list(_ask(pid, "cmdline"))


def environ(pid: int) -> "dict[str, str]":
    """The environment with which the process's program was started. Raises OSError."""
    return dict(_ask(pid, "environ"))


def working_directory(pid: int) -> str:
    """The current working directory of a process. Raises OSError."""
    return str(_ask(pid, "cwd"))


def is_marked(pid: int, mark: str) -> bool:
    """Whether the process was started in the run of that mark; False if we may not read its
    environment."""
    try:
        runs = environ(pid).get(RUNS_VARIABLE, "")
    except OSError:
        return False
    return bool(mark) and f":{mark}:" in f":{runs}:"


def marked_processes(mark: str, limit: str, among: "list[int] | None" = None) -> "list[int]":
    """This user's processes, except this one, that were started in the run of that mark. `limit` is
    not used: macOS does not report the limits of another process."""
    pids = _processes() if among is None else among
    return [pid for pid in pids if pid != os.getpid() and is_marked(pid, mark)]


def wait_for_marked_process(mark: str, limit: str, seconds: float) -> "list[int]":
    """An empty list: macOS does not assign pids in order, so no scan finds the newest first."""
    return []


def describe(pid: int, memory: "int | None" = None) -> "Process | None":
    """A description of a process; its memory is the footprint unless `memory` is given. None: it is
    gone."""
    try:
        stat = Stat(pid)
        try:
            words = " ".join(arguments(pid))
        except OSError:
            words = ""
    except OSError:
        return None
    text = "".join(c if c.isprintable() else "?" for c in words)
    return Process(pid, stat.rss if memory is None else memory, text[:200] or f"[{stat.name}]")


def die_with(parent: int) -> None:
    """Exit soon after the parent does. macOS has no signal for its death, so a timer checks."""

    def check(*_: object) -> None:
        if os.getppid() != parent:
            os._exit(0)

    _signal.signal(_signal.SIGALRM, check)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGALRM})
    _signal.setitimer(_signal.ITIMER_REAL, _CHECK_SECONDS, _CHECK_SECONDS)
    check()


def become_subreaper() -> bool:
    """False: on macOS, launchd adopts all orphans."""
    return False


def orphans_are_reaped() -> bool:
    """False: no caller on macOS needs the answer."""
    return False


def has_exited(pid: int) -> bool:
    """Whether the process is dead; it may be a zombie."""
    try:
        return Stat(pid).state == "Z"
    except OSError:
        return True


def open_pidfd(pid: int) -> int:
    """-1: macOS has no pidfds."""
    return -1


def kill_process(pid: int, pidfd: int) -> bool:
    """SIGKILL the process that now has the pid. False: we are not permitted to kill it."""
    try:
        os.kill(pid, 9)
    except PermissionError:
        return False
    except OSError:
        pass
    return True


def thread_count() -> int:
    """0: the number of threads on this host is not known."""
    return 0


def is_oom_protected(pid: int) -> bool:
    """False: macOS has no such protection."""
    return False
