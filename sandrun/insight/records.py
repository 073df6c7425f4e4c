"""Reading the history: past runs in either order, and one run by its id.

Promises
- Any content is survived: lines that are torn, of another version, no JSON or of any length are
  skipped, and fields that no run can have are left out. One warning counts the skipped lines; one
  names a file that cannot be read.
- Memory is bounded by a block and the longest line that can be a record, whatever the file's size.
- A reader sees the file as it was when it began. What is appended later is not seen; a file that is
  replaced meanwhile (`sandrun history prune`) is read to its end.
- Filters are exact, whatever the clock did: every line is tested, none is assumed to be older than
  the lines after it. Only a line in the form that sandrun writes is rejected without being decoded.

The order is that of the records in the file: runs are recorded when they end. Where the user's own
file could not be written, runs were recorded in the state directories of their queues; those files
are merged by the time at which the runs ended.
"""

import heapq
import os
import stat
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import islice
from typing import TypedDict, Unpack

from sandrun import history, messages
from sandrun.model import command_text, is_run_id
from sandrun.queue.state import all_states
from sandrun.types import Record

_BLOCK = 1 << 18
_LONGEST = 1 << 20
"""Bytes of a line. A record is smaller: its command line and its paths are bounded."""
_NO_RECORD = b"\0"  # stands for a line that is too long
_LATEST = 1e11  # seconds since 1970: far beyond any clock, and still a date for localtime(3)
_RECENT = 20_000  # lines in which similar ids are searched
_NUMBERS = ("since", "wait", "wall", "cpu", "peak", "peak_with_cache", "stalled", "limit", "pid")


class Filters(TypedDict, total=False):
    """Which runs to yield: since <= start of the run (after its wait) < until, in seconds since
    1970. `failed`: only those that did not exit with 0. `project`: exactly that project, or queue
    name. `command`: a part of the command line in a shell's notation."""

    project: str
    since: float
    until: float
    failed: bool
    command: str


class _Line(Record):
    v: int


def failed(record: Record) -> bool:
    """Whether the run did not exit with 0 by itself."""
    return record.get("reason") != "exit" or record.get("exit") != 0


def newest_first(**filters: Unpack[Filters]) -> "Iterator[Record]":
    """The runs that pass the filters, the last one that ended first."""
    streams = [_of_file(path, filters, backward=True) for path in files()]
    return _merged(streams, reverse=True)


def oldest_first(**filters: Unpack[Filters]) -> "Iterator[Record]":
    """The runs that pass the filters, in the order in which they ended."""
    return _merged([_of_file(path, filters) for path in files()], reverse=False)


def find(run_id: str) -> "Record | None":
    """The last record of a run; None: there is none."""
    if not is_run_id(run_id):
        return None
    mark = run_id.encode()
    for path in files():
        for line in lines(path, backward=True):
            record = decode(line) if mark in line else None
            if record and record.get("id") == run_id:
                return record
    return None


def nearest(run_id: str) -> "list[str]":
    """At most three ids of recent runs that resemble `run_id`; those that it starts come first."""
    from difflib import get_close_matches

    if not run_id:
        return []
    ids: dict[str, None] = {}
    for path in files():
        for line in islice(lines(path, backward=True), _RECENT):
            if (record := decode(line)) and "id" in record:
                ids[record["id"]] = None
    starts = [known for known in ids if known.startswith(run_id)]
    return list(dict.fromkeys(starts + get_close_matches(run_id, ids, 3)))[:3]


def files() -> "list[str]":
    """The files with records, the user's own first."""
    own = history.path()
    states = [os.path.join(state, "history.jsonl") for state in all_states()]
    return [*([own] if own else []), *filter(os.path.lexists, states)]


def _merged(streams: "list[Iterator[Record]]", reverse: bool) -> "Iterator[Record]":
    if len(streams) == 1:
        return streams[0]
    return heapq.merge(*streams, key=_end, reverse=reverse)


def _end(record: Record) -> float:
    return record.get("since", 0.0) + record.get("wall", 0.0)


def _of_file(path: str, filters: Filters, backward: bool = False) -> "Iterator[Record]":
    wanted, skipped = _test(filters), 0
    for line in lines(path, backward):
        if not line or _is_rejected(line, filters):
            continue
        record = decode(line)
        if record is None:
            skipped += 1
        elif wanted(record):
            yield record
    if skipped:
        many = "1 line is no record" if skipped == 1 else f"{skipped} lines are no records"
        messages.warn(f"{path}: {many} of this version of sandrun; skipped")


def _test(filters: Filters) -> "Callable[[Record], bool]":
    since, until = filters.get("since", 0.0), filters.get("until", _LATEST)
    is_timed = "since" in filters or "until" in filters
    project, words = filters.get("project", ""), filters.get("command", "")
    only_failed = filters.get("failed", False)

    def wanted(record: Record) -> bool:
        return (
            (not is_timed or since <= record.get("since", -1.0) < until)
            and (not project or record.get("project") == project)
            and (not only_failed or failed(record))
            and (not words or words in command_text(record.get("command", [])))
        )

    return wanted


_SINCE = b'"since": '


def _is_rejected(line: bytes, filters: Filters) -> bool:
    """Whether the line's own text proves that the time of its run is not wanted.

    A quotation mark inside a JSON string is escaped, so the mark is a key wherever it stands. This
    takes a fifth of the time of decoding the line.
    """
    if "since" not in filters:
        return False
    _, mark, rest = line.partition(_SINCE)
    try:
        return bool(mark) and float(rest[: rest.index(b",")]) < filters["since"]
    except ValueError:
        return False


def decode(line: bytes) -> "Record | None":
    """The record in a line; None: it is no record of this version. Numbers that no run can have
    (negative, infinite, beyond any date) are left out."""
    record = _fast(line)
    if record is None:
        return None
    for key in _NUMBERS:
        value = record.get(key)
        if value is not None and not 0 <= value < (_LATEST if key == "since" else 1 << 62):  # type: ignore[operator]
            del record[key]  # type: ignore[misc]
    return record


def _slow(line: bytes) -> "Record | None":
    record = next(history.records([line]), None)
    for key in [key for key, value in (record or {}).items() if isinstance(value, bool)]:
        del record[key]  # type: ignore[union-attr, misc]
    return record


def _choose() -> "Callable[[bytes], Record | None]":
    """msgspec decodes four times as fast as the standard library; the result is the same."""
    try:
        import msgspec
    except ImportError:
        return _slow
    parse = msgspec.json.Decoder(_Line).decode

    def fast(line: bytes) -> "Record | None":
        try:
            record = parse(line)
        except (ValueError, RecursionError):  # or it has fields of other types: those are left out
            return _slow(line)
        version = record.pop("v", 0)  # type: ignore[misc]
        return record if version == history.VERSION else None

    return fast


_fast = _choose()


def lines(path: str, backward: bool = False) -> "Iterator[bytes]":
    """The lines of a file, without line ends. Warns if it cannot be read to its end, or is no
    regular file."""
    try:
        file = _open(path)
        if file is None:
            return
        with file:
            end = file.seek(0, os.SEEK_END)
            yield from (_backward(file, end) if backward else forward(file, 0, end))
    except OSError as error:
        messages.warn(f"the history {path} cannot be read: {error.strerror}", f"ls -ld {path}")


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _open(path: str) -> "FileIO | None":
    """None: there is no such file. Raises OSError, also for anything but a regular file: a FIFO
    would block, a device might never end, and opening one may have effects."""
    try:
        _require_regular(os.stat(path))
    except FileNotFoundError:
        return None
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = FileIO(os.open(path, flags | getattr(os, "O_CLOEXEC", 0)))
    _require_regular(os.fstat(file.fileno()))
    return file


def _require_regular(info: os.stat_result) -> None:
    kind = stat.S_IFMT(info.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(0, f"it is {_KINDS.get(kind, 'no regular file')}")


def forward(file: FileIO, start: int, end: int) -> "Iterator[bytes]":
    """The lines between two offsets; `start` is the start of a line."""
    file.seek(start)
    head, is_cut = b"", False
    while start < end and (data := file.read(min(_BLOCK, end - start))):
        start += len(data)
        *whole, last = data.split(b"\n")
        if whole:
            whole[0] = _NO_RECORD if is_cut else head + whole[0]
            yield from whole
            head, is_cut = last, False
        else:
            head += last
        if len(head) > _LONGEST:
            head, is_cut = b"", True
    yield _NO_RECORD if is_cut else head


def _backward(file: FileIO, end: int) -> "Iterator[bytes]":
    """The lines before an offset, the last one first."""
    tail, is_cut = b"", False
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        first, *whole = file.read(end - start).split(b"\n")
        end = start
        if whole:
            whole[-1] = _NO_RECORD if is_cut else whole[-1] + tail
            yield from reversed(whole)
            tail, is_cut = first, False
        else:
            tail = first + tail
        if len(tail) > _LONGEST:
            tail, is_cut = b"", True
    yield _NO_RECORD if is_cut else tail
