"""Metrics for Prometheus: totals of all past runs, and the queues and the pool as they are now.

In the text format 0.0.4, which is what the textfile collector of the node exporter reads: its
parser is `expfmt.TextParser` (collector/textfile.go; OpenMetrics is its open issue 1988). It takes
no timestamps, rejects a whole file for one unknown type, and reads only names that end in `.prom`.

Labels: `user`, because each user writes a file of their own, and no two files may have a series in
common; `project`, its path or the name of the queue, at most `totals.PROJECTS` of them and
`(other)`; `reason`, the closed set of the history. No command lines: they can contain secrets, and
there are too many.

Needs prometheus_client, an extra; imported only after that was found.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics import exposition
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sandrun.insight import totals
from sandrun.insight.output import replaceable
from sandrun.insight.totals import BUCKETS, OTHER, Histogram, Project, Totals
from sandrun.lifecycle import status
from sandrun.model import SandrunError, plain
from sandrun.platform.small_files import replace
from sandrun.queue import Ticket, memory_pool
from sandrun.queue.state import all_states, pool_path, state_path

_LIMITS = ("memory", "outer-memory", "timeout", "cpu-time", "idle")
"""The reasons that are limits."""
_KILLS = ("signal", "parent", "escaped", "lost")
"""The reasons for which a run was killed although it had reached no limit."""
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def text(pool: str, openmetrics: bool = False) -> bytes:
    """All metrics; `pool` is that setting. Raises SandrunError and OSError."""
    with totals.updated() as known:
        return _generated(known, pool, openmetrics)


def write(path: str, pool: str) -> None:
    """Write all metrics to a file. Raises SandrunError and OSError."""
    path = replaceable(path)
    with totals.updated() as known:  # so that no older figures replace newer ones
        replace(path, _generated(known, pool), finish=_make_readable)


def _make_readable(fd: int) -> None:
    """The collector is another user, and the file has no secrets."""
    if sys.platform != "win32":
        os.fchmod(fd, 0o644)


class _Families(Collector):
    def __init__(self, families: "list[Family]") -> None:
        self.families = families

    def collect(self) -> "Iterable[Any]":
        return self.families


def _generated(known: Totals, pool: str, openmetrics: bool = False) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    families = [*_of_runs(known), *_of_queues(known), *_of_pool(pool)]
    registry.register(_Families(families))
    write = exposition.generate_latest if openmetrics else generate_latest
    return bytes(write(registry))  # type: ignore[no-untyped-call, unused-ignore]


def _user() -> str:
    import getpass

    try:
        return plain(getpass.getuser())
    except (KeyError, OSError):  # a uid without an account
        if sys.platform == "win32":
            return "unknown"
        return str(os.getuid())


def _label(project: str) -> str:
    """A project as the value of a label: as `plain`, but the format itself escapes line feeds."""
    return "\n".join(map(plain, project.split("\n")))


def _of_runs(known: Totals) -> "Iterator[Family]":
    user = _user()
    of = known.projects.items()
    runs = CounterMetricFamily("sandrun_runs", "Runs, by why they ended.", None, _R)
    hits = CounterMetricFamily("sandrun_limit_hits", "Runs that were ended at a limit.", None, _R)
    kills = CounterMetricFamily(
        "sandrun_kills", "Runs that were killed, but not at a limit of theirs.", None, _R
    )
    for name, project in of:
        for reason, count in sorted(project.reasons.items()):
            runs.add_metric([user, _label(name), reason], count)
        for reason in _LIMITS:
            hits.add_metric([user, _label(name), reason], project.reasons.get(reason, 0))
        for reason in _KILLS:
            kills.add_metric([user, _label(name), reason], project.reasons.get(reason, 0))
    yield from (runs, hits, kills)
    yield _histogram("sandrun_wait_seconds", "Time in the queue.", known, lambda p: p.wait)
    yield _histogram("sandrun_wall_seconds", "Time of the runs.", known, lambda p: p.wall)
    cpu = CounterMetricFamily("sandrun_cpu_seconds", "CPU time of the runs.", None, _P)
    peak = GaugeMetricFamily("sandrun_peak_bytes", "Peak memory of the last run.", None, _P)
    limit_ = GaugeMetricFamily("sandrun_limit_bytes", "Memory limit of the last run.", None, _P)
    for name, project in of:
        cpu.add_metric([user, _label(name)], project.cpu)
        peak.add_metric([user, _label(name)], project.peak)
        limit_.add_metric([user, _label(name)], project.limit)
    yield from (cpu, peak, limit_)


_P = ("user", "project")
_R = (*_P, "reason")


def _histogram(
    name: str, help: str, known: Totals, of: "Callable[[Project], Histogram]"
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, help, None, None, _P)
    user = _user()
    bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
    for project, figures in known.projects.items():
        found = of(figures)
        pairs = list(zip(bounds, map(float, accumulate(found.counts)), strict=True))
        family.add_metric([user, _label(project)], pairs, found.total)
    return family


def _of_queues(known: Totals) -> "Iterator[Family]":
    """How many run and wait: in the queues of all known projects, also of those at rest."""
    waiting = GaugeMetricFamily("sandrun_queue_waiting", "Runs that wait.", None, _P)
    running = GaugeMetricFamily("sandrun_queue_running", "Runs that run.", None, _P)
    names = {_state_of(name): name for name in known.projects if name != OTHER}
    counts = dict.fromkeys(names.values(), (0, 0))
    for path in all_states():
        tickets = _tickets(path)
        runs = sum(ticket.running for ticket in tickets)
        name = names.get(path, OTHER)
        if tickets or path in names:
            before = counts.get(name, (0, 0))
            counts[name] = before[0] + len(tickets) - runs, before[1] + runs
    for name, (waits, runs) in counts.items():
        waiting.add_metric([_user(), _label(name)], waits)
        running.add_metric([_user(), _label(name)], runs)
    yield from (waiting, running)


def _state_of(project: str) -> str:
    """The state directory of what a record names: a path, or a queue's name. '': it has none."""
    try:
        return state_path(project) if os.path.isabs(project) else state_path("", project)
    except UnicodeEncodeError:  # no path that a system has
        return ""


def _tickets(path: str) -> "list[Ticket]":
    try:
        queue = status.open_queue(path)
    except SandrunError:
        return []
    if queue is None:
        return []
    try:
        return queue.tickets()
    finally:
        queue.close()


def _of_pool(pool: str) -> "Iterator[Family]":
    tickets = _tickets(pool_path())
    held = sum(ticket.extra for ticket in tickets if ticket.running)
    waits = sum(not ticket.running for ticket in tickets)
    shared = "Memory that the runs of all projects share; 0: no pool."
    for name, help, value in (
        ("sandrun_pool_bytes", shared, memory_pool.budget(pool)),
        ("sandrun_pool_reserved_bytes", "Memory of the pool that runs have reserved.", held),
        ("sandrun_pool_waiting", "Runs that wait for memory of the pool.", waits),
    ):
        family = GaugeMetricFamily(name, help, None, ("user",))
        family.add_metric([_user()], value)
        yield family
