"""The processes of Windows, by psutil.

For a process that is gone or that we may not access, a function returns False, 0 or an empty list,
unless its docstring states otherwise.
"""

from sandrun.model import Process

TYPE_CHECKING = False
if TYPE_CHECKING:
    import psutil


def _process(pid: int) -> "psutil.Process":
    """psutil's object for a process. Raises OSError if there is no such process."""
    import psutil

    try:
        return psutil.Process(pid)
    except psutil.Error as error:
        raise ProcessLookupError(str(error)) from None


def _ask(pid: int, method: str) -> object:
    """The result of psutil's `method` for a process. Raises OSError."""
    import psutil

    try:
        return getattr(_process(pid), method)()
    except psutil.Error as error:
        raise ProcessLookupError(str(error)) from None


def read(path: "str | bytes") -> bytes:
    """Windows has no files about processes. Raises FileNotFoundError."""
    raise FileNotFoundError(path)


class Stat:
    """The known facts about a live process. `cpu` in seconds, `rss` in bytes, `start` in ms."""

    __slots__ = ("cpu", "name", "parent", "rss", "start", "state", "threads")

    def __init__(self, pid: int) -> None:
        import psutil

        process = _process(pid)
        try:
            with process.oneshot():
                times = process.cpu_times()
                self.cpu = times.user + times.system
                self.name = process.name()
                self.parent = process.ppid()
                self.rss = process.memory_info().rss
                self.start = int(process.create_time() * 1000)
                self.threads = process.num_threads()
        except psutil.Error as error:
            raise ProcessLookupError(str(error)) from None
        self.state = "R"  # Windows has no stopped processes


def written(pid: int) -> int:
    """The bytes that a process has written, to all files."""
    try:
        return int(getattr(_ask(pid, "io_counters"), "write_bytes", 0))
    except OSError:
        return 0


def owner(pid: int) -> int:
    """Raises OSError: users have no numbers on Windows."""
    raise ProcessLookupError(f"the owner of {pid}")


def arguments(pid: int) -> "list[str]":
    """The command line. Raises OSError."""
    words = _ask(pid, "cmdline")
    return words if isinstance(words, list) else []


def working_directory(pid: int) -> str:
    """The current directory of a process. Raises OSError."""
    return str(_ask(pid, "cwd"))


def environ(pid: int) -> "dict[str, str]":
    """The environment of a process. Raises OSError."""
    found = _ask(pid, "environ")
    return found if isinstance(found, dict) else {}


def open_pidfd(pid: int) -> int:
    """-1: Windows has no pidfds."""
    return -1


def has_exited(pid: int) -> bool:
    """Whether the process is dead."""
    try:
        return not _ask(pid, "is_running")
    except OSError:
        return True


def ancestors(pid: int) -> "list[int]":
    """The chain of live parents, nearest first. A process with a reused pid is not one of them
    (psutil compares the start times)."""
    try:
        found = _ask(pid, "parents")
    except OSError:
        return []
    return [parent.pid for parent in found] if isinstance(found, list) else []


def children(pid: int) -> "list[int]":
    """The children of a process."""
    import psutil

    try:
        return [child.pid for child in _process(pid).children()]
    except (OSError, psutil.Error):
        return []


def descendants(root: int) -> "list[int]":
    """The descendants of `root`, parents before children."""
    import psutil

    try:
        return [child.pid for child in _process(root).children(recursive=True)]
    except (OSError, psutil.Error):
        return []


def describe(pid: int, memory: "int | None" = None) -> "Process | None":
    """A description of a process; its memory is the committed memory, which a job limits, unless
    `memory` is given. None: it is gone."""
    import psutil

    try:
        process = _process(pid)
        if memory is None:
            memory = process.memory_info().vms
        try:
            words = " ".join(process.cmdline())
        except psutil.AccessDenied:
            words = ""
        text = "".join(c if c.isprintable() else "?" for c in words.strip())
        return Process(pid, memory, text[:200] or f"[{process.name()}]")
    except (OSError, psutil.Error):
        return None
