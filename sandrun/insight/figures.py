"""The figures of a live run: memory against its limit, CPU, processes, pressure, and the curve.

They come from the run's sample file. Between two samples the memory and the CPU time are read from
the run's cgroup; where the fallback polls, its processes are summed at most every `_SUM_SECONDS`.
"""

import time
from collections import deque
from dataclasses import dataclass

from sandrun import backends
from sandrun.backends.protocol import Container
from sandrun.lifecycle import status
from sandrun.model import SandrunError
from sandrun.platform import folders
from sandrun.queue import Ticket
from sandrun.queue.holder import Holder

_SUM_SECONDS = 5.0
_POINTS = 600
_GROUPS = ("cgroup2", "systemd", "cgroup1")
"""The backends whose container tells its memory by reading a few files."""


@dataclass(frozen=True)
class Figures:
    """Bytes; `cpu` in processors, `stalled` as a share of the time, both since the figure before.
    None: not known. `curve` is the memory so far, oldest first."""

    memory: int | None
    limit: int
    cpu: float | None
    processes: int | None
    stalled: float | None
    curve: tuple[int, ...]
    backend: str


class _Gauge:
    """What is known of one run."""

    def __init__(self, found: Holder, uid: int) -> None:
        self.limit = found.record.get("limit", 0)
        self.backend = found.backend
        self.curve: deque[int] = deque(maxlen=_POINTS)
        self.container: Container | None = None
        self.used: tuple[float, float] | None = None
        self.cpu: float | None = None
        self.next_sum = 0.0
        if folders.is_own(uid) and found.backend in _GROUPS:
            try:
                container = backends.named(found.backend).attach(found.id, found.container)
                self.container = container
            except SandrunError:
                pass

    def read(self, ticket: Ticket) -> Figures:
        now = time.monotonic()
        if self.container:
            usage = self.container.usage()
            if usage.current is not None:
                self.curve.append(usage.current)
            if usage.cpu is not None:
                if self.used and now > self.used[0]:
                    self.cpu = max(0.0, (usage.cpu - self.used[1]) / (now - self.used[0]))
                self.used = now, usage.cpu
        elif now >= self.next_sum:
            self.curve.append(status.tree_memory(ticket.pid))
            self.next_sum = now + _SUM_SECONDS
        memory = self.curve[-1] if self.curve else None
        return Figures(memory, self.limit, self.cpu, None, None, tuple(self.curve), self.backend)


class Gauges:
    """The figures of all runs."""

    def __init__(self) -> None:
        self._of: dict[str, _Gauge] = {}

    def read(self, ticket: Ticket, found: Holder | None, uid: int) -> Figures | None:
        """The figures of a run; None: its command has not been started yet."""
        if found is None:
            return None
        gauge = self._of.get(ticket.id)
        if gauge is None:
            gauge = self._of[ticket.id] = _Gauge(found, uid)
        return gauge.read(ticket)

    def keep(self, ids: set[str]) -> None:
        """Forget all other runs."""
        if len(self._of) > len(ids):
            self._of = {key: gauge for key, gauge in self._of.items() if key in ids}
