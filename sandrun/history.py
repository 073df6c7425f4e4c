"""The records of past runs: one JSON line each, in the user's state folder.

Each record is one O_APPEND write, so that runs that end together never mix. A line that a power
cut or a full disk tore is closed by the next writer and passed over by readers. The file is 0600:
command lines can hold secrets.
"""

import os
import sys

from sandrun.project import home

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

VERSION = 1


def _quote(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'  # nearly always; spares an import
    # The function that `json` itself uses, without the 8 ms of importing that.
    from _json import encode_basestring_ascii

    return encode_basestring_ascii(text)


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
    """`$XDG_STATE_HOME/sandrun/history.jsonl`, by default below ~/.local/state, on Windows below
    %LOCALAPPDATA%; '' for who has no home."""
    state = os.environ.get("XDG_STATE_HOME") or ""
    if not os.path.isabs(state):  # the XDG base directory specification: ignore relative ones
        if sys.platform == "win32":
            from sandrun import windows

            return os.path.join(windows.local_folder(), "sandrun", "history.jsonl")
        if not home():
            return ""
        state = os.path.join(home(), ".local", "state")
    return os.path.join(state, "sandrun", "history.jsonl")


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

    def append(self, record: "dict[str, object]") -> bool:
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


def _open(file: str) -> int:
    try:
        return _open_there(file)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(file), 0o700, exist_ok=True)
        return _open_there(file)


def _open_there(file: str) -> int:
    if sys.platform == "win32":
        from sandrun.windows import files

        return files.open_log(file)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    return os.open(file, flags, 0o600)


def append(record: "dict[str, object]", fallback: str, log: "Log | None" = None) -> None:
    """Append a record to `log`, or to the file that `Log` would open. Raises OSError."""
    if log is None or not log.append(record):
        Log(fallback).append(record)


def read() -> "Iterator[dict[str, object]]":
    """The records, oldest first; lines that are torn or not ours are passed over."""
    try:
        with open(path(), "rb") as file:
            yield from _records(file)
    except OSError:
        return


class _Context:
    """What the C scanner of `json` asks for; using it as it is spares a waiter that import."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float


def _records(lines: "Iterable[bytes]") -> "Iterator[dict[str, object]]":
    scan: Callable[[str, int], tuple[object, int]]
    try:
        import _json

        scan = _json.make_scanner(_Context())  # type: ignore[arg-type]
    except ImportError:
        import json

        scan = json.JSONDecoder().raw_decode
    for line in lines:
        try:
            record, _ = scan(line.decode(), 0)
        except (ValueError, StopIteration, SystemError):
            continue  # SystemError: the C scanner finds its exception in json.decoder only
        if isinstance(record, dict) and record.get("v") == VERSION:
            yield record


_RECENT = 1 << 17  # bytes at the end of the file
_SAMPLES = 5


def durations(project: str, show: "Callable[[list[str]], str]") -> "dict[str, float]":
    """The median wall time of a project's recent runs, by their commands as `show` shows them.

    Only of those that ended by themselves.
    """
    try:
        with open(path(), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _RECENT))
            lines = file.read().split(b"\n")
    except OSError:
        return {}
    walls: dict[str, list[float]] = {}
    for record in _records(reversed(lines)):
        command, wall = record.get("command"), record.get("wall")
        if record.get("project") == project and record.get("reason") == "exit":
            assert isinstance(command, list) and isinstance(wall, float)
            seen = walls.setdefault(show(command), [])
            if len(seen) < _SAMPLES:
                seen.append(wall)
    return {command: sorted(seen)[len(seen) // 2] for command, seen in walls.items()}
