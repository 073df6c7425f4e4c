"""The samples of a run, read from its file, which may be that of a live run.

`sandrun.supervise.recorder` describes the format, `sandrun.supervise.sample_files` where the files
are and what proves that one is ours. Readers skip every line that is torn or not of that format,
or has a number that no run can have (negative, infinite, or above any counter).
"""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandrun.history import is_holder
from sandrun.insight.records import MOST
from sandrun.model import is_run_id
from sandrun.supervise import sample_files
from sandrun.types import WaitedFor

_LONGEST = 1 << 22
"""More bytes than any file of samples has; from a larger one only the beginning is read."""


@dataclass(frozen=True)
class Point:
    """One sample: seconds since the run's start; the highest working set since the point before, in
    bytes; CPU seconds so far; processes and threads now; seconds stalled on memory so far. None:
    not known."""

    t: float
    memory: int
    cpu: float | None
    processes: int | None
    stalled: float | None


@dataclass(frozen=True)
class Event:
    """Something that happened `t` seconds after the run's start; `kind` is `warned`, `limit`,
    `stopped`, `continued`, `timeout`, `leftovers`, `escaped`, or one of a later version."""

    t: float
    kind: str
    details: dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """What was recorded of one run, in the order of time. `since`: seconds since 1970."""

    id: str
    pid: int
    project: str
    cwd: str
    command: list[str]
    backend: str
    limit: int
    since: float
    wait: float
    waited_for: list[WaitedFor]
    points: list[Point] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def read(run_id: str) -> "Samples | None":
    """The samples of a run; None: there are none, or they cannot be read."""
    if not is_run_id(run_id):
        return None
    try:
        data = _content(run_id)
    except OSError:
        return None
    lines = [value for value in map(_parsed, data.split(b"\n")) if value is not None]
    header = next((value for value in lines if isinstance(value, dict) and "v" in value), None)
    samples = _from_header(header, run_id) if header else None
    if samples:
        samples.points.extend(filter(None, map(_point, lines)))
        samples.events.extend(filter(None, map(_event, lines)))
        samples.points.sort(key=lambda point: point.t)
        samples.events.sort(key=lambda event: event.t)
    return samples


def prune(now: float, age: float, size: int, dry_run: bool = False) -> "tuple[int, int]":
    """Remove the sample files of runs that ended more than `age` seconds before `now` (seconds
    since 1970), and the oldest until the others take at most `size` bytes; 0: no limit. Never that
    of a live run. Returns the number of files removed and their bytes (`dry_run`: that
    would be removed). Raises OSError."""
    try:
        folder = sample_files.Folder()
    except FileNotFoundError:
        return 0, 0
    try:
        return sample_files.prune(folder, now, age, size, dry_run=dry_run)
    finally:
        folder.close()


def _content(run_id: str) -> bytes:
    folder = sample_files.Folder()
    try:
        fd = folder.open(run_id + sample_files.SUFFIX)
    finally:
        folder.close()
    with os.fdopen(fd, "rb") as file:
        # A FIFO or a device might never end.
        return file.read(_LONGEST) if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def _possible(kind: "Callable[[str], float]") -> "Callable[[str], float]":
    """Parse a number that a run can have. Raises ValueError for others."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 <= value < MOST:
            raise ValueError
        return value

    return parse


_decode = json.JSONDecoder(
    parse_int=_possible(int),
    parse_float=_possible(float),
    parse_constant=_possible(float),
).decode


def _parsed(line: bytes) -> Any:
    try:
        return _decode(line.decode()) if line else None
    except (ValueError, RecursionError):
        return None


def _from_header(header: dict[str, Any], run_id: str) -> "Samples | None":
    """The samples without points and events; a field of the wrong type has its default."""
    if header.get("v") != sample_files.VERSION or header.get("id") != run_id:
        return None

    def of(key: str, kind: type, default: Any) -> Any:
        value = header.get(key)
        wanted = (int, float) if kind is float else kind
        return value if isinstance(value, wanted) and not isinstance(value, bool) else default

    words, waited = of("command", list, []), of("waited_for", list, [])
    return Samples(
        id=run_id,
        pid=of("pid", int, 0),
        project=of("project", str, ""),
        cwd=of("cwd", str, ""),
        command=[word for word in words if isinstance(word, str)],
        backend=of("backend", str, ""),
        limit=of("limit", int, 0),
        since=of("since", float, 0.0),
        wait=of("wait", float, 0.0),
        waited_for=[run for run in waited if is_holder(run)],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _point(value: Any) -> "Point | None":
    if not isinstance(value, list) or len(value) < 5 or not all(map(_is_number, value[:2])):
        return None
    cpu, tasks, stalled = (n if _is_number(n) else None for n in value[2:5])
    return Point(value[0], int(value[1]), cpu, None if tasks is None else int(tasks), stalled)


def _event(value: Any) -> "Event | None":
    if not isinstance(value, dict) or not _is_number(value.get("t")):
        return None
    kind = value.get("event")
    if not isinstance(kind, str):
        return None
    return Event(value["t"], kind, {k: v for k, v in value.items() if k not in ("t", "event")})
