"""Our own modules that are imported late or never, held open so that they can still be imported.

A run may last for hours, and the package may go away in the meantime: an upgrade replaces it, or
somebody, perhaps the command itself, recreates the virtual environment. Importing all of them at
the start would cost every run 1.6 ms. A descriptor of each file costs a twentieth of that, and an
unlinked file can be read as long as it is open.

Promise: after `hold`, the modules that it names come from the version that is running. They are
read from the open files, because Python could lose a file between finding and opening it. Only a
compiled file that was stale from the start is left to Python. A second finder follows Python's own,
in case the package vanishes while they search. A waiter holds more modules open, because the run
ahead of it may replace sandrun's own package.
"""

import marshal
import os
import sys

from sandrun import importer
from sandrun.model import DARWIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

LATE = (
    "backends/escapes",
    "git/classify", "git/fsmonitor", "git/git_processes", "git/lock_files", "git/lock_paths",
    "git/other_tools", "git/repository", "git/stale",
    "lifecycle/recovery",
    "platform/linux_processes", "platform/linux_syscalls", "platform/posix_terminal",
    "platform/processes", "platform/small_files",
    "queue/holder", "queue/unused_states",
    "supervise/command_lookup", "supervise/daemons", "supervise/leftovers", "supervise/outside",
    "supervise/recorder", "supervise/report", "supervise/sample_files", "supervise/shared_memory",
    "supervise/termination", "supervise/timeouts", "supervise/witness",
)  # fmt: skip
"""Modules that the supervisor and its keepers import after the command has started."""
WAITING = (
    "backends/cgroup1", "backends/cgroup1_blkio", "backends/cgroup2",
    "backends/cgroup2_placement", "backends/cgroup_common", "backends/cgroup_files",
    "backends/memory_monitor", "backends/none", "backends/rlimit", "backends/run_group",
    "backends/sampler", "backends/systemd", "backends/systemd_slice", "backends/systemd_units",
    "config/settings_files", "config/trust",
    "git/included", "git/inotify", "git/record_locks", "git/waiter",
    "platform/memory", "platform/user_ids",
    "queue/memory_pool", "queue/taken_names",
    "supervise/keeper", "supervise/posix_keeper",
)  # fmt: skip
"""Modules that a run imports between its turn and the command's start."""
REPORTING = (
    "cli/extras", "cli/run_end", "errors",
    "insight/event_text", "insight/json_report", "insight/metrics", "insight/output",
    "insight/plots", "insight/post_mortem", "insight/records", "insight/run_log",
    "insight/run_text", "insight/samples", "insight/suggest", "insight/totals",
    "insight/wording", "integrations/ci", "lifecycle/status", "platform/memory",
    "queue/memory_pool", "queue/taken_names", "types",
)  # fmt: skip
"""Modules that are imported after the run if its end is reported to a file or a CI service."""
_PACKAGES = ("sandrun", "cgroupspy")
_MANY = 256
"""Below this limit on descriptors, no files of modules are opened for another process."""
_ENOUGH = 64
"""Below this limit on descriptors (getrlimit(2), RLIMIT_NOFILE) no module is held open."""
_held: "dict[str, tuple[int, str]]" = {}
"""The descriptor and the path of each module's file."""


def hold(names: "tuple[str, ...]" = LATE) -> None:
    """Open these modules' files. One that cannot be opened (in a zip file) is imported as usual."""
    # On Windows an open file cannot be replaced, so an upgrade would fail.
    if sys.platform == "win32" or os.sysconf("SC_OPEN_MAX") < _ENOUGH:
        return
    top = os.path.dirname(os.path.dirname(__file__))
    for name in names:
        module = "sandrun." + name.replace("/", ".")
        if module in sys.modules or module in _held:
            continue
        folder, _, stem = f"{top}/{name}".rpartition("/")
        cached = f"{folder}/__pycache__/{stem}.{sys.implementation.cache_tag}.pyc"
        for path in (cached, f"{folder}/{stem}.py"):
            try:
                _held[module] = os.open(path, os.O_RDONLY | os.O_CLOEXEC), path
                break
            except OSError:
                continue
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
        sys.meta_path.append(_last_finder)


_ELSEWHERE = """import marshal, os, sys
magic = sys.modules["_frozen_importlib_external"].MAGIC_NUMBER
class Finder:
    def find_spec(self, name, *_):
        if name in files:
            path, package, fd = files[name]
            spec = type(sys.__spec__)(name, self, origin=path, is_package=package)
            spec.has_location = True
            if package:
                spec.submodule_search_locations = [os.path.dirname(path)]
            return spec
    def create_module(self, spec):
        pass
    def exec_module(self, module):
        path, _, fd = files[module.__name__]
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        compiled = data[:4] == magic
        code = marshal.loads(data[16:]) if compiled else compile(data, path, "exec")
        exec(code, module.__dict__)
sys.meta_path.insert(0, Finder())
os.environ.clear()
os.environ.update(env)
from sandrun.lifecycle import module_files
module_files.drop_stale(files)
from sandrun.lifecycle import recovery
recovery.finish_inherited(line, locks)
"""
"""The program of the new interpreter (`Elsewhere`), after the assignments of its variables."""


def drop_stale(files: "dict[str, tuple[str, bool, int]]") -> None:
    """Drop the files that were compiled from another source, and let Python search for them."""
    stale = [n for n, (path, _, fd) in files.items() if path[-4:] == ".pyc" and _is_stale(fd, path)]
    for name in stale:
        del files[name]
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))


class Elsewhere:
    """What a new interpreter needs to do the same as `recovery.finish` with a holder's line, also
    if the package is replaced or removed by then. It inherits `files`: the open files of the
    modules that are loaded or held here, and those of the run lock. `env` is its environment; None:
    that is not possible here.
    """

    __slots__ = ("_opened", "env", "files")

    def __init__(self, line: bytes, locks: "list[int]") -> None:
        self.files: list[int] = []
        self.env: dict[str, str] | None = None
        self._opened: list[int] = []
        python = getattr(sys, "_base_executable", "")  # a virtual environment may be removed
        if sys.platform != "linux" or DARWIN or not python or os.sysconf("SC_OPEN_MAX") < _MANY:
            return
        files = self._module_files()
        if not files:
            return
        self.files = [fd for _, _, fd in files.values()] + locks
        # The variables as text: CI agents kill processes that have a certain variable.
        facts = {"files": files, "line": line, "locks": locks, "env": dict(os.environ)}
        code = "".join(f"{name} = {value!r}\n" for name, value in facts.items())
        self.env = {"KEEPER_PYTHON": python, "KEEPER_CODE": code + _ELSEWHERE}

    def _module_files(self) -> "dict[str, tuple[str, bool, int]]":
        """Path, whether it is a package, and open file (compiled, or the source where there is no
        compiled one), by module; {} if a file is no longer that of the loaded module."""
        if sys.platform == "win32":
            return {}
        files = {name: (path, False, fd) for name, (fd, path) in _held.items()}
        try:
            for name, module in list(sys.modules.items()):
                spec = getattr(module, "__spec__", None)
                if name in files or spec is None or name.partition(".")[0] not in _PACKAGES:
                    continue
                file = spec.cached if os.path.exists(spec.cached or "") else spec.origin
                fd = os.open(file or "", os.O_RDONLY | os.O_CLOEXEC)
                self._opened.append(fd)
                files[name] = (spec.origin or "", spec.submodule_search_locations is not None, fd)
                valid = getattr(spec.loader, "valid", b"")
                if valid and os.pread(fd, importer.HEADER, 0)[-len(valid) :] != valid:
                    return {}
        except OSError:
            return {}
        return files

    def __enter__(self) -> "Elsewhere":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._opened:
            os.close(fd)


class _Finder:
    """Finds held modules; the `first` finder leaves stale ones to Python.

    See importlib.abc.MetaPathFinder.
    """

    def __init__(self, first: bool) -> None:
        self.first = first

    def find_spec(self, name: str, *_: object) -> "ModuleSpec | None":
        fd, path = _held.get(name, (-1, ""))
        if fd < 0 or (self.first and _is_stale(fd, path)):
            return None
        kind: type[ModuleSpec] = type(sys.__spec__)  # without importing importlib.machinery
        return kind(name, self, origin=path)  # type: ignore[arg-type]

    def create_module(self, spec: "ModuleSpec") -> None:
        """Have Python create the module as usual."""

    def exec_module(self, module: "ModuleType") -> None:
        if sys.platform == "win32":
            return  # nothing is held there
        fd, path = _held[module.__name__]
        data = os.pread(fd, os.fstat(fd).st_size, 0)
        compiled = path.endswith(".pyc")
        code = marshal.loads(data[importer.HEADER :]) if compiled else compile(data, path, "exec")
        exec(code, module.__dict__)


_finder = _Finder(first=True)
_last_finder = _Finder(first=False)


def _is_stale(fd: int, path: str) -> bool:
    """Whether the open file is the current one, but compiled from another source (PEP 552)."""
    if sys.platform == "win32":
        return False  # nothing is held there
    held = os.fstat(fd)
    folder, _, name = path.rpartition("/__pycache__/")
    try:
        there = os.stat(path)
        source = os.stat(f"{folder}/{name.partition('.')[0]}.py")
    except OSError:
        return False
    replaced = (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino)
    return not replaced and os.pread(fd, importer.HEADER, 0)[4:] != importer.validity(source)
