"""The table of options, which every parser, the settings, `--help` and README's table follow.

So a flag, a variable and a key in a file never differ in name, form or default.
"""

from sandrun.config.values import Option
from sandrun.model import MIB

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

OPTIONS = (
    Option(
        "memory",
        ("-m", "--memory"),
        "size",
        2048 * MIB,
        "Memory for the whole process tree: 512M, 4G, or a number of MiB.",
        "SIZE",
        "MEMORY_LIMIT_MB",
        limit=True,
    ),
    Option(
        "timeout",
        ("-t", "--timeout"),
        "span",
        0.0,
        "Wall time after which the run is ended (SIGTERM, --grace, SIGKILL); 0: none.",
        "TIME",
        "TIMEOUT",
        limit=True,
    ),
    Option(
        "cpu_time",
        ("--cpu-time",),
        "span",
        0.0,
        "CPU time of the whole tree after which the run is ended in the same way; 0: no limit.",
        "TIME",
        limit=True,
    ),
    Option(
        "idle_timeout",
        ("--idle-timeout",),
        "span",
        0.0,
        "Time without output and without use of the CPU after which the run is ended; 0: none.",
        "TIME",
        limit=True,
    ),
    Option(
        "kill_signal", ("--kill-signal",), "signal", 15, "What is sent in place of SIGTERM.", "SIG"
    ),
    Option(
        "detach", ("--detach",), "count", 0, "Go on when the process that started sandrun dies."
    ),
    Option(
        "grace",
        ("--grace",),
        "span",
        5.0,
        "Time between SIGTERM and SIGKILL wherever sandrun ends processes.",
        "TIME",
    ),
    Option(
        "check_interval",
        ("--check-interval",),
        "interval",
        5.0,
        "Longest time between two looks of the polling monitor; it looks more often by itself.",
        "TIME",
        "CHECK_INTERVAL",
    ),
    Option(
        "backend",
        ("--backend",),
        "choice",
        "auto",
        "What enforces the limits.",
        "NAME",
        choices=("auto", "cgroup2", "systemd", "cgroup1", "rlimit", "job-object", "none"),
    ),
    Option(
        "require",
        ("--require",),
        "choice",
        "any",
        "Refuse to run (exit 125) unless the kernel enforces the limits; end a run that they no "
        "longer hold for.",
        "WHAT",
        choices=("any", "kernel"),
        alias="required",
    ),
    Option(
        "swap",
        ("--swap",),
        "bytes",
        0,
        "Swap on top of the memory; 0: none.",
        "SIZE",
        limit=True,
    ),
    Option(
        "pids",
        ("--pids",),
        "tasks",
        8192,
        "Processes and threads of the tree; more than a build needs, less than a fork bomb.",
        "NUMBER",
        limit=True,
    ),
    Option(
        "cpus",
        ("--cpus",),
        "share",
        0.0,
        "Processors' worth of time: 1.5.",
        "NUMBER",
        limit=True,
    ),
    Option(
        "cpu_weight",
        ("--cpu-weight",),
        "weight",
        -1,
        "Share of processors when they are short: 1 to 10000, others have 100.",
        "WEIGHT",
    ),
    Option(
        "io_read_bps",
        ("--io-read-bps",),
        "rate",
        -1,
        "Bytes a second read from the project's disk.",
        "RATE",
        limit=True,
    ),
    Option(
        "io_write_bps",
        ("--io-write-bps",),
        "rate",
        -1,
        "Bytes a second written to the project's disk.",
        "RATE",
        limit=True,
    ),
    Option(
        "io_read_iops",
        ("--io-read-iops",),
        "rate",
        -1,
        "Reads a second from the project's disk.",
        "RATE",
        limit=True,
    ),
    Option(
        "io_write_iops",
        ("--io-write-iops",),
        "rate",
        -1,
        "Writes a second to the project's disk.",
        "RATE",
        limit=True,
    ),
    Option(
        "io_weight",
        ("--io-weight",),
        "weight",
        -1,
        "Share of disks when they are short: 1 to 10000, others have 100.",
        "WEIGHT",
    ),
    Option(
        "leftovers",
        ("--leftovers",),
        "choice",
        "kill",
        "Processes that the command leaves behind: end them, wait for them, or leave them alone.",
        "WHAT",
        choices=("kill", "wait", "leave"),
    ),
    Option(
        "daemons",
        ("--daemons",),
        "choice",
        "contain",
        "Daemons that do the work of tools (gradle, nx, sccache) and of git: keep it in the run.",
        "WHAT",
        choices=("contain", "leave"),
    ),
    Option(
        "private_tmp",
        ("--private-tmp",),
        "count",
        0,
        "A /tmp, /var/tmp and TMPDIR of the run's own, gone with it; refused where that cannot be.",
    ),
    Option(
        "private_ipc",
        ("--private-ipc",),
        "count",
        0,
        "SysV IPC, message queues and a /dev/shm of the run's own, gone with it; likewise.",
    ),
    Option(
        "priority",
        ("-p", "--priority"),
        "priority",
        0,
        "Place in the queue: high, normal, low (an hour apart), or a head start in seconds.",
        "WHAT",
    ),
    Option(
        "slots", ("--slots",), "slots", 1, "How many runs of this queue may run at once.", "NUMBER"
    ),
    Option(
        "pool",
        ("--pool",),
        "pool",
        "80%",
        "Memory that your runs of all projects share: a part of the host's, a size, or off.",
        "SIZE",
    ),
    Option(
        "no_wait",
        ("-n", "--no-wait"),
        "count",
        0,
        "Give up at once (exit 75) when it is not our turn.",
    ),
    Option(
        "wait_timeout",
        ("--wait-timeout",),
        "span",
        0.0,
        "Give up (exit 75) after waiting so long; 0: never. Who comes back soon has its old place.",
        "TIME",
        limit=True,
    ),
    Option(
        "git_wait",
        ("--git-wait",),
        "span",
        10.0,
        "Longest wait for a git operation under way in the project's repository.",
        "TIME",
        limit=True,
    ),
    Option(
        "clean_git_env",
        ("--clean-git-env",),
        "count",
        0,
        "Take GIT_DIR and the like, which hooks leak, out of the command's environment.",
    ),
    Option(
        "project",
        ("-C", "--project"),
        "text",
        "",
        "The directory whose queue is joined; default: the git worktree or project around here.",
        "DIR",
        scope="flag",
    ),
    Option(
        "queue",
        ("--queue",),
        "name",
        "",
        "Join a queue by name instead: a device, a licence, a deploy target.",
        "NAME",
    ),
    Option(
        "color",
        ("--color",),
        "choice",
        "auto",
        "Colour in messages.",
        "WHEN",
        choices=("auto", "always", "never"),
    ),
    Option(
        "verbose",
        ("-v", "--verbose"),
        "count",
        0,
        "Say what is decided and why; twice: every write to a control file.",
        variable="VERBOSE",
    ),
    Option(
        "quiet", ("-q", "--quiet"), "count", 0, "Say nothing of waiting; twice: nothing at all."
    ),
)

SUBCOMMANDS = frozenset(
    {"completions", "config", "doctor", "git", "init", "kill", "make-again", "make-include", "man"}
    | {"pause", "queue", "resume", "shims", "status", "trust"}
)

_CUTOFF = 0.74
"""The least similarity as difflib measures it; that of `mkae` and `make` is 0.75."""


def closest(word: str, known: "Iterable[str]") -> str:
    """The known word that resembles `word` most; '' if none does, or if `word` is too short to
    tell or so long that comparing takes time."""
    if not 4 <= len(word) <= 64:
        return ""
    import difflib

    return next(iter(difflib.get_close_matches(word, sorted(known), 1, _CUTOFF)), "")


def did_you_mean(word: str, known: "Iterable[str]") -> str:
    """`did you mean: ...`; '' if no known word resembles `word`."""
    meant = closest(word, known)
    return f"did you mean: {meant}" if meant else ""
