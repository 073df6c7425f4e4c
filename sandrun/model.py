"""The words of the design as values: errors, limits, usage, outcome.

Everything else imports this module and it imports nothing that costs, because it is on the path
of every run. `sandrun.backends.protocol` holds the types that only a type checker needs.
"""

import errno
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.types import Reason

MIB = 1 << 20

DARWIN = sys.platform == "darwin"
"""Whether the kernel is that of macOS: the one place that asks (tests pretend it, see
tests/harness/portable)."""

EXIT_GAVE_UP = 75
"""Waited as long as the user allowed for a turn (EX_TEMPFAIL of sysexits.h)."""
EXIT_TIMEOUT = 124
"""A limit on time (wall, CPU, idle) ended the run; the same number as timeout(1)."""
EXIT_SANDRUN = 125
"""sandrun itself failed or was called wrongly; the command was not started."""
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_HANGUP = 129
"""The process that had started sandrun died: what a shell shows after a hang-up."""
EXIT_MEMORY = 137
"""The memory limit ended the run: what a shell shows for a process that the kernel killed."""

ENDED: "dict[Reason, int]" = {
    "memory": EXIT_MEMORY,
    "outer-memory": EXIT_MEMORY,
    "timeout": EXIT_TIMEOUT,
    "cpu-time": EXIT_TIMEOUT,
    "idle": EXIT_TIMEOUT,
    "parent": EXIT_HANGUP,
    "escaped": EXIT_SANDRUN,
}
"""The exit codes of runs that were ended, by reason."""


RUNS_VARIABLE = "SANDRUN_RUNS"
"""In the command's environment: `<state directory>/<run id>` of each run around it, outermost
first, separated as in PATH. A hint for finding them, never a proof."""


OWN_SERVER = "\\x00sandrun-"
"""What SCCACHE_SERVER_UDS starts with where we set it: an abstract socket, as sccache writes it."""


def is_run_id(text: str) -> bool:
    """Whether it has the form of a run's id: eight hexadecimal digits."""
    return len(text) == 8 and _HEX.issuperset(text)


_HEX = frozenset("0123456789abcdef")


class SandrunError(Exception):
    """A failure of sandrun's own: one line of what happened, and how to mend it.

    Ends as `sandrun: <text>` and `sandrun: hint: <hint>` on stderr and `exit_code` (125 unless
    said otherwise), never as a traceback.
    """

    def __init__(self, text: str, hint: str = "", exit_code: int = EXIT_SANDRUN) -> None:
        super().__init__(text)
        self.text = text
        self.hint = hint
        self.exit_code = exit_code


class UsageError(SandrunError):
    """The command line is wrong."""


class Unusable(SandrunError):
    """A backend cannot contain anything here; `text` says why and `hint` how to change that."""

    notable = False
    """Whether the user is to be told, when no kernel enforces the limits for that reason."""


class Limits:
    """The limits of a run. Sizes in bytes, times in seconds; -1 or 0.0: no limit.

    `swap` comes on top of `memory`. `io` maps the keys of io.max (`rbps`, `wbps` in bytes a
    second, `riops`, `wiops`) to values, for the disk under `directory`. `cpu_time` is what no tree
    may pass, not even in the grace after the setting of that name: for a kernel that stops a tree
    there by itself. `detached`: the run shall outlive the session that it was started in; `let_go`:
    whoever started it lets it do so (README, "The death of who started sandrun"). `asked` holds the
    keys that the user set: a backend that cannot enforce one of those refuses, while a default is
    enforced where it can be.
    """

    __slots__ = (
        "asked",
        "check_interval",
        "cpu_time",
        "cpu_weight",
        "cpus",
        "detached",
        "directory",
        "io",
        "io_weight",
        "let_go",
        "memory",
        "pids",
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
        self.detached = self.let_go = False
        self.asked: frozenset[str] = frozenset()

    def controllers(self) -> "dict[str, bool]":
        """The v2 controllers these limits need, and whether the user asked for them by name.

        The processors are divided between the run as a whole and the supervisor in any case: it
        could not end thousands that want to run if it were one of them.
        """
        needed = {"memory": True, "pids": "pids" in self.asked}
        needed["cpu"] = bool(self.cpus) or self.cpu_weight >= 0
        if self.io or self.io_weight >= 0:
            needed["io"] = True
        return needed


class Process:
    """One process of a run as last seen. `memory` in bytes (RSS or PSS, see the backend); `daemon`
    is the name of its row in `sandrun.supervise.daemons`, where somebody looked for one."""

    __slots__ = ("command", "daemon", "memory", "pid")

    def __init__(self, pid: int, memory: int, command: str) -> None:
        self.pid = pid
        self.memory = memory
        self.command = command
        self.daemon = ""


class Escape:
    """A process of a run that left the run's group. `start` in clock ticks after boot; `group`:
    where it was seen; `starter`: its parent, if that has stayed; `is_first`: its parent had not
    left; `lasted`: it lived when the command had ended."""

    __slots__ = ("group", "is_first", "lasted", "process", "start", "starter")

    def __init__(
        self, process: Process, start: int, group: str, starter: "Process | None", is_first: bool
    ) -> None:
        self.process = process
        self.start = start
        self.group = group
        self.starter = starter
        self.is_first = is_first
        self.lasted = False


class Usage:
    """What a container's processes used. Bytes and seconds; None where it cannot be known.

    `refused`: how many processes and threads could not be started at a limit on their number, and
    that limit; `near`: which of the fallback's backstops was nearly reached (`data`: bytes of one
    process, `tasks`), how much there was, and the limit.

    `current` and `peak` leave out page cache that the kernel can drop; `peak_with_cache` is the
    kernel's own figure, None where cache counts nowhere. Of shorter peaks than a sample sees `peak`
    has what the kernel's figure proves. `sampled` is true when that was polled, too. `kinds` tells
    how much memory was `anon`, `file` (page cache), `shmem` (shared memory, tmpfs) and `kernel`
    (inodes, dentries, pipes, sockets, page tables) when the limit was near. `stalled` is for how
    long no process could go on for want of memory. `shared`: shared memory and tmpfs, in bytes, as
    far as a group counts it; without one, SysV segments that are left of the processes `makers`.
    """

    __slots__ = (
        *("cpu", "current", "kinds", "makers", "near", "peak", "peak_with_cache", "refused"),
        *("sampled", "shared", "stalled"),
    )

    def __init__(
        self,
        current: "int | None" = None,
        peak: "int | None" = None,
        cpu: "float | None" = None,
        sampled: bool = False,
        kinds: "dict[str, int] | None" = None,
        stalled: "float | None" = None,
    ) -> None:
        self.current = current
        self.peak = peak
        self.peak_with_cache: int | None = None
        self.cpu = cpu
        self.sampled = sampled
        self.kinds = kinds or {}
        self.stalled = stalled
        self.refused: tuple[int, int] = (0, 0)
        self.shared = 0
        self.makers: set[int] = set()
        self.near: dict[str, tuple[int, int]] = {}


class Outcome:
    """How a run ended.

    `reason` is one of `exit`, `signal`, `timeout` (wall), `cpu-time`, `idle`, `memory` (the run's
    own limit), `outer-memory` (an enclosing limit), `parent` (the process that had started sandrun
    died), `not-started`, `left` (a signal ended the wait), `failed` (sandrun itself failed),
    `escaped` (a process left the container, and `--require kernel` allows none) and `lost` (the
    supervisor was killed; whoever finds such a run records that).
    `interrupted`: the terminal's Ctrl-C ended the command. `asked`: the signal that ended it was
    sent to us, or by the terminal, so whoever sent it knows; `dumped`: it dumped core.
    `unkillable`: processes that survived SIGKILL. `outside`: daemons that are no part of it and
    worked meanwhile. `shared`: what shared memory is left, and the commands that remove it.
    `escaped`: the processes that left the container, by pid; they are not among the `leftovers`.
    """

    __slots__ = (
        *("asked", "code", "dumped", "escaped", "interrupted", "leftovers", "outside", "reason"),
        *("shared", "signal", "top_consumers", "unkillable", "usage"),
    )

    def __init__(self, reason: "Reason", code: int, signal: int = 0) -> None:
        self.reason = reason
        self.code = code
        self.signal = signal
        self.usage = Usage()
        self.interrupted = self.asked = self.dumped = False
        self.leftovers: list[Process] = []
        self.escaped: dict[int, Escape] = {}
        self.outside: list[Process] = []
        self.shared: tuple[list[str], list[str]] = [], []
        self.unkillable: list[int] = []
        self.top_consumers: list[Process] = []

    def is_plain(self) -> bool:
        """Whether there is nothing to report about this end, as of most."""
        if self.reason not in ("exit", "signal") or self.leftovers or self.unkillable:
            return False
        if self.escaped or self.outside or self.shared[0]:
            return False
        if self.usage.refused[0] or (self.code and self.usage.near):
            return False
        return self.reason == "exit" or self.asked or self.signal in QUIET


QUIET = (2, 13)
"""SIGINT and SIGPIPE, of which no shell speaks either: somebody had enough."""


def error_text(error: OSError) -> str:
    """Which file an error is about, if one, and what is wrong: `/a/b: Permission denied`."""
    name = error.filename  # bytes where cgroupspy opened it
    shown = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return f"{shown}: {error.strerror}" if shown else str(error.strerror)


def exhausted(error: "BaseException | None") -> "OSError | None":
    """The failure for want of descriptors that `error` is, or was raised for; None: there is none.

    It says nothing about the file that could not be opened: no other backend helps, nor other
    rights.
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
"""Characters of a line that are shown: names of others' choosing have no end."""


def plain(text: str) -> str:
    """`text` as one line that terminals, logs and CI services show and do not act on.

    Names in it are often of others' choosing: of files, settings, queues, processes. What is not
    printable (line feeds, terminal escapes, characters that change the direction of writing) is
    written as an escape, and the start of a workflow command is broken up: `::` counts at the
    start of a line, `##[`, `##vso[` and the like anywhere (GitHub's ActionCommand.cs, Azure
    Pipelines, TeamCity); GitLab's section markers need a carriage return.
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
    if 0xDC80 <= code < 0xDD00:  # a byte of a file name that is no text (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return ascii(char)[1:-1]


def command_text(command: "list[str]") -> str:
    """A command line as a shell would take it, on one line (what shlex.join does, without `re`)."""
    return " ".join(_quoted(word) for word in command)


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_@%+=:,./-")


def _quoted(word: str) -> str:
    if word and _PLAIN.issuperset(word):
        return word
    if word.isprintable():
        return "'" + word.replace("'", "'\"'\"'") + "'"
    return "$'" + "".join(map(_for_shell, word)) + "'"


def _for_shell(char: str) -> str:
    """A character between $' and ', as bash, zsh and ksh read it: what is not printable would break
    the line, or the terminal that it is shown on, and may be a byte that is no text."""
    if char in "\\'":
        return "\\" + char
    if char.isprintable():
        return char
    # What os.fsdecode makes of bytes that are no UTF-8 (PEP 383).
    is_byte = "\udc80" <= char <= "\udcff"
    code = char.encode("utf-8", "surrogateescape" if is_byte else "backslashreplace")
    return _SHORT.get(char) or "".join(f"\\x{byte:02x}" for byte in code)


_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
