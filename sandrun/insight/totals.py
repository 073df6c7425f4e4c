"""Totals over all runs that ever ended, which never go down although the history is pruned.

The file `totals.json` beside the history contains them, and the position up to which each file of
records is counted. So an update reads only what was added since, and counts each record once. After
the history was pruned or replaced, counting continues after the last counted record or, if that is
gone, with the runs that ended after it. Without the file, the whole history is counted again. A
counter may then start lower, which Prometheus treats as a reset.

The first `PROJECTS` projects have totals of their own, and all later ones count as `OTHER`, so that
a server does not have to keep any number of series. The file contains no command lines.
"""

import bisect
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BufferedReader
from typing import Any, BinaryIO, get_args

from sandrun.insight import records
from sandrun.model import SandrunError, is_run_id
from sandrun.platform import folders, small_files
from sandrun.types import Reason, Record

VERSION = 1
_NAME = "totals.json"
PROJECTS = 50
OTHER = "(other)"
BUCKETS = (0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0)
"""Seconds: the upper bounds of the histograms."""
_LONGEST = _TAIL = 1 << 16
"""Bytes of a line: a record's texts are bounded."""
_REASONS = frozenset(reason for part in get_args(Reason) for reason in get_args(part))
_LOCK_SECONDS = 2.0
"""Seconds to wait for another process that updates the totals."""


@dataclass
class Histogram:
    """`counts`: how many values were in each bucket, the last one above all bounds of BUCKETS;
    `total`: their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    total: float = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(BUCKETS, value)] += 1
        self.total += value


@dataclass
class Project:
    """The totals of a project. `peak` and `limit` are those of its last run."""

    reasons: dict[str, int] = field(default_factory=dict)
    wait: Histogram = field(default_factory=Histogram)
    wall: Histogram = field(default_factory=Histogram)
    cpu: float = 0.0
    peak: int = 0
    limit: int = 0

    def add(self, record: Record) -> None:
        reason = record.get("reason", "lost")
        reason = reason if reason in _REASONS else "lost"
        self.reasons[reason] = self.reasons.get(reason, 0) + 1
        self.wait.add(max(0.0, record.get("wait", 0.0)))
        self.wall.add(max(0.0, record.get("wall", 0.0)))
        self.cpu += max(0.0, record.get("cpu", 0.0))
        self.peak = record.get("peak") or 0
        self.limit = record.get("limit", 0)


@dataclass
class Totals:
    """All projects, and for each file of records the position up to which it is counted: the offset
    after the last counted record, the id of its run, and the latest end of a counted run."""

    projects: dict[str, Project] = field(default_factory=dict)
    files: dict[str, tuple[int, str, float]] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        name = record.get("project", OTHER)
        if name not in self.projects and len(self.projects) >= PROJECTS:
            name = OTHER
        self.projects.setdefault(name, Project()).add(record)


@contextmanager
def updated() -> "Iterator[Totals]":
    """The totals, with all records of now. No other process updates them within this context, so
    files that are written in it never go back. Raises SandrunError and OSError."""
    home = folders.state_home()
    if not home:
        totals = Totals()
        _count_all(totals)
        yield totals
        return
    try:
        folders.make_folders(home, 0o700)
    except OSError as error:  # of a folder on the way
        raise OSError(error.errno, error.strerror, home) from None
    path = os.path.join(home, _NAME)
    with _locked(path + ".lock"):
        totals = _load(path)
        _count_all(totals)
        data = json.dumps({"v": VERSION, **asdict(totals)}).encode()
        small_files.replace(path, data, small_files.create_private)
        yield totals


def catch_up() -> None:
    """Count all records of now, if totals are kept at all. Called before records are removed.
    Raises SandrunError and OSError."""
    home = folders.state_home()
    if home and os.path.exists(os.path.join(home, _NAME)):
        with updated():
            pass


@contextmanager
def _locked(path: str) -> "Iterator[None]":
    """Hold the lock of the totals. On Windows there is none: an update may be lost, and the next
    one counts the same records."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        fd = folders.create(path, flags, 0o600)  # owned as its directory, also if made by root
    except FileExistsError:
        fd = os.open(path, flags)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise SandrunError("another sandrun is updating the totals", path) from None
                time.sleep(0.05)
        yield
    finally:
        os.close(fd)


def _load(path: str) -> Totals:
    """The totals in the file; new ones if it is missing or not what we write."""
    try:
        read = json.loads(small_files.read_small(path) or b"")
        if read["v"] != VERSION:
            return Totals()
        projects = {str(name): _project(fields) for name, fields in read["projects"].items()}
        files = {str(p): (int(end), str(m), float(t)) for p, (end, m, t) in read["files"].items()}
        return Totals(projects, files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Totals()


def _project(fields: "dict[str, Any]") -> Project:
    wait, wall = (Histogram(**fields.pop(name)) for name in ("wait", "wall"))
    for histogram in (wait, wall):
        if len(histogram.counts) != len(BUCKETS) + 1:
            raise ValueError
    return Project(wait=wait, wall=wall, **fields)


def _count_all(totals: Totals) -> None:
    for path in records.files():
        with records.reading(path) as file:
            if not file:
                continue
            try:
                before = totals.files.get(path, (0, "", 0.0))
                totals.files[path] = _count(totals, BufferedReader(file), before)
            except OSError as error:  # a part is counted: these totals must not be kept
                raise SandrunError(f"cannot read {path}: {error.strerror}") from None


def _count(
    totals: Totals, file: BinaryIO, counted: "tuple[int, str, float]"
) -> "tuple[int, str, float]":
    """Count a file's new records. Returns the position up to which it is then counted."""
    end, run, latest = counted
    after = -1.0  # of the runs from `end` on, those that ended later than this are new
    if run and not _is_counted_to(file, end, run):
        end = _end_of(file, run)
        after = -1.0 if end else latest
    for stop, line in _lines(file, end):
        record = records.decode(line)
        if record is None or not is_run_id(record.get("id", "")):
            continue
        ended = record.get("since", 0.0) + record.get("wall", 0.0)
        if ended > after:
            totals.add(record)
        end, run, latest = stop, record["id"], max(latest, ended)
    return end, run, latest


def _is_counted_to(file: BinaryIO, end: int, run: str) -> bool:
    """Whether the line that ends at `end` is still the record of that run."""
    file.seek(max(0, end - _TAIL))
    tail = file.read(min(end, _TAIL))
    return tail.endswith(b"\n") and run.encode() in tail[:-1].rpartition(b"\n")[2]


def _end_of(file: BinaryIO, run: str) -> int:
    """Where the last record of a run ends in a file that was pruned; 0: it has none any more."""
    mark = run.encode()
    return max((stop for stop, line in _lines(file, 0) if mark in line), default=0)


def _lines(file: BinaryIO, start: int) -> "Iterator[tuple[int, bytes]]":
    """The whole lines from an offset on, each with the offset after it. Lines that are longer than
    any record, and a last line without an end, are left out."""
    file.seek(start)
    is_cut = False
    while line := file.readline(_LONGEST):
        start += len(line)
        if line.endswith(b"\n"):
            if not is_cut:
                yield start, line
            is_cut = False
        else:
            is_cut = True
