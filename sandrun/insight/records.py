"""Reading the history: past runs in either order, and one run by its id.

Promises
- A file may contain anything: lines that are torn, of another version, no JSON or too long are
  skipped, and values that no run can have are left out. One warning counts the skipped lines; one
  names a file that cannot be read.
- Memory is bounded by a block and the longest line that can be a record, whatever the file's size.
- A reader sees the file as it was when it began. What is appended later is not seen; a file that is
  replaced meanwhile (`sandrun history prune`) is read to its end.
- Filters are exact, also if the clock was changed: every line is tested, and none is assumed to be
  older than the lines after it. Only a line in the form that sandrun writes is rejected undecoded.

The order is that of the records in the file: runs are recorded when they end. Where the user's own
file could not be written, runs were recorded in the state directories of their queues; those files
are merged by the time at which the runs ended.
"""

import heapq
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from io import FileIO
from itertools import islice, pairwise
from typing import Annotated, Any, TypedDict, Unpack, get_args, get_type_hints

from sandrun import history, messages
from sandrun.model import command_text, is_run_id
from sandrun.queue.state import all_states
from sandrun.types import Record

_BLOCK = 1 << 18
_LONGEST = 1 << 20
"""Bytes of a line. A record is smaller: its command line and its paths are bounded."""
_NO_RECORD = b"\0"  # stands for a line that is too long
LATEST = 1e11  # seconds since 1970: far beyond any clock, and still a date for localtime(3)
MOST = 1 << 62
_RECENT = 20_000  # lines in which similar ids are searched
_NUMBERS = (
    *("since", "wait", "wall", "cpu", "stalled"),
    *("peak", "peak_with_cache", "limit", "pid", "processes"),
)


class Filters(TypedDict, total=False):
    """Which runs to yield: since <= start of the run (after its wait) < until, in seconds since
    1970. `failed`: only those that did not exit with 0. `project`: exactly that project, or queue
    name. `command`: a part of the command line in a shell's notation."""

    project: str
    since: float
    until: float
    failed: bool
    command: str


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
    skipped = 0
    for record in decoded(lines(path, backward), filters):
        if record is None:
            skipped += 1
        else:
            yield record
    warn_of_skipped(path, skipped)


def warn_of_skipped(path: str, skipped: int) -> None:
    """Report in one line how many lines of a file are no records, if there are any."""
    if skipped:
        many = "1 line is no record" if skipped == 1 else f"{skipped} lines are no records"
        messages.warn(f"{path}: {many} of this version of sandrun; skipped")


def decoded(found: "Iterable[bytes]", filters: Filters) -> "Iterator[Record | None]":
    """The records in lines that pass the filters, and None for each line that is no record."""
    wanted = _test(filters) if filters else None
    since = filters.get("since", 0.0)
    project = _project_text(filters.get("project", ""))
    for line in found:
        if not line or (since and _is_too_old(line, since)):
            continue
        if project and _is_of_another_project(line, project):
            continue
        record = decode(line)
        if record is None or not wanted or wanted(record):
            yield record


def _test(filters: Filters) -> "Callable[[Record], bool]":
    since, until = filters.get("since", 0.0), filters.get("until", LATEST)
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
_PROJECT = b'"project": "'


def _project_text(project: str) -> bytes:
    """How sandrun writes a project; b'': a line must be decoded to compare it."""
    is_simple = bool(project) and project.isascii() and project.isprintable()
    return b'%s%s"' % (_PROJECT, project.encode()) if is_simple else b""


def _is_of_another_project(line: bytes, text: bytes) -> bool:
    """Whether the undecoded line proves that its run is of another project."""
    at = line.find(_PROJECT)
    if at < 0 or line.startswith(text, at):
        return False
    return b"\\" not in line[at : line.find(b'"', at + len(_PROJECT))]


def _is_too_old(line: bytes, since: float) -> bool:
    """Whether the undecoded line proves that its run began before `since`.

    A quotation mark inside a JSON string is escaped, so the mark is a key wherever it stands. This
    takes a fifth of the time of decoding the line.
    """
    at = line.find(_SINCE)
    try:
        return at >= 0 and float(line[at + len(_SINCE) : line.index(b",", at)]) < since
    except ValueError:
        return False


_decode = history.decoder()


def _slow(line: bytes) -> "Record | None":
    record = _decode(line)
    if record is None:
        return None
    for key in _NUMBERS:
        value = record.get(key)
        if value is not None and not _is_possible(key, value):
            del record[key]  # type: ignore[misc]
    if not all(_is_possible("wait", run["seconds"]) for run in record.get("waited_for", ())):
        del record["waited_for"]
    return record


def _is_possible(key: str, value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 <= value < (LATEST if key == "since" else MOST)


def _choose() -> "Callable[[bytes], Record | None]":
    """msgspec decodes several times as fast as the standard library, to the same result."""
    try:
        import msgspec
    except ImportError:
        return _slow
    fields = get_type_hints(Record)
    for key in _NUMBERS:
        bounds = msgspec.Meta(ge=0, lt=LATEST if key == "since" else MOST)
        is_optional = type(None) in get_args(fields[key])
        kind = next(iter(get_args(fields[key])), fields[key])
        fields[key] = Annotated[kind, bounds] | None if is_optional else Annotated[kind, bounds]
    seconds = Annotated[float, msgspec.Meta(ge=0, lt=MOST)]
    holder = {"id": str, "command": str, "seconds": seconds}
    fields["waited_for"] = list[TypedDict("holder", holder)]  # type: ignore[misc, operator]
    expected = TypedDict("expected", {"v": int, **fields}, total=False)  # type: ignore[misc]
    parse: Callable[[bytes], Any] = msgspec.json.Decoder(expected).decode

    def fast(line: bytes) -> "Record | None":
        try:
            record = parse(line)
        except (ValueError, RecursionError):  # or it has fields of other types: those are left out
            return _slow(line)
        return record if record.pop("v", 0) == history.VERSION else None

    return fast


decode = _choose()
"""The record in a line; None: it is no record of this version. Numbers that no run can have
(negative, infinite, beyond any date) are left out."""


def lines(path: str, backward: bool = False) -> "Iterator[bytes]":
    """The lines of a file, without line ends. Warns if it cannot be read to its end, or is no
    regular file."""
    with reading(path) as file:
        if file:
            end = file.seek(0, os.SEEK_END)
            yield from (_backward(file, end) if backward else forward(file, 0, end))


def parts(path: str, number: int) -> "list[tuple[int, int]]":
    """Divide a file into at most `number` parts of whole lines; each has its two offsets. No parts:
    there is no readable file, of which it warns as `lines` does."""
    with reading(path) as file:
        if not file:
            return []
        end = file.seek(0, os.SEEK_END)
        starts = [_line_start(file, end * part // number, end) for part in range(number)]
        return list(pairwise([*dict.fromkeys(starts), end]))
    return []


def lines_of_part(path: str, start: int, end: int) -> "Iterator[bytes]":
    """The lines between two offsets that `parts` returned."""
    with reading(path) as file:
        if file:
            yield from forward(file, start, end)


def in_part(path: str, start: int, end: int, filters: Filters) -> "Iterator[Record | None]":
    """The records in `lines_of_part` that pass the filters, and None for lines that are none."""
    return decoded(lines_of_part(path, start, end), filters)


@contextmanager
def reading(path: str, flags: int = os.O_RDONLY) -> "Iterator[FileIO | None]":
    """A regular file, opened; None: there is none. Warns if it cannot be read."""
    file = None
    try:
        file = _open(path, flags)
    except OSError as error:
        _warn_of(path, error.strerror)
    with file or nullcontext():
        try:
            yield file
        except OSError as error:
            _warn_of(path, error.strerror)


@cache  # one line, however often a subcommand reads the file
def _warn_of(path: str, why: str) -> None:
    messages.warn(f"the history {path} cannot be read: {why}", f"ls -ld {path}")


def _line_start(file: FileIO, at: int, end: int) -> int:
    """The start of the first line at or after an offset."""
    if not at:
        return 0
    at = file.seek(at - 1)
    while at < end and (data := file.read(_BLOCK)):
        found = data.find(b"\n")
        if found >= 0:
            return at + found + 1
        at += len(data)
    return end


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def _open(path: str, flags: int) -> "FileIO | None":
    """None: there is no such file. Raises OSError, also for anything but a regular file: a FIFO
    would block, a device might never end, and opening one may have effects."""
    try:
        _require_regular(os.stat(path))
    except FileNotFoundError:
        return None
    for name in ("O_NONBLOCK", "O_BINARY", "O_CLOEXEC"):  # as far as the system has them
        flags |= getattr(os, name, 0)
    file = FileIO(os.open(path, flags))
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
