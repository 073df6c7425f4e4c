"""What holds for this run, and where each value came from.

Precedence: flag, SANDRUN_* variable, the plain variable, files, default. A wrong flag is an error
(the user is looking); a wrong value anywhere else gets one line and the next source down, because
a variable set for something else must not stop a build.

Files: those of the project, `sandrun.toml` or else `[tool.sandrun]` in pyproject.toml, in each
directory from where the run starts up to the project's top, the nearest first; then the user's own.
Invariant: what the user set is never loosened by a file that came with the project. So before the
user has said `sandrun trust` (`sandrun.trust`), of a project's file only limits count, and of those
none that is looser than what the user's file or a trusted one says; of a file that is another
user's, nothing. For all that is no limit the user's own file comes first (`options.Option.limit`).
"""

import os
import sys

from sandrun import messages
from sandrun.model import Limits
from sandrun.options import OPTIONS, Option, nearest
from sandrun.project import home, speaks_for_us
from sandrun.small_files import read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class File:
    """A file of settings: `table` as it was read, `mine` the user's own file; `foreign`: another
    user's, and then `unread` unless the user has trusted what is at its path."""

    __slots__ = ("_trusted", "foreign", "mine", "owner", "path", "table", "unread")

    def __init__(self, path: str, owner: int = -1) -> None:
        self.path = path
        self.owner = owner
        self.mine = owner == -1
        self.foreign = not self.mine and not speaks_for_us(owner)
        self.table: dict[str, object] = {}
        self.unread = False
        self._trusted: bool | None = None

    def is_trusted(self) -> bool:
        """Whether the user wrote it, or has said that it may decide everything."""
        if self._trusted is None:
            from sandrun import trust

            self._trusted = self.mine or trust.is_trusted(self)
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


class Settings:
    """The values by key (see `options.OPTIONS`), and `source[key]`: where each came from.

    `files` are the project's; `waiting` those of them that the user has not trusted, each with the
    keys that are not in force because of that.
    """

    memory: int
    timeout: float
    cpu_time: float
    idle_timeout: float
    grace: float
    kill_signal: int
    detach: int
    check_interval: float
    backend: str
    require: str
    swap: int
    pids: int
    cpus: float
    cpu_weight: int
    io_read_bps: int
    io_write_bps: int
    io_read_iops: int
    io_write_iops: int
    io_weight: int
    leftovers: str
    priority: int
    slots: int
    pool: str
    no_wait: int
    wait_timeout: float
    git_wait: float
    clean_git_env: int
    project: str
    queue: str
    color: str
    verbose: int
    quiet: int

    def __init__(self) -> None:
        self.source: dict[str, str] = {}
        self.files: list[File] = []
        self.waiting: dict[File, list[str]] = {}

    def is_the_users(self, key: str) -> bool:
        """Whether the user chose the value: set it, or trusts the file that does."""
        source = self.source[key]
        return source != "default" and all(
            file.is_trusted() for file in self.files if file.path == source
        )


def resolve(flags: "Mapping[str, object]", project_root: str, start: str = "") -> Settings:
    """Settle every option for a run that starts in `start` (default: the project's top).

    Reads the project's files and the user's where they exist.
    """
    settings = Settings()
    complaints: list[str] = []
    settings.files = project_files(project_root, start, complaints)
    settings.waiting = {file: [] for file in settings.files if file.unread}
    files = [*settings.files, *_user_file(complaints)]
    for option in OPTIONS:
        value, source = _value(option, flags, complaints) or _of_files(
            option, files, settings.waiting, complaints
        )
        setattr(settings, option.key, value)
        settings.source[option.key] = source
    messages.setup(settings.verbose, settings.quiet, settings.color)
    for complaint in complaints:
        messages.warn(complaint)
    return settings


_IO_KEYS = {
    "io_read_bps": "rbps",
    "io_write_bps": "wbps",
    "io_read_iops": "riops",
    "io_write_iops": "wiops",
}


def limits(settings: Settings, directory: str) -> Limits:
    """The limits that the settings ask for; io limits are for the disk under `directory`."""
    wanted = Limits(settings.memory, settings.check_interval)
    for key in ("swap", "pids", "cpus", "cpu_weight", "io_weight"):
        setattr(wanted, key, getattr(settings, key))
    wanted.io = {
        name: getattr(settings, key) for key, name in _IO_KEYS.items() if getattr(settings, key) > 0
    }
    if settings.cpu_time:
        wanted.cpu_time = settings.cpu_time + settings.grace * (os.cpu_count() or 1)
    wanted.directory = directory
    # A `none` speaks of all limits that stand further off than it does; as a variable it is for
    # an environment in which nothing is to be limited, whatever the command lines there ask for.
    least = _rank(settings, "backend") if settings.backend == "none" else 1
    least = 5 if settings.backend == "none" and least == 3 else least
    wanted.asked = frozenset(key for key in settings.source if _rank(settings, key) >= least)
    return wanted


def _rank(settings: Settings, key: str) -> int:
    """How near to the command line a value was given: default 0, project's file 1, user's file 2,
    variable 3, flag 4."""
    source = settings.source[key]
    if source == "default":
        return 0
    if os.path.isabs(source):
        return 1 if any(file.path == source for file in settings.files) else 2
    return 4 if source[:1] == "-" else 3


def _value(
    option: Option, flags: "Mapping[str, object]", complaints: "list[str]"
) -> "tuple[object, str] | None":
    """What the user says for this very run, by flag or variable, and by which."""
    if option.key in flags:
        return flags[option.key], option.flags[-1]
    if option.scope == "flag":
        return option.default, "default"
    for name in (*("SANDRUN_" + key.upper() for key in option.names()), option.variable):
        text = os.environ.get(name) if name else None
        if text:
            try:
                return option.convert(text), name
            except ValueError as error:
                complaints.append(f"{name}={text!r} is not {error}; ignored")
    return None


def _of_files(
    option: Option,
    files: "list[File]",
    waiting: "dict[File, list[str]]",
    complaints: "list[str]",
) -> "tuple[object, str]":
    """The value that the files give, and which file; else the default (see the header)."""
    order = files if option.limit else sorted(files, key=lambda file: not file.mine)
    given = [(v, file) for file in order if (v := file.get(option, complaints)) is not None]
    wish: File | None = None
    wished: object = None
    value, source = option.default, "default"
    for at, (found, file) in enumerate(given):
        at_once = option.limit and not file.mine and not file.foreign
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


def project_files(
    root: str, start: str, complaints: "list[str]", foreign: bool = False
) -> "list[File]":
    """The project's files for a run that starts in `start`, the nearest first; `foreign`: another
    user's are read too."""
    here = os.path.realpath(start) if start else root
    if not here.startswith(root.rstrip(os.sep) + os.sep):
        here = root
    files: list[File] = []
    while True:
        for name in ("sandrun.toml", "pyproject.toml"):
            file = load(os.path.join(here, name), root, complaints, foreign)
            if file:
                files.append(file)
                break
        if here == root:
            return files
        here = os.path.dirname(here)


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
    # Looking for the table before parsing spares the import of tomllib to most projects.
    if data is None or (path.endswith("pyproject.toml") and b"[tool.sandrun]" not in data):
        return None
    if file.foreign and not foreign:
        from sandrun import trust

        file.unread = not trust.is_known(path)
    if not file.unread:
        _fill(file, data, complaints)
    return file


def _user_file(complaints: "list[str]") -> "list[File]":
    config = os.environ.get("XDG_CONFIG_HOME") or ""
    if not os.path.isabs(config):
        if sys.platform == "win32":
            from sandrun import windows

            config = windows.roaming_folder()
        elif home():
            config = os.path.join(home(), ".config")
        else:
            return []
    file = File(os.path.join(config, "sandrun", "config.toml"))
    try:
        data = read_small(file.path)  # may be a link, as into a repository of dotfiles
    except OSError as error:
        complaints.append(f"{file.path}: {error.strerror}; it sets nothing")
        return []
    if data is None:
        return []
    _fill(file, data, complaints)
    return [file]


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
        if len(unknown) == 1 and (meant := nearest(unknown[0], keys)):
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
    import _signal

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
