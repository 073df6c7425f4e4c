"""The fallback where no kernel container can be had: a polling monitor, rlimits as a backstop.

Promises less than the others, and says so: a process may pass the limit between two looks. Each
process gets RLIMIT_DATA a quarter above the limit, so that one process that grows faster than any
poll fails to allocate. Processes are the supervisor's descendants (it becomes a subreaper), and
all that carry the run's mark in their environment once the supervisor is dead.

Memory is summed RSS while that is below half of the limit (it can only over-count), and PSS above,
so that shared pages count once. Not seen: tmpfs and shared memory that nobody maps.
"""

import os
import resource
import time

from sandrun import kernel, messages, sampling, spawn
from sandrun.model import MIB, Limits, Process, Unusable, Usage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


KILL_SECONDS = 10.0
_BEYOND = frozenset(
    ("cpus", "cpu_weight", "pids", "io_weight")
    + ("io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops")
)
"""Settings that no rlimit stands for (RLIMIT_NPROC counts all processes of the user)."""
_PAGE = os.sysconf("SC_PAGESIZE")


class RlimitContainer:
    """See `sandrun.protocol.Container`. `limits` is None in a container that was attached."""

    def __init__(self, run_id: str, limits: "Limits | None" = None) -> None:
        self.token = run_id
        self.keeper = 0
        self.events = (-1, 0)
        self.struck = ""
        self.limits = limits
        self.owner = os.getpid() if limits else 0
        self.peak = 0
        self.current = 0
        limit = limits.memory if limits else 0
        self.sampler = sampling.Sampler(limit, limits.check_interval if limits else 1.0)

    def spawn(self, argv: "list[str]", env: "Mapping[str, str]", heritage: spawn.Heritage) -> int:
        if not kernel.become_subreaper():
            messages.decision("no subreaper here: a daemon of the command may escape")
        before = resource.getrlimit(resource.RLIMIT_DATA)

        def leave() -> None:
            resource.setrlimit(resource.RLIMIT_DATA, before)

        return spawn.direct(argv, env, heritage, self._enter, leave)

    def _enter(self) -> None:
        assert self.limits
        backstop = self.limits.memory + self.limits.memory // 4 + 64 * MIB
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        lowest = min(v for v in (backstop, soft, hard) if v != resource.RLIM_INFINITY)
        try:
            # The soft one only, so that we can take ours back after the spawn.
            resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))
        except (OSError, ValueError):
            pass  # macOS refuses limits below the current map; the monitor is what counts

    def poll(self) -> "float | None":
        assert self.limits
        pids = self.pids()
        self.current = _memory(pids, self.limits.memory // 2)
        self.peak = max(self.peak, self.current)
        self.sampler.look(self.current, lambda: pids)
        if self.current > self.limits.memory:
            self.struck = "own"
        return self.sampler.due(self.current)

    def usage(self) -> Usage:
        return Usage(self.current, self.peak, sampled=True)

    def top(self) -> "list[Process]":
        return self.sampler.top()

    def pids(self) -> "list[int]":
        # Orphans come to us while we walk: who dies after we listed our children and before we
        # list its own hides them. None alive, and the same again, is the truth.
        before: list[int] | None = None
        while True:
            found = self._found()
            live = [pid for pid in found if not kernel.is_zombie(pid)]
            if live or found == before:
                return live
            before = found

    def _found(self) -> "list[int]":
        if os.getpid() == self.owner:
            return [pid for pid in _descendants(self.owner) if pid != self.keeper]
        return [pid for pid in kernel.marked(self.token) if pid != os.getpid()]

    def kill(self) -> None:
        deadline = time.monotonic() + KILL_SECONDS
        while pids := self.pids():
            for pid in reversed(pids):
                try:
                    os.kill(pid, 9)
                except OSError:
                    continue
            if time.monotonic() > deadline:
                raise TimeoutError(pids)
            time.sleep(0.002)

    def close(self) -> None:
        pass


def _descendants(root: int) -> "list[int]":
    if os.path.exists(f"/proc/{root}/task"):
        return kernel.descendants(root)
    import psutil

    return [child.pid for child in psutil.Process(root).children(recursive=True)]


def _memory(pids: "list[int]", exact_above: int) -> int:
    """The memory of processes in bytes: RSS, or PSS when the sum of RSS passes `exact_above`."""
    total = sum(map(_rss, pids))
    return total if total <= exact_above else sum(map(_pss, pids))


def _rss(pid: int) -> int:
    try:
        return int(kernel.read(f"/proc/{pid}/statm").split()[1]) * _PAGE
    except OSError:
        if os.path.exists("/proc/self"):
            return 0
        import psutil

        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0


def _pss(pid: int) -> int:
    try:
        rollup = kernel.read(f"/proc/{pid}/smaps_rollup")
        return int(rollup.partition(b"Pss:")[2].split(None, 1)[0]) * 1024
    except (OSError, IndexError):
        return _rss(pid)


class RlimitBackend:
    """See `sandrun.protocol.Backend`."""

    name = "rlimit"
    kernel = False

    def open(self, run_id: str, limits: Limits) -> RlimitContainer:
        beyond = sorted(limits.asked & _BEYOND)
        if beyond:
            raise Unusable(f"only a kernel's container limits {', '.join(beyond)}")
        return RlimitContainer(run_id, limits)

    def attach(self, token: str) -> RlimitContainer:
        return RlimitContainer(token)
