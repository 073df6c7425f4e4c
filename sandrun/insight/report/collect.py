"""Reading the history for a page: the newest runs as they are, and totals over all.

Promises: one pass, newest first; memory grows with the runs of the page and with the number of
different commands (`_KEYS` at most), not with the length of the history.
"""

import functools
import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from sandrun.model import command_text
from sandrun.types import Record

_KEYS = 20_000
"""So many different commands are counted one by one, and all others as `OTHER`."""
OTHER = "other commands"
_TREND = 200
"""A command's trend shows so many of its newest runs."""
WORST = 10
_LONGEST = 1e9  # seconds: 30 years
_COMMAND = 400
"""Characters of a command line that are kept of each run."""
_HOLDER = 80  # characters that a record holds of the command that was waited for
LIMITS = frozenset(("memory", "outer-memory", "timeout", "cpu-time", "idle"))


@dataclass(slots=True)
class Run:
    """One record. Bytes and seconds; None: unknown."""

    key: str
    """Unique in this page, unlike ids: in a damaged history they may be anything, and repeated."""
    id: str
    project: str
    command: str
    start: float | None
    """When the command started, in seconds since 1970; the wait was before it."""
    wait: float
    wall: float
    cpu: float | None
    peak: int | None
    limit: int | None
    """The memory limit; None: none."""
    reason: str
    exit: int | None
    waited_for: list[tuple[str, str, float]]
    """Run id, command, seconds."""
    kind: str
    """`ok`, `failed` (by itself), `limit` (a limit ended it) or `other` (ended in another way, or
    unknown)."""

    @property
    def share(self) -> float | None:
        """The peak as a share of the limit."""
        return self.peak / self.limit if self.peak is not None and self.limit else None


def _kind(reason: object, exit: object) -> str:
    if reason == "exit":
        return "failed" if exit else "ok"
    if reason in LIMITS:
        return "limit"
    return "failed" if reason == "signal" else "other"


def run_of(record: Record, key: str) -> Run:
    """The run of a record of `insight.records`, which checks numbers, but not texts."""
    exit, reason = record.get("exit"), record.get("reason", "")
    return Run(
        key=key,
        id=record.get("id", "")[:8],
        project=record.get("project", "")[:_COMMAND],
        command=_command(*record.get("command", ())),
        start=record.get("since") or None,
        wait=min(record.get("wait", 0.0), _LONGEST),
        wall=min(record.get("wall", 0.0), _LONGEST),
        cpu=record.get("cpu"),
        peak=record.get("peak"),
        limit=record.get("limit") or None,
        reason=reason[:20],
        exit=exit if exit is not None and abs(exit) < 1 << 32 else None,
        waited_for=[
            (held["id"][:8], _shortened(held["command"]), min(held["seconds"], _LONGEST))
            for held in record.get("waited_for", ())[:5]
        ],
        kind=_kind(reason, exit),
    )


def _shortened(command: str) -> str:
    return command[:_HOLDER] + "…" if len(command) >= _HOLDER else command


@functools.lru_cache(1024)
def _command(*words: str) -> str:
    """The start of a command line in a shell's notation."""
    left, kept = _COMMAND, []
    for word in words:
        kept.append(word[: left + 1])
        left -= len(word) + 1
        if left <= 0:
            break
    return command_text(kept)[:_COMMAND]


@dataclass(slots=True)
class Command:
    """Sums over all runs of one command of one project."""

    project: str
    command: str
    runs: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    wait: float = 0.0
    wall: float = 0.0
    peak: int | None = None
    newest: "deque[tuple[float, float, int | None, bool]]" = field(
        default_factory=lambda: deque(maxlen=_TREND)
    )
    """Start, wall, peak, and whether it failed, of the newest runs; the newest first."""

    def add(self, run: Run) -> None:
        self.runs += 1
        self.wait += run.wait
        self.wall += run.wall
        if run.peak is not None:
            self.peak = max(self.peak or 0, run.peak)
        if run.kind != "ok":
            self.failures[run.reason if run.reason != "exit" else "exit code"] += 1
        if run.start is not None and len(self.newest) < _TREND:
            self.newest.append((run.start, run.wall, run.peak, run.kind != "ok"))


class Collected:
    """What the page shows. `runs`: the newest runs, the oldest of them first. All else is about all
    runs that were read.

    - `days`: for each day since 1970 (local time) the runs, failures, seconds run and waited.
    - `waits`: seconds that one command (a key of `commands`) waited for another (its text).
    """

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.count = 0
        self.wait = self.wall = 0.0
        self.first = self.last = None  # type: float | None
        self.kinds: Counter[str] = Counter()
        self.commands: dict[tuple[str, str], Command] = {}
        self.days: dict[int, list[float]] = {}
        self.waits: dict[tuple[tuple[str, str], str], float] = {}
        self._worst: dict[str, list[tuple[float, int, Run]]] = {}

    def add(self, run: Run) -> None:
        """Count a run."""
        self.count += 1
        self.wait += run.wait
        self.wall += run.wall
        self.kinds[run.kind] += 1
        key = (run.project, run.command)
        if key not in self.commands and len(self.commands) >= _KEYS:
            key = ("", OTHER)
        command = self.commands.get(key)
        if command is None:
            command = self.commands[key] = Command(*key)
        command.add(run)
        self._add_waits(key, run)
        if run.start is not None:
            self.first = min(self.first or run.start, run.start)
            self.last = max(self.last or 0, run.start + run.wall)
            self._add_day(run, run.start)
        self._keep_worst("memory", run.share, run)
        self._keep_worst("peak", run.peak, run)
        self._keep_worst("wait", run.wait if run.wait >= 1 else None, run)
        self._keep_worst("wall", run.wall if run.wall >= 1 else None, run)

    def _add_waits(self, key: tuple[str, str], run: Run) -> None:
        for _, other, seconds in run.waited_for:
            pair = (key, other)
            if pair not in self.waits and len(self.waits) >= _KEYS:
                pair = (("", OTHER), OTHER)
            self.waits[pair] = self.waits.get(pair, 0.0) + seconds

    def _add_day(self, run: Run, start: float) -> None:
        day = int((start + time.localtime(start).tm_gmtoff) // 86400)
        figures = self.days.setdefault(day, [0, 0, 0.0, 0.0])
        figures[0] += 1
        figures[1] += run.kind != "ok"
        figures[2] += run.wall
        figures[3] += run.wait

    def _keep_worst(self, what: str, value: float | None, run: Run) -> None:
        heap = self._worst.setdefault(what, [])
        if value is None or (len(heap) == WORST and value <= heap[0][0]):
            return
        entry = (value, -self.count, run)  # of equal ones the newest, which came first
        (heapq.heappushpop if len(heap) == WORST else heapq.heappush)(heap, entry)

    def worst(self, what: str) -> list[Run]:
        """The worst runs by `memory` (share of the limit), `peak`, `wait` or `wall`; the worst
        first."""
        return [run for *_, run in sorted(self._worst.get(what, ()), key=lambda e: e[:2])[::-1]]


def collect(records: Iterable[Record], most: int) -> Collected:
    """Read records, which come newest first; the page shows `most` of them."""
    found = Collected()
    ahead = iter(records)
    for record in itertools.islice(ahead, most):
        run = run_of(record, str(found.count))
        found.runs.append(run)
        found.add(run)
    for record in ahead:
        found.add(run_of(record, str(found.count)))
    found.runs.sort(key=lambda run: run.start or 0.0)
    return found
