"""The figures of a live run: memory against its limit, CPU, processes, pressure, and the curve.

They come from the run's sample file, which has a point a second, in long runs fewer. Newer figures
are read from the run's cgroup or, with the polling fallback, summed over its processes. Files of
other users are not read.
"""

import time
from collections import deque
from dataclasses import dataclass, field

from sandrun import backends
from sandrun.backends.protocol import Container
from sandrun.insight import samples
from sandrun.insight.samples import Point, Samples
from sandrun.lifecycle import status
from sandrun.model import SandrunError
from sandrun.platform import folders
from sandrun.queue import Ticket
from sandrun.queue.holder import Holder

_STALE = 2.5
"""Seconds after which a sample in the file is too old, and we take our own."""
_SUM_SECONDS = 5.0
"""Seconds between two sums over a run's processes, which read three files for each of them."""
_SHARE = 0.005
"""The share of a processor that reading all sample files may use."""
_RATE_SECONDS = 1.0
"""Seconds over which CPU and pressure are averaged: points may be only milliseconds apart."""
_POINTS = 600
_GROUPS = ("cgroup2", "systemd", "cgroup1")
"""The backends for which reading a few files is enough to measure the memory in use."""

Series = list[tuple[float, float]]


@dataclass(frozen=True)
class Figures:
    """`memory` and `limit` in bytes (limit 0: none), `cpu` in processors, `stalled` as a share of
    the time, both averaged over a second or more; None: not known. `curve`: seconds since the
    start, and bytes. `last_event`: its kind, and seconds since the start."""

    memory: int | None
    limit: int
    cpu: float | None = None
    processes: int | None = None
    stalled: float | None = None
    curve: Series = field(default_factory=list)
    backend: str = ""
    last_event: tuple[str, float] | None = None


class _Gauge:
    """What is known of one run."""

    def __init__(self, found: Holder, uid: int) -> None:
        self.found = found
        self.limit = found.record.get("limit", 0)
        self.is_own = folders.is_own(uid)
        self.container: Container | None = None
        self.samples: Samples | None = None
        self.curve: Series = [(0.0, 0.0)]
        self.next_read = self.next_sum = 0.0
        self.seen: deque[Point] = deque(maxlen=_POINTS)
        """Our own samples, newer than those of the file."""
        if self.is_own and found.backend in _GROUPS:
            try:
                container = backends.named(found.backend).attach(found.id, found.container)
                self.container = container
            except SandrunError:
                pass

    def read(self, ticket: Ticket, runs: int) -> Figures:
        now = time.monotonic()
        if self.is_own and now >= self.next_read:
            began = time.thread_time()
            if found := samples.read(ticket.id):
                self.samples, self.curve = found, [(0.0, 0.0), *_curve(found.points)]
            self.next_read = now + (time.thread_time() - began) * runs / _SHARE
        age = max(0.0, time.time() - self.found.since)
        points = self.samples.points if self.samples else []
        if not points or age - points[-1].t > _STALE:
            self._sample(ticket, age, now)
        newest = points[-1].t if points else -1.0
        newer = [point for point in self.seen if point.t > newest]
        return self._figures([*points, *newer], [*self.curve, *_curve(newer)])

    def _sample(self, ticket: Ticket, age: float, now: float) -> None:
        """Take a sample of our own."""
        if self.container:
            usage = self.container.usage()
            if usage.current is not None:
                self.seen.append(Point(age, usage.current, usage.cpu, None, usage.stalled))
        elif now >= self.next_sum:
            self.next_sum = now + _SUM_SECONDS
            self.seen.append(Point(age, status.tree_memory(ticket.pid), None, None, None))

    def _figures(self, points: list[Point], curve: Series) -> Figures:
        if not points:
            return Figures(None, self.limit, backend=self.found.backend)
        last = points[-1]
        before = next((p for p in reversed(points) if last.t - p.t >= _RATE_SECONDS), last)
        counted = next((p.processes for p in reversed(points) if p.processes is not None), None)
        events = self.samples.events if self.samples else []
        return Figures(
            last.memory,
            self.limit,
            cpu=_rate(before.cpu, last.cpu, last.t - before.t),
            processes=counted,
            stalled=_rate(before.stalled, last.stalled, last.t - before.t),
            curve=curve,
            backend=self.found.backend,
            last_event=(events[-1].kind, events[-1].t) if events else None,
        )


def _curve(points: list[Point]) -> Series:
    return [(point.t, float(point.memory)) for point in points]


def _rate(old: float | None, new: float | None, seconds: float) -> float | None:
    if old is None or new is None or new < old or seconds <= 0:
        return None
    return (new - old) / seconds


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
        return gauge.read(ticket, len(self._of))

    def keep(self, ids: set[str]) -> None:
        """Forget all runs but these."""
        self._of = {key: gauge for key, gauge in self._of.items() if key in ids}
