"""The effective settings of a run, and the source of each value.

Precedence: flag, SANDRUN_* variable, plain variable, files, default. An invalid flag is an error:
the user sees it at once. An invalid value elsewhere is reported in one line and the next source is
used, because a variable that was set for another purpose must not stop a build.

Files, in this order: those of the project (`sandrun.toml`, else `[tool.sandrun]` in pyproject.toml)
from the directory where the run starts up to the project's top; then the user's own.

Invariant: a file of the project never loosens what the user set. Without `sandrun trust`
(`sandrun.config.trust`)
- only the limits in a project's file count, and none that is looser than in the user's own file or
  in a trusted one;
- nothing in another user's file counts.
For options that are not limits, the user's own file comes first (`values.Option.is_limit`).
"""

import os

from sandrun import messages
from sandrun.config.options import OPTIONS
from sandrun.model import Limits
from sandrun.platform import folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Literal

    from sandrun.config.settings_files import File
    from sandrun.config.values import Option
    from sandrun.types import BackendName, Leftovers


_IO_KEYS = {
    "io_read_bps": "rbps",
    "io_write_bps": "wbps",
    "io_read_iops": "riops",
    "io_write_iops": "wiops",
}


class Settings:
    """The value of each key of `options.OPTIONS`, and its source in `source[key]`. Immutable.

    `files` are the project's files. `untrusted` contains those that the user has not trusted, each
    with the keys that are not in force for that reason.
    """

    source: "Mapping[str, str]"
    files: "Sequence[File]"
    untrusted: "Mapping[File, list[str]]"

    memory: int
    timeout: float
    cpu_time: float
    idle_timeout: float
    grace: float
    kill_signal: int
    detach: int
    check_interval: float
    backend: "BackendName"
    require: "Literal['any', 'kernel']"
    swap: int
    pids: int
    cpus: float
    cpu_weight: int
    io_read_bps: int
    io_write_bps: int
    io_read_iops: int
    io_write_iops: int
    io_weight: int
    leftovers: "Leftovers"
    daemons: "Literal['contain', 'leave']"
    private_tmp: int
    private_ipc: int
    priority: int
    slots: int
    pool: str
    no_wait: int
    wait_timeout: float
    git_wait: float
    clean_git_env: int
    project: str
    queue: str
    history_age: float
    history_size: int
    json_report: str
    metrics_textfile: str
    color: "Literal['auto', 'always', 'never']"
    verbose: int
    quiet: int

    def __init__(self, values: "Mapping[str, object]") -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"settings are immutable: {name}")

    def with_limits(self, memory: int, swap: int) -> "Settings":
        """These settings with other limits on memory and swap, in bytes."""
        return Settings({**self.__dict__, "memory": memory, "swap": swap})

    def is_user_choice(self, key: str) -> bool:
        """Whether the user set the value, or trusts the file that sets it."""
        source = self.source[key]
        return source != "default" and all(
            file.is_trusted() for file in self.files if file.path == source
        )

    def limits(self, directory: str) -> Limits:
        """The limits of these settings; io limits apply to the disk under `directory`."""
        wanted = Limits(self.memory, self.check_interval)
        for key in ("swap", "pids", "cpus", "cpu_weight", "io_weight"):
            setattr(wanted, key, getattr(self, key))
        wanted.io = {
            name: getattr(self, key) for key, name in _IO_KEYS.items() if getattr(self, key) > 0
        }
        if self.cpu_time:
            wanted.cpu_time = self.cpu_time + self.grace * (os.cpu_count() or 1)
        wanted.directory = directory
        wanted.detached = bool(self.detach)
        # The backend `none` cancels all limits that were set less directly than itself. As a
        # variable it describes an environment that cannot enforce any, so it cancels flags, too.
        least = self._rank("backend") if self.backend == "none" else 1
        least = 5 if self.backend == "none" and least == 3 else least
        wanted.set_by_user = frozenset(key for key in self.source if self._rank(key) >= least)
        return wanted

    def _rank(self, key: str) -> int:
        """How directly a value was set: default 0, project's file 1, user's file 2, variable 3,
        flag 4."""
        source = self.source[key]
        if source == "default":
            return 0
        if os.path.isabs(source):
            return 1 if any(file.path == source for file in self.files) else 2
        return 4 if source[:1] == "-" else 3


def resolve(flags: "Mapping[str, object]", project_root: str, start: str = "") -> Settings:
    """The settings of a run that starts in `start` (default: the project's top).

    Reads the project's files and the user's own, and warns of mistakes in them.
    """
    warnings: list[str] = []
    values: dict[str, object] = {}
    sources: dict[str, str] = {}
    of_project = project_files(project_root, start, warnings)
    untrusted: dict[File, list[str]] = {file: [] for file in of_project if file.is_unread}
    files = [*of_project, *_own_file(warnings)]
    if files:
        from sandrun.config.settings_files import value_of
    for option in OPTIONS:
        value, source = _set_for_run(option, flags, warnings) or (option.default, "default")
        if files and source == "default" and option.scope != "flag":
            value, source = value_of(option, files, untrusted, warnings)
        values[option.key] = value
        sources[option.key] = source
    settings = Settings({**values, "source": sources, "files": of_project, "untrusted": untrusted})
    messages.setup(settings.verbose, settings.quiet, settings.color)
    for warning in warnings:
        messages.warn(warning)
    return settings


def _set_for_run(
    option: "Option", flags: "Mapping[str, object]", warnings: "list[str]"
) -> "tuple[object, str] | None":
    """The value that a flag or a variable sets for this run, and its name; None: none does."""
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
                warnings.append(f"{name}={text!r} is not {error}; ignored")
    return None


def project_files(root: str, start: str, warnings: "list[str]") -> "list[File]":
    """The project's files for a run that starts in `start`, the nearest to it first."""
    here = os.path.realpath(start) if start else root
    if not here.startswith(root.rstrip(os.sep) + os.sep):
        here = root
    files: list[File] = []
    while True:
        for name in ("sandrun.toml", "pyproject.toml"):
            path = os.path.join(here, name)
            if _may_exist(path):
                from sandrun.config import settings_files

                file = settings_files.load(path, root, warnings)
                if file:
                    files.append(file)
                    break
        if here == root:
            return files
        here = os.path.dirname(here)


def _may_exist(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass  # reading it reports the error
    return True


def _own_file(warnings: "list[str]") -> "list[File]":
    config = folders.config_home()
    if not config:
        return []
    path = os.path.join(config, "sandrun", "config.toml")
    if not _may_exist(path):
        return []
    from sandrun.config import settings_files

    file = settings_files.load_own(path, warnings)
    return [file] if file else []
