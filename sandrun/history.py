"""The records of past runs: one line of JSON each, in the user's state directory.

Each record is one write with O_APPEND, so the records of runs that end at the same time never mix.
After a line that a power cut or a full disk has torn, the next writer begins a new line. The file
has mode 0600, because command lines can contain secrets; a record holds only a part of a long one.

`sandrun history prune` replaces the file. A writer holds a shared lock (flock(2)) from checking
that its file still has a name until it has written. Prune holds an exclusive lock from copying the
last records until the new file has the name. So each record is in the new file exactly once.

Readers never fail a run and read only a bounded part at the end of the file. They skip a line that
is torn, has another version or is not a record, and they leave out fields of the wrong type.
"""

import errno
import os
import sys
import time

from sandrun.platform.folders import create, make_folders, state_home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from sandrun.types import Record

VERSION = 1

_COMMAND_CHARACTERS = 4096
"""Characters of a command line that a record holds; an argument list may have 2 MiB."""
_SEARCHED = 1 << 20
"""Bytes at the end of the file that are searched for a run: about 3,000 records."""


def bounded(command: "list[str]") -> "list[str]":
    """The part of a command line that a record holds. An ellipsis marks a cut."""
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
        return f'"{text}"'  # nearly every text; this saves an import
    try:  # the function that `json` uses, without the 8 ms that importing `json` takes
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
    """The user's file: `history.jsonl` in `folders.state_home`; '' without a home directory."""
    folder = state_home()
    return os.path.join(folder, "history.jsonl") if folder else ""


class Log:
    """The open file for a record. It is opened before the run waits: the next run starts after the
    record is written, and should not wait for the opening as well.

    It is the user's file. If that cannot be opened, or with `only_fallback`, it is a file in the
    directory `fallback`. Raises OSError when neither can be opened.
    """

    def __init__(self, fallback: str = "", only_fallback: bool = False) -> None:
        try:
            self.fd = -1 if only_fallback else _open(path())
        except OSError:
            if not fallback:
                raise
            only_fallback = True
        if only_fallback:
            self.fd = _open(os.path.join(fallback, "history.jsonl"))

    def append(self, record: "Record", anyway: bool = False) -> bool:
        """Append a record and close the file. False: the file has been removed or replaced, and
        nothing was written (unless `anyway`). Raises OSError."""
        line = (encode({"v": VERSION, **record}) + "\n").encode()
        try:
            _lock(self.fd)
            info = os.fstat(self.fd)
            if info.st_nlink == 0 and not anyway:
                return False
            torn = info.st_size > 0 and _byte(self.fd, info.st_size - 1) != b"\n"
            os.write(self.fd, b"\n" + line if torn else line)
            return True
        finally:
            _unlock(self.fd)
            os.close(self.fd)


if sys.platform == "win32":

    def _lock(fd: int) -> None:
        pass  # a file that is open cannot be replaced

    def _unlock(fd: int) -> None:
        pass

else:
    import fcntl

    def _lock(fd: int) -> None:
        """Exclude `sandrun history prune`, which holds the lock exclusively only while it replaces
        the file. Raises BlockingIOError after a second: then the prune is probably stopped."""
        for left in range(100, -1, -1):
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not left:
                    raise
                time.sleep(0.01)
            except OSError:
                return  # a file system without locks

    def _unlock(fd: int) -> None:
        # Closing is not enough: the keeper has a copy of the descriptor.
        try:
            fcntl.flock(fd, fcntl.LOCK_UN)
        except OSError:
            pass


def _byte(fd: int, at: int) -> bytes:
    if sys.platform == "win32":  # moving the file position is harmless: writes append
        os.lseek(fd, at, os.SEEK_SET)
        return os.read(fd, 1)
    return os.pread(fd, 1, at)


_FLAGS = os.O_RDWR | os.O_APPEND
for _name in ("O_CLOEXEC", "O_NONBLOCK"):  # as far as the system has them
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
            pass  # another run has just made it
        return _open_there(file)


def _open_there(file: str) -> int:
    if sys.platform == "win32":
        from sandrun.platform import windows_files

        return windows_files.open_log(file)
    # Root may run with a user's HOME. That user must not choose, by a link, where root writes.
    fd = os.open(file, _FLAGS | (0 if os.geteuid() else os.O_NOFOLLOW))
    if not _is_regular(fd):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", file)
    return fd


def _is_regular(fd: int) -> bool:
    return os.fstat(fd).st_mode & 0o170000 == 0o100000  # stat.S_ISREG, without the import


def append(record: "Record", fallback: str, log: "Log | None" = None) -> None:
    """Append a record to `log`, if that file still has its name, else to the file that `Log` opens.
    Raises OSError."""
    try:
        if not (log and log.append(record)) and not Log(fallback).append(record):
            Log(fallback).append(record, anyway=True)
    except BlockingIOError:
        if not fallback:
            raise
        Log(fallback, only_fallback=True).append(record, anyway=True)


def recorded(run_id: str) -> bool:
    """Whether the last MiB of the history has a record of the run.

    A supervisor may be killed between writing its record and emptying the run lock's file
    (`sandrun.lifecycle.recovery`). Its record is found here, unless thousands of runs have ended
    since; then the run is recorded a second time, as lost.
    """
    mark = run_id.encode()
    lines = (line for line in last_lines(_SEARCHED) if mark in line)
    return any(record.get("id") == run_id for record in records(lines))


def last_lines(size: int) -> "list[bytes]":
    """The lines in the last `size` bytes of the file, newest first. The oldest may be incomplete.

    Only a regular file is read: a FIFO or a device might never end.
    """
    flags = os.O_RDONLY
    for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):  # as far as the system has them
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
    """The settings that the C scanner of `json` reads. Without the rest of `json`, a waiter saves
    that import."""

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
    except (ImportError, AttributeError):  # a newer scanner reads more settings
        from json import JSONDecoder

        return JSONDecoder().raw_decode


_TYPES: "dict[str, type | tuple[type, ...]]" = {
    **dict.fromkeys(("id", "project", "cwd", "backend", "reason"), str),
    **dict.fromkeys(("since", "wait", "wall", "cpu", "stalled"), (int, float)),
    **dict.fromkeys(("pid", "limit", "exit", "peak", "peak_with_cache", "processes"), int),
    **dict.fromkeys(("command", "waited_for"), list),
}


def checked(fields: "Mapping[str, object]") -> "Record":
    """The record that `fields` contain, without fields whose type is not that in `Record`."""
    record: Record = {  # type: ignore[assignment]  # the types are checked here
        key: fields[key] for key, kind in _TYPES.items() if isinstance(fields.get(key), kind)
    }
    if not all(isinstance(word, str) for word in record.get("command", [])):
        del record["command"]
    if not all(map(is_holder, record.get("waited_for", []))):
        del record["waited_for"]
    return record


def is_holder(run: object) -> bool:
    """Whether `run` is a `types.WaitedFor`."""
    kinds = (("id", str), ("command", str), ("seconds", (int, float)))
    return isinstance(run, dict) and all(isinstance(run.get(key), kind) for key, kind in kinds)


def decoder() -> "Callable[[bytes], Record | None]":
    """A function that returns the record in a line that `encode` wrote; None for other lines."""
    scan = _scanner()

    def decode(line: bytes) -> "Record | None":
        try:
            record, _ = scan(line.decode(), 0)
        except (ValueError, StopIteration, SystemError, RecursionError):
            return None  # SystemError: the C scanner needs json.decoder for its exception
        is_record = isinstance(record, dict) and record.get("v") == VERSION
        return checked(record) if is_record else None  # type: ignore[arg-type]

    return decode


def records(lines: "Iterable[bytes]") -> "Iterator[Record]":
    """The records in lines that `encode` wrote; other lines are skipped."""
    decode = decoder()
    for line in lines:
        record = decode(line)
        if record is not None:
            yield record


_RECENT = 1 << 17  # bytes at the end of the file
_SAMPLES = 5
_LONGEST_RUN = 1e9  # seconds: 30 years


def durations(project: str, show: "Callable[[list[str]], str]") -> "dict[str, float]":
    """The median wall time in seconds of a project's recent runs, for each command as `show`
    formats it. Only runs whose command exited by itself count."""
    walls: dict[str, list[float]] = {}
    mark = _quote(project).encode()  # decoding costs ten times as much as searching
    for record in records(line for line in last_lines(_RECENT) if mark in line):
        if record.get("project") != project or record.get("reason") != "exit":
            continue
        command, wall = record.get("command"), record.get("wall", -1.0)
        if command is not None and 0 <= wall <= _LONGEST_RUN:
            seen = walls.setdefault(show(command), [])
            if len(seen) < _SAMPLES:
                seen.append(wall)
    return {command: sorted(seen)[len(seen) // 2] for command, seen in walls.items()}
