"""What holds for this run, and where each value came from.

Precedence: flag, SANDRUN_* variable, the plain variable, project file (`sandrun.toml`, or
`[tool.sandrun]` in pyproject.toml), user file, default. A wrong flag is an error (the user is
looking); a wrong value anywhere else gets one line and the next source down, because a variable
set for something else must not stop a build.
"""

import os
import sys

from sandrun import messages
from sandrun.model import Limits
from sandrun.options import OPTIONS, Option
from sandrun.project import home, is_trusted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Settings:
    """The values by key (see `options.OPTIONS`), and `source[key]`: where each came from."""

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


def resolve(flags: "Mapping[str, object]", project_root: str) -> Settings:
    """Settle every option. Reads the project's and the user's file where they exist."""
    settings = Settings()
    files = [*_project_file(project_root), *_user_file()]
    complaints: list[str] = []
    for option in OPTIONS:
        value, source = _value(option, flags, files, complaints)
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
    wanted.asked = frozenset(k for k, source in settings.source.items() if source != "default")
    return wanted


def _value(
    option: Option,
    flags: "Mapping[str, object]",
    files: "list[tuple[str, dict[str, object]]]",
    complaints: "list[str]",
) -> "tuple[object, str]":
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
    for path, table in files:
        for key in option.names():
            if key in table:
                try:
                    return option.convert(_as_text(table[key])), path
                except ValueError as error:
                    complaints.append(f"{path}: {key} is not {error}; ignored")
    return option.default, "default"


def _as_text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError("a single value")


def _project_file(root: str) -> "list[tuple[str, dict[str, object]]]":
    path = os.path.join(root, "sandrun.toml")
    text = _read(path)
    if text is not None and is_trusted(root, "sandrun.toml"):
        return [(path, _table(path, text))]
    path = os.path.join(root, "pyproject.toml")
    text = _read(path)
    # Looking for the table before parsing spares the import of tomllib to most projects.
    if text and "[tool.sandrun]" in text and is_trusted(root, "pyproject.toml"):
        tool = _table(path, text).get("tool")
        table = tool.get("sandrun") if isinstance(tool, dict) else None
        if isinstance(table, dict):
            return [(path, _known(path, table))]
    return []


def _user_file() -> "list[tuple[str, dict[str, object]]]":
    config = os.environ.get("XDG_CONFIG_HOME") or ""
    if not os.path.isabs(config):
        if sys.platform == "win32":
            from sandrun import windows

            config = windows.roaming_folder()
        elif home():
            config = os.path.join(home(), ".config")
        else:
            return []
    path = os.path.join(config, "sandrun", "config.toml")
    text = _read(path)
    return [] if text is None else [(path, _table(path, text))]


_FLAGS = os.O_RDONLY
for _name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):  # where there is such a thing
    _FLAGS |= getattr(os, _name, 0)


def _read(path: str) -> "str | None":
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts).decode("utf-8", "replace")
    except OSError:
        return None
    finally:
        os.close(fd)


def _table(path: str, text: str) -> "dict[str, object]":
    if not text.strip():
        return {}
    import tomllib

    try:
        table: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        messages.warn(f"{path}: {error}; the file is ignored")
        return {}
    return table if path.endswith("pyproject.toml") else _known(path, table)


def _known(path: str, table: "dict[str, object]") -> "dict[str, object]":
    keys = {key for option in OPTIONS if option.scope == "all" for key in option.names()}
    for key in table:
        if key not in keys:
            messages.warn(f"{path}: no such setting: {key}; ignored")
    return table
