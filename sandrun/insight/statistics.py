"""Statistics of past runs: per command of a project, and who waited for whom.

Promises
- Percentiles are exact, by the nearest rank: the lowest value that at least so many percent of the
  runs do not exceed. Unknown values are left out; each measure has the number of its runs.
- Memory is bounded: 32 bytes a run, and at most `MOST_COMMANDS` commands are told apart. The runs
  of further ones are counted together.

A large file is divided among as many processes as there are processors: decoding takes most of the
time. Each sends back its numbers; nothing is shared and nothing is kept for the next time, because
a cache beside the history would have to prove that it belongs to it.
"""

import gc
import math
import os
import sys
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Unpack

from sandrun import history
from sandrun.insight import records
from sandrun.model import DARWIN, SandrunError, command_text, plain
from sandrun.types import Record

Key = tuple[str, tuple[str, ...]]
"""A project, and a command line."""
MEASURES = ("wait", "wall", "cpu", "peak")
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
MOST_COMMANDS = 10_000
OTHERS: Key = ("", ("(other commands)",))
_MOST_CHARACTERS = 8_000_000  # of all command lines together
_LARGE = 32 << 20  # bytes of a file that is worth a second process: a third of a second


class Group:
    """The runs of one command of a project. `values` has the `MEASURES` of one run after another,
    in one array, because access to memory takes most of the time; -1: unknown."""

    __slots__ = ("failures", "runs", "values")

    def __init__(self) -> None:
        self.runs = 0
        self.failures: dict[str, int] = {}
        self.values = array("d")

    def add(self, other: "Group") -> None:
        """Add the runs of another group."""
        self.runs += other.runs
        self.values += other.values
        for reason, count in other.failures.items():
            self.failures[reason] = self.failures.get(reason, 0) + count

    def known(self, measure: str) -> "list[float]":
        """The known values of a measure, the smallest first."""
        return sorted(self._known(measure))

    def _known(self, measure: str) -> "Iterator[float]":
        at = MEASURES.index(measure)
        return (value for value in self.values[at :: len(MEASURES)] if value >= 0)

    def total(self, *measures: str) -> float:
        """The sum of all values of these measures."""
        return math.fsum(math.fsum(self._known(measure)) for measure in measures)


@dataclass
class Statistics:
    """All runs that were read. `waits`: for a waiting command and the text of the command that it
    waited for, the number of runs and the seconds. `since`: the earliest and the latest start."""

    groups: dict[Key, Group] = field(default_factory=dict)
    waits: dict[tuple[Key, str], list[float]] = field(default_factory=dict)
    since: tuple[float, float] = (math.inf, 0.0)
    skipped: int = 0
    characters: int = 0

    def group(self, key: Key) -> Group:
        """The group of a command; that of the others, if there are too many to tell apart."""
        found = self.groups.get(key)
        if found is None:
            self.characters += sum(map(len, key[1]))
            if len(self.groups) >= MOST_COMMANDS or self.characters > _MOST_CHARACTERS:
                key = OTHERS
            found = self.groups.setdefault(key, Group())
        return found

    def add_wait(self, key: Key, text: str, runs: float, seconds: float) -> None:
        """Add a wait of runs of `key` for the command `text`."""
        pair = self.waits.get((key, text))
        if pair is None and len(self.waits) < MOST_COMMANDS:
            pair = self.waits[key, text] = [0, 0.0]
        if pair:
            pair[0] += runs
            pair[1] += seconds

    def by_time(self) -> "list[tuple[Key, Group]]":
        """The commands, those first whose runs took most time; the others together come last."""
        return sorted(
            self.groups.items(),
            key=lambda item: (item[0] == OTHERS, -item[1].total("wait", "wall")),
        )

    def add(self, other: "Statistics") -> None:
        """Add what another process read."""
        for key, group in other.groups.items():
            self.group(key).add(group)
        for (key, text), (runs, seconds) in other.waits.items():
            self.add_wait(key, text, runs, seconds)
        self.since = (min(self.since[0], other.since[0]), max(self.since[1], other.since[1]))
        self.skipped += other.skipped


def collect(**filters: Unpack[records.Filters]) -> Statistics:
    """The statistics of the runs that pass the filters. Warns of files that cannot be read."""
    total = Statistics()
    for path in records.files():
        found = _of_file(path, filters)
        records.warn_of_skipped(path, found.skipped)
        total.add(found)
    return total


def summary(ordered: "list[float]") -> "dict[str, float]":
    """The number of values, and their percentiles. The smallest value comes first."""
    found = {"runs": float(len(ordered))}
    for name, part in PERCENTILES.items() if ordered else ():
        found[name] = ordered[math.ceil(part * len(ordered)) - 1]
    return found


def _of_file(path: str, filters: records.Filters) -> Statistics:
    parts = records.parts(path, _processes(path))
    if sys.platform == "win32" or len(parts) < 2:
        return _of_part(path, *parts[0], filters) if parts else Statistics()
    from multiprocessing import get_context

    context = get_context("fork")
    jobs: list[tuple[Any, Any]] = []
    total = Statistics()
    for part in parts:
        result, sender = context.Pipe(duplex=False)
        readers = [*(reader for _, reader in jobs), result]
        args = sender, readers, os.getpid(), path, *part, filters
        job = context.Process(target=_send_part, args=args)
        try:
            job.start()
        except OSError:  # a limit on processes
            total.add(_of_part(path, *part, filters))
            continue
        sender.close()  # so that its death ends `recv`
        jobs.append((job, result))
    for job, result in jobs:
        try:
            total.add(result.recv())
        except EOFError:
            for other, _ in jobs:  # our children, not yet reaped
                other.kill()
            raise SandrunError(f"a process that reads {path} was killed", "free -m") from None
        job.join()
    return total


def _send_part(
    sender: "Any",
    readers: "list[Any]",
    parent: int,
    path: str,
    start: int,
    end: int,
    filters: records.Filters,
) -> None:
    """Send the statistics of a part to `parent`, with which this process ends: at once, or, where
    that cannot be asked for, when it sends, because only `parent` has the `readers` then."""
    if sys.platform == "linux" and not DARWIN:
        from sandrun.platform import linux_syscalls

        linux_syscalls.set_parent_death_signal(9)
    for reader in readers:
        reader.close()
    if os.getppid() == parent:
        sender.send(_of_part(path, start, end, filters))


def _processes(path: str) -> int:
    """Into how many parts a file is divided. Without a cheap fork, starting another interpreter
    takes longer than it saves."""
    if sys.platform != "linux" or DARWIN:
        return 1
    try:
        size = os.stat(path).st_size
    except OSError:
        return 1
    return max(1, min(len(os.sched_getaffinity(0)), 8, size // _LARGE))


def _of_part(path: str, start: int, end: int, filters: records.Filters) -> Statistics:
    found = Statistics()
    first, last = found.since
    gc.disable()  # the rows are freed at once, and searching them for cycles takes a tenth
    try:
        for row in _rows(path, start, end, filters):
            if row is None:
                found.skipped += 1
                continue
            _count(found, row)
            since = row.since
            if since >= 0:
                first = since if since < first else first
                last = since if since > last else last
    finally:
        gc.enable()
    found.since = first, last
    return found


class _Row:
    """The fields of a record that are counted; -1: unknown."""

    def __init__(self, record: Record) -> None:
        get: Callable[..., Any] = record.get
        self.project: str = get("project", "")
        self.command = tuple(get("command", ()))
        self.since: float = get("since", -1.0)
        self.wait: float = get("wait", -1.0)
        self.wall: float = get("wall", -1.0)
        self.cpu: float = get("cpu", -1.0)
        self.peak: int | None = get("peak")
        self.exit: int | None = get("exit")
        self.reason: str = get("reason", "unknown")
        self.waited_for: list[dict[str, Any]] = get("waited_for") or []


def _rows(path: str, start: int, end: int, filters: records.Filters) -> "Iterator[_Row | None]":
    """The rows of a part of a file that pass the filters, and None for lines that are no record."""
    parse = None if filters else _parser()
    if not parse:
        for record in records.in_part(path, start, end, filters):
            yield _Row(record) if record is not None else None
        return
    for line in records.lines_of_part(path, start, end):
        try:
            row = parse(line)
            if row.v == history.VERSION:
                yield row
                continue
        except (ValueError, RecursionError):
            pass
        if line:
            record = records.decode(line)
            yield _Row(record) if record is not None else None


def _parser() -> "Callable[[bytes], Any] | None":
    """Decodes a line straight into a row; half the time of a whole record. Without msgspec None."""
    try:
        import msgspec
    except ImportError:
        return None
    number = Annotated[float, msgspec.Meta(ge=0, lt=records.LATEST)]
    size = Annotated[int, msgspec.Meta(ge=0, lt=records.MOST)]
    fields: list[tuple[str, Any, Any]] = [
        ("v", int, 0),
        ("project", str, ""),
        ("command", tuple[str, ...], ()),
        *((name, number, -1.0) for name in ("since", "wait", "wall", "cpu")),
        ("peak", size | None, None),
        ("exit", int | None, None),
        ("reason", str, "unknown"),
        ("waited_for", list[dict[str, Any]], ()),
    ]
    row = msgspec.defstruct("Row", fields, gc=False)
    return msgspec.json.Decoder(row).decode


def _count(found: Statistics, row: _Row) -> None:
    key = row.project, row.command
    group = found.groups.get(key)
    if group is None:
        group = found.group(key)
    group.runs += 1
    peak = row.peak
    group.values.extend((row.wait, row.wall, row.cpu, -1.0 if peak is None else peak))
    if row.exit != 0 or row.reason != "exit":
        reason = failure(row.reason, row.exit)
        group.failures[reason] = group.failures.get(reason, 0) + 1
    for other in row.waited_for:
        command, seconds = other.get("command"), other.get("seconds")
        if isinstance(command, str) and isinstance(seconds, int | float) and 0 <= seconds < 1e11:
            found.add_wait(key, command, 1, seconds)


def failure(reason: str, code: "int | None") -> str:
    """Why a run failed: its reason, or `exit` and the code."""
    return f"exit {code}" if reason == "exit" else reason


def command_of(key: Key) -> str:
    """A command as one line for people."""
    return key[1][0] if key == OTHERS else plain(command_text(list(key[1])))
