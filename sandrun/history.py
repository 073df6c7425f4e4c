"""The records of past runs: one JSON line each, in the user's state folder.

Each record is one O_APPEND write, so that runs that end together never mix. A line that a power
cut or a full disk tore is closed by the next writer. The file is 0600: command lines can hold
secrets, and a record holds a bounded part of one.

A reader never fails a run and never reads more than a bounded end of the file: a line that is torn,
of another version or no record at all is skipped, and so is one with a field of another type.
"""

import errno
import os
import sys

from sandrun.platform.folders import create, make_folders, state_home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sandrun.types import Record

VERSION = 1

_COMMAND_CHARACTERS = 4096
"""How much of a command line a record holds: an argument list may have 2 MiB."""
_SEARCHED = 1 << 20
"""How many bytes at the end of the file are searched for a run: some 3,000 records."""


def bounded(command: "list[str]") -> "list[str]":
    """The part of a command line that a record holds; what is cut ends with an ellipsis."""
    left = _COMMAND_CHARACTERS
    words: list[str] = []
    for word in command:
        if len(word) >= left:
            return [*words, word[:left] + "…"]
        left -= len(word) + 1
        words.append(word)
    return words


def _quote(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'  # nearly always; spares an import
    try:  # the function that `json` itself uses, without the 8 ms of importing that
        from _json import encode_basestring_ascii as quote
    except ImportError:
        from json import dumps as quote
    return str(quote(text))


def encode(value: object) -> str:
    """`value` (dicts, lists, str, numbers, None) as JSON on one line."""
    if isinstance(value, str):
        return _quote(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quote(k)}: {encode(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(encode, value)) + "]"
    raise TypeError(type(value))


def path() -> str:
    """The user's file: `history.jsonl` in `folders.state_home`; '' for who has no home."""
    folder = state_home()
    return os.path.join(folder, "history.jsonl") if folder else ""


class Log:
    """The file that a record goes to, opened before there is one: the next run waits until the
    record of this one is written, but not for finding the file.

    The user's, or one in the directory `fallback`, if given, where that cannot be written. Raises
    OSError when neither can.
    """

    def __init__(self, fallback: str = "") -> None:
        try:
            self.fd = _open(path())
        except OSError:
            if not fallback:
                raise
            self.fd = _open(os.path.join(fallback, "history.jsonl"))

    def append(self, record: "Record") -> bool:
        """Append a record and close; False: the file was removed meanwhile. Raises OSError."""
        line = (encode({"v": VERSION, **record}) + "\n").encode()
        try:
            info = os.fstat(self.fd)
            torn = info.st_size > 0 and _byte(self.fd, info.st_size - 1) != b"\n"
            os.write(self.fd, b"\n" + line if torn else line)
            return info.st_nlink > 0
        finally:
            os.close(self.fd)


def _byte(fd: int, at: int) -> bytes:
    if sys.platform == "win32":  # the file's position is of no use to anybody: writes append
        os.lseek(fd, at, os.SEEK_SET)
        return os.read(fd, 1)
    return os.pread(fd, 1, at)


_FLAGS = os.O_RDWR | os.O_APPEND
for _name in ("O_CLOEXEC", "O_NONBLOCK"):  # where there is such a thing
    _FLAGS |= getattr(os, _name, 0)


def _open(file: str) -> int:
    try:
        return _open_there(file)
    except FileNotFoundError:
        make_folders(os.path.dirname(file), 0o700)
        try:
            if sys.platform != "win32":
                return create(file, _FLAGS, 0o600)
        except FileExistsError:
            pass  # somebody was faster
        return _open_there(file)


def _open_there(file: str) -> int:
    if sys.platform == "win32":
        from sandrun.platform import windows_files

        return windows_files.open_log(file)
    # Root may be at work with a user's HOME: by a link that user would choose where root writes.
    fd = os.open(file, _FLAGS | (0 if os.geteuid() else os.O_NOFOLLOW))
    if not _is_regular(fd):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", file)
    return fd


def _is_regular(fd: int) -> bool:
    return os.fstat(fd).st_mode & 0o170000 == 0o100000  # stat.S_ISREG, without the import


def append(record: "Record", fallback: str, log: "Log | None" = None) -> None:
    """Append a record to `log`, or to the file that `Log` would open. Raises OSError."""
    if log is None or not log.append(record):
        Log(fallback).append(record)


def recorded(run_id: str) -> bool:
    """Whether the history has a record of a run that ended lately.

    Lately: among the last MiB. A supervisor that is killed after its record and before it empties
    its line (see `sandrun.lifecycle.recovery`) leaves it there, unless thousands of runs ended
    meanwhile; then the run is recorded once more, as lost.
    """
    mark = run_id.encode()
    lines = (line for line in _last_lines(_SEARCHED) if mark in line)
    return any(record.get("id") == run_id for record in records(lines))


def _last_lines(size: int) -> "list[bytes]":
    """The lines in the last `size` bytes of the file, the newest first. The oldest may be torn.

    Nothing is read but a regular file: a FIFO or a device would never end.
    """
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):  # where there is such a thing
        flags |= getattr(os, name, 0)
    try:
        fd = os.open(path(), flags)
    except OSError:
        return []
    try:
        if not _is_regular(fd):
            return []
        end = os.lseek(fd, 0, os.SEEK_END)
        os.lseek(fd, max(0, end - size), os.SEEK_SET)
        return os.read(fd, size).split(b"\n")[::-1]
    except OSError:
        return []
    finally:
        os.close(fd)


class _Context:
    """What the C scanner of `json` asks for; using it as it is spares a waiter that import."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    array_hook = None  # Python 3.15
    parse_float = float
    parse_int = int
    parse_constant = float


def _scanner() -> "Callable[[str, int], tuple[object, int]]":
    try:
        from _json import make_scanner

        return make_scanner(_Context())  # type: ignore[arg-type]
    except (ImportError, AttributeError):  # a newer one wants more of its context
        from json import JSONDecoder

        return JSONDecoder().raw_decode


_TYPES: "dict[str, type | tuple[type, ...]]" = {
    **dict.fromkeys(("id", "project", "cwd", "backend", "reason"), str),
    **dict.fromkeys(("since", "wait", "wall", "cpu", "stalled"), (int, float)),
    **dict.fromkeys(("pid", "limit", "exit", "peak", "peak_with_cache"), int),
    "command": list,
}


def checked(fields: "Mapping[str, object]") -> "Record":
    """The record that `fields` hold, without those of another type than `Record` has."""
    record: Record = {  # type: ignore[assignment]  # the types are checked here
        key: fields[key] for key, kind in _TYPES.items() if isinstance(fields.get(key), kind)
    }
    if not all(isinstance(word, str) for word in record.get("command", [])):
        del record["command"]
    return record


def records(lines: "Iterable[bytes]") -> "Iterator[Record]":
    """The records in lines that `encode` made; other lines are skipped."""
    scan = _scanner()
    for line in lines:
        try:
            record, _ = scan(line.decode(), 0)
        except (ValueError, StopIteration, SystemError, RecursionError):
            continue  # SystemError: the C scanner finds its exception in json.decoder only
        if isinstance(record, dict) and record.get("v") == VERSION:
            yield checked(record)


_RECENT = 1 << 17  # bytes at the end of the file
_SAMPLES = 5
_LONGEST_RUN = 1e9  # seconds: 30 years


def durations(project: str, show: "Callable[[list[str]], str]") -> "dict[str, float]":
    """The median wall time of a project's recent runs in seconds, by their commands as `show`
    shows them. Only of those that ended by themselves.
    """
    walls: dict[str, list[float]] = {}
    for record in records(_last_lines(_RECENT)):
        if record.get("project") != project or record.get("reason") != "exit":
            continue
        command, wall = record.get("command"), record.get("wall", -1.0)
        if command is not None and 0 <= wall <= _LONGEST_RUN:
            seen = walls.setdefault(show(command), [])
            if len(seen) < _SAMPLES:
                seen.append(wall)
    return {command: sorted(seen)[len(seen) // 2] for command, seen in walls.items()}
