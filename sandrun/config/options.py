"""The table of options, from which every parser, the settings, `--help` and README's table follow.

So the flag, the variable and the key of an option never differ in name, form or default.
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
        "kill_signal", ("--kill-signal",), "signal", 15, "Signal to send instead of SIGTERM.", "SIG"
    ),
    Option(
        "detach", ("--detach",), "count", 0, "Continue when the process that started sandrun dies."
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
        "Longest time between two polls of the fallback's monitor; it polls more often by itself.",
        "TIME",
        "CHECK_INTERVAL",
    ),
    Option(
        "backend",
        ("--backend",),
        "choice",
        "auto",
        "Mechanism that enforces the limits.",
        "NAME",
        choices=("auto", "cgroup2", "systemd", "cgroup1", "rlimit", "job-object", "none"),
    ),
    Option(
        "require",
        ("--require",),
        "choice",
        "any",
        "Refuse to run (exit 125) unless the kernel enforces the limits; end a run when one of its "
        "processes leaves its limits.",
        "WHAT",
        choices=("any", "kernel"),
        alias="required",
    ),
    Option(
        "swap",
        ("--swap",),
        "bytes",
        0,
        "Swap in addition to the memory; 0: none.",
        "SIZE",
        limit=True,
    ),
    Option(
        "pids",
        ("--pids",),
        "tasks",
        8192,
        "Processes and threads of the tree. The default is enough for builds, not for a fork bomb.",
        "NUMBER",
        limit=True,
    ),
    Option(
        "cpus",
        ("--cpus",),
        "share",
        0.0,
        "Number of processors, such as 1.5.",
        "NUMBER",
        limit=True,
    ),
    Option(
        "cpu_weight",
        ("--cpu-weight",),
        "weight",
        -1,
        "Share of busy processors: 1 to 10000, others have 100.",
        "WEIGHT",
    ),
    Option(
        "io_read_bps",
        ("--io-read-bps",),
        "rate",
        -1,
        "Bytes per second read from the project's disk.",
        "RATE",
        limit=True,
    ),
    Option(
        "io_write_bps",
        ("--io-write-bps",),
        "rate",
        -1,
        "Bytes per second written to the project's disk.",
        "RATE",
        limit=True,
    ),
    Option(
        "io_read_iops",
        ("--io-read-iops",),
        "rate",
        -1,
        "Reads per second from the project's disk.",
        "RATE",
        limit=True,
    ),
    Option(
        "io_write_iops",
        ("--io-write-iops",),
        "rate",
        -1,
        "Writes per second to the project's disk.",
        "RATE",
        limit=True,
    ),
    Option(
        "io_weight",
        ("--io-weight",),
        "weight",
        -1,
        "Share of busy disks: 1 to 10000, others have 100.",
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
        "Work that tools (gradle, nx, sccache) and git give to daemons: contain it, or not.",
        "WHAT",
        choices=("contain", "leave"),
    ),
    Option(
        "private_tmp",
        ("--private-tmp",),
        "count",
        0,
        "Give the run its own /tmp, /var/tmp and TMPDIR, gone with it; refused where impossible.",
    ),
    Option(
        "private_ipc",
        ("--private-ipc",),
        "count",
        0,
        "Give the run its own SysV IPC, message queues and /dev/shm, in the same way.",
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
        "slots",
        ("--slots",),
        "slots",
        1,
        "Number of runs of this queue that may run at once.",
        "NUMBER",
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
        "Give up at once (exit 75) instead of waiting for a turn.",
    ),
    Option(
        "wait_timeout",
        ("--wait-timeout",),
        "span",
        0.0,
        "Give up (exit 75) after waiting so long; 0: never. A quick retry keeps its place.",
        "TIME",
        limit=True,
    ),
    Option(
        "git_wait",
        ("--git-wait",),
        "span",
        10.0,
        "Longest wait for a running git operation in the project's repository.",
        "TIME",
        limit=True,
    ),
    Option(
        "clean_git_env",
        ("--clean-git-env",),
        "count",
        0,
        "Remove GIT_DIR and similar variables, which hooks leak, from the command's environment.",
    ),
    Option(
        "project",
        ("-C", "--project"),
        "text",
        "",
        "Use the queue of the project of this directory; default: the current directory.",
        "DIR",
        scope="flag",
    ),
    Option(
        "queue",
        ("--queue",),
        "name",
        "",
        "Use a queue with this name instead, for a device, a licence, a deploy target.",
        "NAME",
    ),
    Option(
        "history_age",
        ("--history-age",),
        "span",
        90 * 86400.0,
        "Age up to which samples and records of past runs are kept; 0: no limit.",
        "TIME",
    ),
    Option(
        "history_size",
        ("--history-size",),
        "bytes",
        64 * MIB,
        "Size up to which samples, and likewise records, of past runs are kept; 0: no limit.",
        "SIZE",
    ),
    Option(
        "json_report",
        ("--json-report",),
        "text",
        "",
        "Write how the run ended, its figures and its samples in short into this file, for CI.",
        "FILE",
        scope="flag",
    ),
    Option(
        "metrics_textfile",
        ("--metrics-textfile",),
        "file",
        "",
        "Write metrics for Prometheus into this file at the end of each run (an absolute path).",
        "FILE",
    ),
    Option(
        "color",
        ("--color",),
        "choice",
        "auto",
        "Use of colour in messages.",
        "WHEN",
        choices=("auto", "always", "never"),
    ),
    Option(
        "verbose",
        ("-v", "--verbose"),
        "count",
        0,
        "Report decisions and their reasons; twice: also every write to a control file.",
        variable="VERBOSE",
    ),
    Option(
        "quiet", ("-q", "--quiet"), "count", 0, "Do not report waiting; twice: no messages at all."
    ),
)

SUBCOMMANDS = frozenset(
    {"completions", "config", "doctor", "git", "history", "init", "kill", "log", "make-again"}
    | {"make-include", "man", "metrics", "pause", "queue", "report", "resume", "schema", "shims"}
    | {"stats", "status", "suggest", "top", "trust"}
)

_CUTOFF = 0.74
"""The least similarity as difflib measures it; that of `mkae` and `make` is 0.75."""


def closest(word: str, known: "Iterable[str]") -> str:
    """The known word that resembles `word` most; '' if none does, or if `word` is too short for a
    comparison or so long that it would take time. Of the words that resemble it, one with the same
    letters comes first: `stauts` is rather `status` than `stats`."""
    if not 4 <= len(word) <= 64:
        return ""
    import difflib

    similar = difflib.get_close_matches(word, sorted(known), 3, _CUTOFF)
    same = [match for match in similar if sorted(match) == sorted(word)]
    return next(iter(same + similar), "")


def did_you_mean(word: str, known: "Iterable[str]") -> str:
    """`did you mean: ...`; '' if no known word resembles `word`."""
    meant = closest(word, known)
    return f"did you mean: {meant}" if meant else ""
