"""Writes samples of a run's memory, CPU time and tasks, and its events, to a file.

Imported when the run is a second old, or at an earlier event, so that a shorter run costs nothing
more. `sandrun.supervise.sample_files` makes, locks and removes the files; `sandrun.insight.samples`
reads them.

The format: one JSON value a line.
- The header: `{"v": 1, "id": ..., "fields": ["t", "memory", "cpu", "processes", "stalled"], ...}`.
- A point: the list of the `fields`. `t`: seconds since the run's start. `memory`: the highest
  working set since the point before, in bytes. `cpu`: the CPU time so far, in seconds. `processes`:
  how many there are, with threads, as for `--pids`. `stalled`: seconds stalled on memory so far.
  null: not known.
- An event: `{"t": ..., "event": ..., ...}`.
A file has at most 600 points. When it is full, each two neighbours are merged and the interval
doubles: the points of a run of a week are at most 17 minutes apart.

Promises
- The highest point is the peak of the run's record. A peak between two samples belongs to the first
  point after it.
- Sampling wakes the supervisor up once in an interval of at least a second, or not at all if a poll
  was due a little earlier. While memory changes fast, polls add points. Sampling takes at most one
  part in 200 of a core's time, however many processes there are.
- While the run does nothing, nothing is written.
- Nothing here fails a run. After an error (a full disk, no home directory) no more is written.
"""

import os
import time

from sandrun import history, messages
from sandrun.model import command_text, error_text, plain
from sandrun.supervise import sample_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandrun.backends.protocol import Container
    from sandrun.model import Escape, Process, Usage
    from sandrun.types import Record, WaitedFor

FIELDS = ["t", "memory", "cpu", "processes", "stalled"]
INTERVAL = 1.0
"""Seconds between two points, until the file is full for the first time."""
POINTS = 600
_EVENTS = 100
"""The number of events of one kind that are recorded at most."""
_NAMED = 5
"""The number of processes that an event names, and of runs in `waited_for`, at most."""
_SHARE = 200
"""Sampling takes at most one part in so many of a core's time."""
_IDLE_SHARE = 0.01
"""A run that uses less of a processor, and stalls for less of the time, does nothing."""
_SILENT = 6 * 3600.0
"""Seconds after which a point is written even if the run does nothing: on a file system without
locks, the time of the last write shows that the run lives (`sample_files`)."""
_STEP = 32
"""A change of memory by more than one part in so many of the limit adds a point."""
_CHARACTERS = 80
"""Characters of a command line in an event or in `waited_for`."""
_TAIL = 1 << 17
"""Bytes at the end of the history that are searched for the runs that held the queue."""

if TYPE_CHECKING:
    Point = tuple[float, int | None, float | None, int | None, float | None]


class Recorder:
    """Records one run. `record`: what is known of it, for the header; if empty, nothing is written.
    `began`: when the supervisor started (time.monotonic). `keep`: the age in seconds and the size
    in bytes up to which sample files are kept."""

    def __init__(
        self, container: "Container", record: "Record", began: float, keep: "tuple[float, int]"
    ) -> None:
        now = time.monotonic()
        self.container = container
        self.record = record
        # `record["since"]` is the run's start. The supervisor started later if it waited for git.
        earlier = time.time() - record.get("since", 0.0) - (now - began)
        self.began = began - (earlier if 0 <= earlier < 3600 else 0.0)
        self.interval = INTERVAL
        self.due: float | None = now
        """When the next sample is due (time.monotonic); None: no more are taken."""
        self.earliest = now
        """Before this time no poll adds a point."""
        self.step = record.get("limit", 0) // _STEP
        self.last = self.highest = self.peak = 0
        """Memory in bytes: in the last sample, the highest in polls since then, and the peak up to
        the last sample."""
        self.points: list[Point] = []
        self.pending: Point | None = None
        """The last sample of a time in which the run did nothing; it is not written yet."""
        self.was_idle = False
        self.events: list[str] = []
        self.counts: dict[str, int] = {}
        self.known_escapes: set[int] = set()
        self.file: sample_files.SampleFile | None = None
        if record:
            self._open(keep)

    def _open(self, keep: "tuple[float, int]") -> None:
        """Begin the file. Then remove old ones, because this run has added one."""
        try:
            self._find_holders()
            self.file = sample_files.SampleFile(self.record["id"])
            self.file.append(self._header())
            sample_files.prune(self.file.folder, time.time(), *keep, self.record["id"])
        except OSError as error:
            self._give_up(error)

    def _header(self) -> str:
        names = ("id", "pid", "project", "cwd", "command", "backend", "limit", "since", "wait")
        known: dict[str, object] = {name: self.record.get(name) for name in names}
        known["waited_for"] = self.record.get("waited_for", [])
        return history.encode({"v": sample_files.VERSION, **known, "fields": FIELDS})

    def _find_holders(self) -> None:
        """Correct `waited_for` by the history, because a waiter reads the queue only sometimes."""
        if "waited_for" not in self.record:
            return
        until = self.record["since"]
        known = holders(self.record["project"], until - self.record["wait"], until)
        ids = {run["id"] for run in known}  # the others are of another project, in the pool
        known += [run for run in self.record["waited_for"] if run["id"] not in ids]
        self.record["waited_for"] = longest(known)

    def _give_up(self, error: OSError) -> None:
        messages.decision(f"no more samples of this run are written: {error_text(error)}")
        if self.file:
            self.file.close()
        self.file = self.due = None

    def polled(self, now: float) -> None:
        """Use a poll's result. Sample if that is due soon, or if memory has changed much."""
        if self.due is None:
            return
        current = self.container.current or 0
        self.highest = max(self.highest, current)
        self._note_escapes(self.container.escaped)
        is_step = self.step and abs(current - self.last) > self.step and now >= self.earliest
        if is_step or now >= self.due - self.interval / 4:
            self.sample(now)

    def sample(self, now: float) -> None:
        """Measure, and add a point."""
        began = time.thread_time()
        usage = self.container.sample()
        if usage.current is None and usage.peak is None:  # there is no container
            self.due = None
            return
        self._add(now, usage)
        cost = (time.thread_time() - began) * _SHARE
        self.due = now + max(self.interval, cost) if self.file else None
        self.earliest = now + max(self.interval / 20, cost)

    def _add(self, now: float, usage: "Usage") -> None:
        self.last = usage.current or 0
        # A peak that only the kernel noticed, between two samples, belongs to this point.
        peak = usage.peak or 0
        memory = peak if peak > self.peak else min(max(self.highest, self.last), peak)
        self.peak, self.highest = max(self.peak, peak), 0
        point = (now - self.began, memory, usage.cpu, usage.tasks, usage.stalled)
        if self._is_idle(point):
            memory = max(memory, self.pending[1] or 0) if self.pending else memory
            self.pending = (point[0], memory, *point[2:])
        else:
            self._flush()
            self._append(point)

    def _is_idle(self, point: "Point") -> bool:
        """Whether a point is like the last two that were written. Such a point is not written: an
        outer run with an idle timeout would take the write for activity of its own processes."""
        last = self.points[-1] if self.points else None
        if last is None or point[0] - last[0] > _SILENT or not self._is_like(last, point):
            self.was_idle = False
        elif self.was_idle:
            return True
        else:
            self.was_idle = True
        return False

    def _is_like(self, last: "Point", point: "Point") -> bool:
        """Whether the run did nothing between two points (measured as in `timeouts`)."""
        if last[3] != point[3] or abs((last[1] or 0) - (point[1] or 0)) > self.step // 8:
            return False
        pairs = zip((last[2], last[4]), (point[2], point[4]), strict=True)
        return all((b or 0) - (a or 0) < (point[0] - last[0]) * _IDLE_SHARE for a, b in pairs)

    def _flush(self) -> None:
        """Write the last point of the time in which nothing was done."""
        if self.pending:
            pending, self.pending = self.pending, None
            self._append(pending)

    def _append(self, point: "Point") -> None:
        self.points.append(point)
        try:
            if len(self.points) > POINTS:
                self.points = merged(self.points)
                self.interval *= 2
                self._replace()
            elif self.file:
                self.file.append(_line(point))
        except OSError as error:
            self._give_up(error)

    def _replace(self) -> None:
        """Write all points again. On Windows that fails while a reader has the file open; the file
        then keeps more points until the next call."""
        try:
            if self.file:
                self.file.replace([self._header(), *map(_line, self.points), *self.events])
        except PermissionError:
            pass

    def note(self, event: str, details: "Mapping[str, object]", now: float) -> None:
        """Add an event."""
        count = self.counts[event] = self.counts.get(event, 0) + 1
        if not self.file or count > _EVENTS:
            return
        at = round(max(0.0, now - self.began), 3)
        self.events.append(history.encode({"t": at, "event": event, **details}))
        try:
            self.file.append(self.events[-1])
        except OSError as error:
            self._give_up(error)

    def _note_escapes(self, escaped: "Mapping[int, Escape]") -> None:
        for pid, escape in escaped.items():
            if pid not in self.known_escapes:
                self.known_escapes.add(pid)
                named = {**_named([escape.process])[0], "group": plain(escape.group)}
                self.note("escaped", named, time.monotonic())

    def finish(self, usage: "Usage", escaped: "Mapping[int, Escape]") -> None:
        """Add the last point, so that the highest one is the final peak, and close the file."""
        self._note_escapes(escaped)
        if self.file and usage.peak is not None:
            usage.tasks = usage.tasks or 0
            if usage.cpu is None:  # all children have been reaped
                times = os.times()
                usage.cpu = times.children_user + times.children_system
            self._add(time.monotonic(), usage)
            self._flush()
            # A sample may have included a charge that the kernel then refused.
            if any((point[1] or 0) > usage.peak for point in self.points):
                most = usage.peak
                self.points = [(p[0], min(p[1] or 0, most), *p[2:]) for p in self.points]
                try:
                    self._replace()
                except OSError as error:
                    self._give_up(error)
        if self.file:
            self.file.close()
            self.file = None


def merged(points: "list[Point]") -> "list[Point]":
    """Half as many points: each has the higher memory of two neighbours, and the other figures of
    the later one."""
    pairs = zip(points[::2], points[1::2], strict=False)
    found = [(b[0], max(a[1] or 0, b[1] or 0), *b[2:]) for a, b in pairs]
    return found + points[len(found) * 2 :]


def _line(point: "Point") -> str:
    return "[" + ",".join(map(_number, point)) + "]"


def _number(value: "float | None") -> str:
    if value is None:
        return "null"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _named(found: "Iterable[Process]") -> "list[dict[str, object]]":
    """Processes as in an event."""
    return [
        {"pid": p.pid, "command": plain(p.command)[:_CHARACTERS], "memory": p.memory}
        for p in list(found)[:_NAMED]
    ]


def limit_event(container: "Container") -> "tuple[str, dict[str, object]]":
    """The event of a limit that was hit, and what is known about it."""
    if container.limit_hit == "cpu-time":
        return "timeout", {"reason": "cpu-time"}
    return "limit", {
        "whose": container.limit_hit,
        "top": _named(container.top_consumers()),
        "kinds": container.usage().breakdown,
        "counters": container.counters(),
    }


def leftover_details(found: "list[Process]", action: str) -> "dict[str, object]":
    """What is known about the processes that the command left behind."""
    return {"count": len(found), "action": action, "top": _named(found)}


def holders(project: str, began: float, ended: float) -> "list[WaitedFor]":
    """The runs in the history that held the queue of `project` between these times (seconds since
    1970), and for how long each did."""
    runs: list[tuple[float, float, Record]] = []
    for record in history.records(history.last_lines(_TAIL)):
        start = record.get("since", 0.0)
        end = start + record.get("wall", 0.0)
        if start < ended and end > began and record.get("project") == project and "id" in record:
            runs.append((start, -end, record))
    found: list[WaitedFor] = []
    latest = 0.0
    for start, end, record in sorted(runs, key=lambda run: run[:2]):
        if -end > latest:  # otherwise it was inside another run, which held the queue
            latest = -end
            command = plain(command_text(record.get("command", [])))[:_CHARACTERS]
            seconds = round(min(ended, latest) - max(began, start), 3)
            found.append({"id": record["id"], "command": command, "seconds": seconds})
    return found


def longest(runs: "Iterable[WaitedFor]") -> "list[WaitedFor]":
    """At most five runs, the longest first."""
    return sorted(runs, key=lambda run: -run["seconds"])[:_NAMED]
