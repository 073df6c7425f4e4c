"""The values that all rooms share: errors, limits, usage, outcome, and texts for people.

This module is on the path of every run, so it imports nothing that costs time. `sandrun.types` and
`sandrun.backends.protocol` hold the types that only a type checker needs.
"""

import errno
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.types import Reason

MIB = 1 << 20

DARWIN = sys.platform == "darwin"
"""Whether the kernel is that of macOS. All modules read this constant, because tests replace it
(tests/harness/portable)."""

EXIT_GAVE_UP = 75
"""The run did not get its turn in the time that the user allows (EX_TEMPFAIL of sysexits.h)."""
EXIT_TIMEOUT = 124
"""A time limit (wall, CPU, idle) ended the run; timeout(1) uses the same number."""
EXIT_SANDRUN = 125
"""sandrun itself failed, or its command line is wrong; the command was not started."""
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_HANGUP = 129
"""The process that had started sandrun died. A shell reports a hang-up as this number."""
EXIT_MEMORY = 137
"""A memory limit ended the run. A shell reports a process that the kernel killed as this number."""

EXIT_CODES: "dict[Reason, int]" = {
    "memory": EXIT_MEMORY,
    "outer-memory": EXIT_MEMORY,
    "timeout": EXIT_TIMEOUT,
    "cpu-time": EXIT_TIMEOUT,
    "idle": EXIT_TIMEOUT,
    "parent": EXIT_HANGUP,
    "escaped": EXIT_SANDRUN,
}
"""The exit codes of runs that sandrun or a limit ended, by reason."""


TOO_LARGE_TO_SIGNAL = 2000
"""A run with more processes, which no build has, is killed without a SIGTERM to each of them."""
RUNS_VARIABLE = "SANDRUN_RUNS"
"""In the command's environment: `<state directory>/<run id>` of each enclosing run, outermost
first, separated as in PATH. It is a hint where to find them, never a proof."""


SCCACHE_SOCKET = "\\x00sandrun-"
"""The start of SCCACHE_SERVER_UDS where sandrun sets it: an abstract socket in sccache's form."""


def is_run_id(text: str) -> bool:
    """Whether `text` has the form of a run's id: eight hexadecimal digits."""
    return len(text) == 8 and _HEX.issuperset(text)


_HEX = frozenset("0123456789abcdef")


class SandrunError(Exception):
    """sandrun itself failed: `text` is one line about what happened, `hint` how to mend it.

    The command line prints `sandrun: <text>` and `sandrun: hint: <hint>` on stderr and exits with
    `exit_code`; it never prints a traceback.
    """

    def __init__(self, text: str, hint: str = "", exit_code: int = EXIT_SANDRUN) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.exit_code = exit_code


class UsageError(SandrunError):
    """The command line is wrong."""


class Unusable(SandrunError):
    """A backend cannot contain a run here; `text` says why and `hint` how to change that."""

    notable = False
    """Whether to warn the user when no kernel enforces the limits for this reason."""


class Limits:
    """The limits of a run. Sizes in bytes, times in seconds; -1 or 0.0: no limit.

    - `swap` is allowed on top of `memory`.
    - `io` maps the keys of io.max (`rbps`, `wbps` in bytes per second, `riops`, `wiops`) to values
      for the disk under `directory`.
    - `cpu_time` is the setting of that name plus a grace period on every processor. It is for a
      kernel that ends the tree by itself.
    - `detached`: the run must outlive the session in which it was started. `outlives_caller`: the
      process that started it permits that (README, "The death of the process that started
      sandrun").
    - `set_by_user` holds the keys that the user set. A backend that cannot enforce one of these
      refuses the run; a default is enforced where that is possible.
    """

    __slots__ = (
        "check_interval",
        "cpu_time",
        "cpu_weight",
        "cpus",
        "detached",
        "directory",
        "io",
        "io_weight",
        "memory",
        "outlives_caller",
        "pids",
        "set_by_user",
        "swap",
    )

    def __init__(self, memory: int, check_interval: float = 5.0) -> None:
        self.memory = memory
        self.check_interval = check_interval
        self.swap = 0
        self.pids = -1
        self.cpus = 0.0
        self.cpu_time = 0.0
        self.cpu_weight = -1
        self.io: dict[str, int] = {}
        self.io_weight = -1
        self.directory = "/"
        self.detached = self.outlives_caller = False
        self.set_by_user: frozenset[str] = frozenset()

    def controllers(self) -> "dict[str, bool]":
        """The v2 controllers that these limits use, and whether each is required.

        The cpu controller is always used: it divides the processors between the run as a whole and
        the supervisor, which could otherwise not end thousands of runnable processes.
        """
        needed = {"memory": True, "pids": "pids" in self.set_by_user}
        needed["cpu"] = bool(self.cpus) or self.cpu_weight >= 0
        if self.io or self.io_weight >= 0:
            needed["io"] = True
        return needed


class Process:
    """One process of a run as last seen. `memory` in bytes, as the backend or `processes.describe`
    measures it; `daemon` is the name of its row in `sandrun.supervise.daemons`, or ''."""

    __slots__ = ("command", "daemon", "memory", "pid")

    def __init__(self, pid: int, memory: int, command: str) -> None:
        self.pid = pid
        self.memory = memory
        self.command = command
        self.daemon = ""


class Escape:
    """A process of a run that left the run's group.

    `start` is its start time in clock ticks after boot, `group` the group in which it was seen,
    `parent` its parent if that is still in the run's group. `is_first`: its parent had not left
    the group. `outlived_command`: it was still alive after the command had exited.
    """

    __slots__ = ("group", "is_first", "outlived_command", "parent", "process", "start")

    def __init__(
        self, process: Process, start: int, group: str, parent: "Process | None", is_first: bool
    ) -> None:
        self.process = process
        self.start = start
        self.group = group
        self.parent = parent
        self.is_first = is_first
        self.outlived_command = False


class Usage:
    """The resources that a container's processes used. Bytes and seconds; None: not known.

    - `current` and `peak` leave out page cache that the kernel can reclaim. `peak_with_cache` is
      the kernel's own figure, None where no cache is counted. A peak between two samples counts
      as far as the kernel's figure proves it. `sampled`: both peaks come from polling alone,
      because the kernel keeps none.
    - `breakdown`: how much memory was `anon`, `file` (page cache), `shmem` (shared memory, tmpfs)
      and `kernel` (inodes, dentries, pipes, sockets, page tables) when usage was near the limit.
    - `stalled`: for how long no process could run because it waited for memory.
    - `tasks` and `most_tasks`: how many processes and threads there are now, and were at most (on
      Windows processes alone). The kernel's figure where it keeps one, else the highest sample.
    - `failed_starts`: how many processes and threads could not be started because of a limit on
      their number, and that limit.
    - `near_limits`: the rlimits of the fallback that were nearly reached (`data`: bytes of one
      process; `tasks`), each with the usage and the limit.
    - `shared`: shared memory and tmpfs in bytes, where a cgroup counts them. Elsewhere, the SysV
      segments that the processes `shm_creators` created and left behind are counted instead.
    """

    __slots__ = (
        *("breakdown", "cpu", "current", "failed_starts", "most_tasks", "near_limits", "peak"),
        *("peak_with_cache", "sampled", "shared", "shm_creators", "stalled", "tasks"),
    )

    def __init__(
        self,
        current: "int | None" = None,
        peak: "int | None" = None,
        cpu: "float | None" = None,
        sampled: bool = False,
        breakdown: "dict[str, int] | None" = None,
        stalled: "float | None" = None,
    ) -> None:
        self.current = current
        self.peak = peak
        self.peak_with_cache: int | None = None
        self.cpu = cpu
        self.sampled = sampled
        self.breakdown = breakdown or {}
        self.stalled = stalled
        self.tasks: int | None = None
        self.most_tasks: int | None = None
        self.failed_starts: tuple[int, int] = (0, 0)
        self.shared = 0
        self.shm_creators: set[int] = set()
        self.near_limits: dict[str, tuple[int, int]] = {}


class Outcome:
    """How a run ended.

    `reason` is one of `exit`, `signal`, `timeout` (wall), `cpu-time`, `idle`, `memory` (the run's
    own limit), `outer-memory` (an enclosing limit), `parent` (the process that had started sandrun
    died), `not-started`, `left` (a signal ended the wait), `failed` (sandrun itself failed),
    `escaped` (a process left the container, and `--require kernel` allows none) and `lost` (the
    supervisor was killed; the process that finds the run records this).

    - `interrupted`: Ctrl-C in the terminal ended the command. `forwarded`: the signal that ended it
      came through sandrun or from the terminal, so its sender knows of it. `dumped`: the command
      dumped core.
    - `leftovers`: the processes that the command left behind. `escaped`: the processes that left
      the container, by pid; they are not among the leftovers. `unkillable`: processes that
      survived SIGKILL.
    - `outside`: daemons that do not belong to the run and used the CPU while it ran.
    - `shared`: the shared memory that was left behind, and the commands that remove it.
    """

    __slots__ = (
        *("code", "dumped", "escaped", "forwarded", "interrupted", "leftovers", "outside"),
        *("reason", "shared", "signal", "top_consumers", "unkillable", "usage"),
    )

    def __init__(self, reason: "Reason", code: int, signal: int = 0) -> None:
        self.reason = reason
        self.code = code
        self.signal = signal
        self.usage = Usage()
        self.interrupted = self.forwarded = self.dumped = False
        self.leftovers: list[Process] = []
        self.escaped: dict[int, Escape] = {}
        self.outside: list[Process] = []
        self.shared: tuple[list[str], list[str]] = [], []
        self.unkillable: list[int] = []
        self.top_consumers: list[Process] = []

    def is_unremarkable(self) -> bool:
        """Whether there is nothing to report about this end, as for most runs."""
        if self.reason not in ("exit", "signal") or self.leftovers or self.unkillable:
            return False
        if self.escaped or self.outside or self.shared[0]:
            return False
        if self.usage.failed_starts[0] or (self.code and self.usage.near_limits):
            return False
        return self.reason == "exit" or self.forwarded or self.signal in QUIET_SIGNALS


QUIET_SIGNALS = (2, 13)
"""SIGINT and SIGPIPE: the user, or the reader of its output, ended the command. Shells do not
report these signals either."""


def error_text(error: OSError) -> str:
    """The file that an error is about, if any, and what is wrong: `/a/b: Permission denied`."""
    name = error.filename  # bytes where cgroupspy opened it
    shown = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return f"{shown}: {error.strerror}" if shown else str(error.strerror)


def out_of_descriptors(error: "BaseException | None") -> "OSError | None":
    """The error that reports a shortage of file descriptors: `error` itself or an error during
    whose handling it was raised; None: there is no such error.

    A shortage proves nothing about the file that could not be opened, so neither another backend
    nor other permissions help.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return error
        error = error.__context__
    return None


def size_text(size: "int | None") -> str:
    """A size in bytes for people: `512 MiB`, `2.0 GiB`."""
    if size is None:
        return "unknown"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.1f} {unit}" if value < 100 and unit != "B" else f"{value:.0f} {unit}"


def span_text(seconds: float) -> str:
    """A duration for people: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


_LINE = 4000
"""Characters of a line that are shown: a name that another user chose can have any length."""


def plain(text: str) -> str:
    """`text` as one line that terminals, logs and CI services display and never interpret.

    Many names in it come from others: of files, settings, queues, processes. Unprintable characters
    (line feeds, terminal escapes, characters that change the direction of writing) become escapes,
    and the start of a workflow command is broken up: `::` at the start of a line, `##[`, `##vso[`
    and similar ones anywhere (GitHub's ActionCommand.cs, Azure Pipelines, TeamCity). GitLab's
    section markers need a carriage return.
    """
    if len(text) > _LINE:
        text = text[:_LINE] + "…"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    if "##" in text and "[" in text:
        text = text.replace("##", "# #")
    return "\\x3a" + text.lstrip()[1:] if text.lstrip()[:2] == "::" else text


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code < 0xDD00:  # a byte of a file name that cannot be decoded (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return ascii(char)[1:-1]


def command_text(command: "list[str]") -> str:
    """A command line in a shell's notation, on one line (shlex.join would import `re`)."""
    return " ".join(_quoted(word) for word in command)


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")


def _quoted(word: str) -> str:
    if word and _PLAIN.issuperset(word):
        return word
    if word.isprintable():
        return "'" + word.replace("'", "'\"'\"'") + "'"
    return "$'" + "".join(map(_for_shell, word)) + "'"


def _for_shell(char: str) -> str:
    """A character between $' and ', as bash, zsh and ksh read it. An unprintable one would break
    the line or control the terminal, and it may be a byte that cannot be decoded."""
    if char in "\\'":
        return "\\" + char
    if char.isprintable():
        return char
    # os.fsdecode maps bytes that are not UTF-8 to these (PEP 383).
    is_byte = "\udc80" <= char <= "\udcff"
    code = char.encode("utf-8", "surrogateescape" if is_byte else "backslashreplace")
    return _SHORT.get(char) or "".join(f"\\x{byte:02x}" for byte in code)


_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
