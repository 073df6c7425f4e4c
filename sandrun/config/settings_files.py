"""Files of settings: reading one, and what those of a project may decide (see
`sandrun.config.settings`).

Imported only where there is one.
"""

import os
import sys

from sandrun.config.options import OPTIONS, did_you_mean
from sandrun.config.project import is_trusted_uid
from sandrun.config.values import Option
from sandrun.platform.small_files import has_table, read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


class File:
    """A file of settings: `table` as it was read, `mine` the user's own file; `foreign`: another
    user's, and then `unread` unless the user has trusted what is at its path."""

    __slots__ = ("_trusted", "is_foreign", "is_own", "is_unread", "owner", "path", "table")

    def __init__(self, path: str, owner: int = -1) -> None:
        self.path = path
        self.owner = owner
        self.is_own = owner == -1
        self.is_foreign = not self.is_own and not is_trusted_uid(owner)
        self.table: dict[str, object] = {}
        self.is_unread = False
        self._trusted: bool | None = None

    def is_trusted(self) -> bool:
        """Whether the user wrote it, or has said that it may decide everything."""
        if self._trusted is None:
            from sandrun.config import trust

            self._trusted = self.is_own or trust.is_trusted(self)
        return self._trusted

    def get(self, option: Option, complaints: "list[str]") -> object:
        """The value of an option; None: it has none."""
        key = self.key_of(option)
        if key:
            try:
                return option.convert(_as_text(self.table[key]))
            except ValueError as error:
                complaints.append(f"{self.path}: {key} is not {error}; ignored")
        return None

    def key_of(self, option: Option) -> str:
        """By which of its names the file sets an option; '' if it does not."""
        return next((key for key in option.names() if key in self.table), "")

    def texts(self) -> "dict[str, str]":
        """Its settings as one writes them, but for values that no setting has."""
        found = {}
        for key, value in self.table.items():
            try:
                found[key] = _as_text(value)
            except ValueError:
                continue
        return found


def value_of(
    option: Option,
    files: "list[File]",
    waiting: "dict[File, list[str]]",
    complaints: "list[str]",
) -> "tuple[object, str]":
    """The value that the files give, and which file; else the default (see the header)."""
    order = files if option.is_limit else sorted(files, key=lambda file: not file.is_own)
    given = [(v, file) for file in order if (v := file.get(option, complaints)) is not None]
    wish: File | None = None
    wished: object = None
    value, source = option.default, "default"
    for at, (found, file) in enumerate(given):
        at_once = option.is_limit and not file.is_own and not file.is_foreign
        # Whether it is trusted is not asked where nothing depends on it.
        if (not at_once or wish or at + 1 < len(given)) and file.is_trusted():
            value, source = found, file.path
            break
        if at_once and not wish:
            wish, wished = file, found
        elif not at_once:
            waiting.setdefault(file, []).append(file.key_of(option))
    if wish and (source == "default" or option.is_tighter(wished, value)):
        return wished, wish.path
    if wish and wished != value:
        waiting.setdefault(wish, []).append(wish.key_of(option))
    return value, source


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 1 << 63):
        return str(value)  # Python refuses to write an int of 5,000 digits
    raise ValueError("a single value")


def load(path: str, top: str, complaints: "list[str]", foreign: bool = False) -> "File | None":
    """The settings in a file of the project with the top `top`; None: it is not there, or has
    none."""
    try:
        file = File(path, os.lstat(path).st_uid)
        data = read_small(path, top)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        complaints.append(f"{path}: {error.strerror}; it sets nothing")
        return None
    if data is None or (path.endswith("pyproject.toml") and not has_table(data)):
        return None
    if file.is_foreign and not foreign:
        from sandrun.config import trust

        file.is_unread = not trust.is_known(path)
    if not file.is_unread:
        _fill(file, data, complaints)
    return file


def load_own(path: str, complaints: "list[str]") -> "File | None":
    """The user's own file; None: it is not there."""
    file = File(path)
    try:
        data = read_small(path)  # may be a link, as into a repository of dotfiles
    except OSError as error:
        complaints.append(f"{path}: {error.strerror}; it sets nothing")
        return None
    if data is None:
        return None
    _fill(file, data, complaints)
    return file


def _fill(file: File, data: bytes, complaints: "list[str]") -> None:
    """Read the settings; what is wrong with a file costs it one line."""
    text = data.decode("utf-8-sig", "replace")
    if not text.strip():
        return
    try:
        table = _parsed(text)
    except ValueError as error:
        complaints.append(f"{file.path}: {error}; the file is ignored")
        return
    if file.path.endswith("pyproject.toml"):
        tool = table.get("tool")
        ours = tool.get("sandrun") if isinstance(tool, dict) else None
        table = ours if isinstance(ours, dict) else {}
    keys = {key for option in OPTIONS if option.scope == "all" for key in option.names()}
    unknown = [key for key in table if key not in keys]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        if len(unknown) == 1 and (meant := did_you_mean(unknown[0], keys)):
            more = f" ({meant})"
        complaints.append(f"{file.path}: no such setting: {', '.join(unknown[:3])}{more}; ignored")
    file.table = {key: value for key, value in table.items() if key in keys}


_LONGEST = 1.0
"""Seconds of CPU time for one file: a megabyte of ordinary TOML takes a part of that."""


class _TooLong(Exception):
    """A file took more CPU time than any needs."""


def _parsed(text: str) -> "dict[str, object]":
    """The table of a TOML file. Raises ValueError, also for one that takes too long to read:
    tomllib's time grows with the square of the dots in a key."""
    import tomllib

    try:
        return tomllib.loads(text) if sys.platform == "win32" else _in_time(tomllib.loads, text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except _TooLong:
        raise ValueError("takes too long to read") from None
    except ValueError:  # int() refuses more than 4,300 digits
        raise ValueError("a number has too many digits") from None


def _in_time(read: "Callable[[str], dict[str, object]]", text: str) -> "dict[str, object]":
    from sandrun.bare import signal as _signal

    def end(signum: int, frame: object) -> None:
        raise _TooLong

    handler = _signal.signal(_signal.SIGVTALRM, end)
    mask = _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGVTALRM})
    before = _signal.setitimer(_signal.ITIMER_VIRTUAL, _LONGEST)
    try:
        return read(text)
    finally:
        _signal.setitimer(_signal.ITIMER_VIRTUAL, *before)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        _signal.signal(_signal.SIGVTALRM, handler)
