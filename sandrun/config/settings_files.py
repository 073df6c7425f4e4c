"""Settings files: reading one, and which of its values are in force.

`sandrun.config.settings` states the rules. Imported only where such a file exists.
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
    """A settings file; `table` contains its settings.

    `is_own`: it is the user's own file. `is_foreign`: another user owns it. `is_unread`: its
    settings were not read, because it is foreign and the user never trusted a file at its path.
    """

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
        """Whether it is the user's own file, or the user trusts it."""
        if self._trusted is None:
            from sandrun.config import trust

            self._trusted = self.is_own or trust.is_trusted(self)
        return self._trusted

    def get(self, option: Option, warnings: "list[str]") -> object:
        """The valid value of an option in the file; None: there is none."""
        key = self.key_of(option)
        if key:
            try:
                return option.convert(_as_text(self.table[key]))
            except ValueError as error:
                warnings.append(f"{self.path}: {key} is not {error}; ignored")
        return None

    def key_of(self, option: Option) -> str:
        """The key by which the file sets an option: its name or its alias; '' if it does not."""
        return next((key for key in option.names() if key in self.table), "")

    def texts(self) -> "dict[str, str]":
        """Its settings as text, without values of types that no setting has."""
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
    untrusted: "dict[File, list[str]]",
    warnings: "list[str]",
) -> "tuple[object, str]":
    """The value in force and the path of its file, or the default and `default`.

    Adds to `untrusted` the keys that are not in force because their file is not trusted.
    """
    order = files if option.is_limit else sorted(files, key=lambda file: not file.is_own)
    given = [(v, file) for file in order if (v := file.get(option, warnings)) is not None]
    limiting: File | None = None
    limit: object = None
    value, source = option.default, "default"
    for at, (found, file) in enumerate(given):
        needs_no_trust = option.is_limit and not file.is_own and not file.is_foreign
        # Trust is read only where the result depends on it.
        if (not needs_no_trust or limiting or at + 1 < len(given)) and file.is_trusted():
            value, source = found, file.path
            break
        if needs_no_trust and not limiting:
            limiting, limit = file, found
        elif not needs_no_trust:
            untrusted.setdefault(file, []).append(file.key_of(option))
    if limiting and (source == "default" or option.is_tighter(limit, value)):
        return limit, limiting.path
    if limiting and limit != value:
        untrusted.setdefault(limiting, []).append(limiting.key_of(option))
    return value, source


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 1 << 63):
        return str(value)  # Python refuses to convert an int of more than 4,300 digits
    raise ValueError("a single value")


def load(path: str, top: str, warnings: "list[str]", foreign: bool = False) -> "File | None":
    """A file of the project with the top level `top`; None: it does not exist, or has no settings.

    The settings in another user's file are read only if the user has trusted a file at its path, or
    if `foreign`.
    """
    try:
        file = File(path, os.lstat(path).st_uid)
        data = read_small(path, top)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        warnings.append(f"{path}: {error.strerror}; the file is ignored")
        return None
    if data is None or (path.endswith("pyproject.toml") and not has_table(data)):
        return None
    if file.is_foreign and not foreign:
        from sandrun.config import trust

        file.is_unread = not trust.is_known(path)
    if not file.is_unread:
        _fill(file, data, warnings)
    return file


def load_own(path: str, warnings: "list[str]") -> "File | None":
    """The user's own file; None: it does not exist."""
    file = File(path)
    try:
        data = read_small(path)  # a link is allowed, for example into a repository of dotfiles
    except OSError as error:
        warnings.append(f"{path}: {error.strerror}; the file is ignored")
        return None
    if data is None:
        return None
    _fill(file, data, warnings)
    return file


def _fill(file: File, data: bytes, warnings: "list[str]") -> None:
    """Parse the settings. Each kind of mistake in a file causes one warning."""
    text = data.decode("utf-8-sig", "replace")
    if not text.strip():
        return
    try:
        table = _parsed(text)
    except ValueError as error:
        warnings.append(f"{file.path}: {error}; the file is ignored")
        return
    if file.path.endswith("pyproject.toml"):
        tool = table.get("tool")
        own = tool.get("sandrun") if isinstance(tool, dict) else None
        table = own if isinstance(own, dict) else {}
    keys = {key for option in OPTIONS if option.scope == "all" for key in option.names()}
    unknown = [key for key in table if key not in keys]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        if len(unknown) == 1 and (meant := did_you_mean(unknown[0], keys)):
            more = f" ({meant})"
        warnings.append(f"{file.path}: no such setting: {', '.join(unknown[:3])}{more}; ignored")
    file.table = {key: value for key, value in table.items() if key in keys}


_CPU_SECONDS = 1.0
"""Seconds of CPU time that parsing one file may take; a megabyte of ordinary TOML takes less."""


class _TooLong(Exception):
    """Parsing a file took more CPU time than `_CPU_SECONDS`."""


def _parsed(text: str) -> "dict[str, object]":
    """The table of a TOML file. Raises ValueError, also for a file that takes too long to parse:
    tomllib's time grows with the square of the number of dots in a key."""
    import tomllib

    try:
        return (
            tomllib.loads(text) if sys.platform == "win32" else _parse_in_time(tomllib.loads, text)
        )
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except _TooLong:
        raise ValueError("takes too long to read") from None
    except ValueError:  # int() refuses more than 4,300 digits
        raise ValueError("a number has too many digits") from None


def _parse_in_time(read: "Callable[[str], dict[str, object]]", text: str) -> "dict[str, object]":
    from sandrun.bare import signal as _signal

    def end(signum: int, frame: object) -> None:
        raise _TooLong

    handler = _signal.signal(_signal.SIGVTALRM, end)
    mask = _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGVTALRM})
    before = _signal.setitimer(_signal.ITIMER_VIRTUAL, _CPU_SECONDS)
    try:
        return read(text)
    finally:
        _signal.setitimer(_signal.ITIMER_VIRTUAL, *before)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, mask)
        _signal.signal(_signal.SIGVTALRM, handler)
