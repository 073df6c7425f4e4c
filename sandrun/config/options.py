"""The one table of options, and the tiny parser of the hot path.

`OPTIONS` drives the parser here, click's (`sandrun.cli.app`), the settings and README's table, so
that a flag, a variable and a key in a file can never drift apart. The parser here exists because
importing click costs more than everything else that `sandrun -- true` does; a test runs one
corpus of command lines through both.
"""

from sandrun.config.values import PARSERS, RIGHT
from sandrun.model import MIB, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Option:
    """One setting: its key in files, its flags, its variables, its values.

    `kind` names the parser of its values; `count` is a flag that may be repeated. `variable` is the
    plain environment variable (the `SANDRUN_` one follows from the key). `alias` is a second key
    that means the same. `scope` is where it may be set: `all`, or `flag` for what makes sense only
    there.

    `limit` says what a project's file may do with it before the user has said `sandrun trust`
    (`sandrun.config.settings`). A limit counts at once, but never loosens one in the user's own
    file: what it bounds is the project's own run. All else counts only after that, and the user's
    own file comes first: it decides over the user's protection (backend, leftovers, kill_signal,
    grace, check_interval, detach), over the user's other runs (pool, priority, queue, slots, the
    weights), over whether there is a run at all (require, no_wait), over what the user is told
    (quiet, verbose, color) or over what the command sees (clean_git_env, daemons, private_tmp). A
    stricter `require` waits for trust too: it refuses runs, and whether a run without a kernel is
    better than none is the user's to say.
    """

    __slots__ = (
        "alias",
        "choices",
        "default",
        "flags",
        "help",
        "key",
        "kind",
        "limit",
        "metavar",
        "scope",
        "variable",
    )

    def __init__(
        self,
        key: str,
        flags: "tuple[str, ...]",
        kind: str,
        default: object,
        help: str,
        metavar: str = "",
        variable: str = "",
        choices: "tuple[str, ...]" = (),
        scope: str = "all",
        alias: str = "",
        limit: bool = False,
    ) -> None:
        self.key = key
        self.flags = flags
        self.kind = kind
        self.default = default
        self.help = help
        self.metavar = metavar
        self.variable = variable
        self.choices = choices
        self.scope = scope
        self.alias = alias
        self.limit = limit

    def names(self) -> "tuple[str, ...]":
        """What it is called in files and, with `SANDRUN_`, in the environment."""
        return (self.key, self.alias) if self.alias else (self.key,)

    def is_tighter(self, value: object, other: object) -> bool:
        """Whether one value of a limit allows less than another; of a limit whose default is 0.0,
        0 is none at all."""
        assert isinstance(value, int | float) and isinstance(other, int | float)
        if self.default == 0.0 and isinstance(self.default, float):
            return (value or float("inf")) < (other or float("inf"))
        return value < other

    def convert(self, text: str) -> object:
        """The value of a text. Raises ValueError with what would be right."""
        if self.kind == "choice":
            if text not in self.choices:
                raise ValueError("one of " + ", ".join(self.choices))
            return text
        try:
            return PARSERS[self.kind](text)
        except (ValueError, OverflowError) as error:
            # Only our own parsers raise with advice; float() and int() speak Python.
            advice = str(error) if str(error).startswith(("at least", "more than")) else ""
            raise ValueError(f"{RIGHT[self.kind]}{', ' + advice if advice else ''}") from None


BACKENDS = ("auto", "cgroup2", "systemd", "cgroup1", "rlimit", "job-object", "none")

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
        choices=BACKENDS,
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
        "swap", ("--swap",), "bytes", 0, "Swap on top of the memory; 0: none.", "SIZE", limit=True
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
        "cpus", ("--cpus",), "share", 0.0, "Processors' worth of time: 1.5.", "NUMBER", limit=True
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

_BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}
_HELP = ("-h", "--help", "--version")
_VERBATIM = ("git", "make-again")
"""Subcommands whose words are all their own."""
_OWN = {"queue": ("-p", "--priority")}
"""Flags of a run that mean something else after a subcommand: the priority to move another to."""


class Parsed:
    """A command line taken apart: `flags` by key, then either a `command` or a `subcommand`.

    `subcommand` is '' for a run, else its name or `--help` / `--version`; `arguments` follow it,
    without the options of a run, which may stand there too. `ordered` is the whole line with those
    in front, as click wants them.
    """

    __slots__ = ("arguments", "command", "flags", "ordered", "subcommand")

    def __init__(self, argv: "list[str]") -> None:
        self.ordered = argv
        self.flags: dict[str, object] = {}
        self.command: list[str] = []
        self.subcommand = ""
        self.arguments: list[str] = []


def parse(argv: "list[str]") -> Parsed:
    """Take `argv` (without the program's name) apart. Raises UsageError.

    Options end at `--` or at the first word that is no option. That word starts the command,
    unless it is a subcommand and no `--` came before. After a subcommand they may go on.
    """
    parsed = Parsed(argv)
    at = 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            parsed.command = argv[at:]
            break
        if word in _HELP:
            parsed.subcommand = "--help" if word == "-h" else word
            break
        if word[:1] != "-" or word == "-":
            if word in SUBCOMMANDS:
                parsed.subcommand = word
                parsed.arguments = argv[at:]
                if word not in _VERBATIM:
                    _take_later(parsed, argv[: at - 1])
            else:
                parsed.command = argv[at - 1 :]
            break
        at = _take_option(parsed.flags, word, argv, at)
    return parsed


def _take_later(parsed: Parsed, before: "list[str]") -> None:
    """Take the options of a run from among a subcommand's words; `before` are those before it."""
    words = parsed.arguments
    later: list[str] = []
    rest: list[str] = []
    own = _OWN.get(parsed.subcommand, ())
    at = 0
    while at < len(words) and words[at] != "--":
        names, has_value, _ = _names(words[at]) if words[at][:1] == "-" else ([], "", "")
        last = _BY_FLAG.get(names[-1]) if names else None
        end = at + (2 if last and last.kind != "count" and not has_value else 1)
        if not names or names[0] not in _BY_FLAG or names[0] in own:
            rest += words[at:end]
        else:
            _take_option(parsed.flags, words[at], words, at + 1)
            later += words[at:end]
        at = end
    parsed.arguments = rest + words[at:]
    parsed.ordered = [*before, *later, parsed.subcommand, *parsed.arguments]


def _take_option(flags: "dict[str, object]", word: str, argv: "list[str]", at: int) -> int:
    """Take one word of options, and its value from `argv[at]` if it needs one; the new `at`."""
    names, has_value, text = _names(word)
    for name in names:
        option = _BY_FLAG.get(name)
        if option is None:
            raise UsageError(
                f"no such option: {name}",
                nearest(name, [*_BY_FLAG, *_HELP])
                or "options of the command itself go after it, or after --; see sandrun --help",
            )
        if option.kind == "count":
            if has_value and name == names[-1]:  # a value belongs to the last letter of a bundle
                raise UsageError(f"option {name} takes no value")
            flags[option.key] = int(str(flags.get(option.key, 0))) + 1
            continue
        if not has_value:
            if at >= len(argv):
                raise UsageError(f"option {name} needs a value: {_right(option)}")
            text = argv[at]
            at += 1
        try:
            flags[option.key] = option.convert(text)
        except ValueError as error:
            raise UsageError(f"{name} {text!r}: expected {error}") from None
    return at


_ALIKE = 0.74  # `mkae` for `make` is 0.75, as difflib counts


def alike(word: str, known: "Iterable[str]") -> str:
    """The known word that a mistyped one is most like; '' if none is near, or it is too short (or
    so long that comparing would take its time)."""
    if not 4 <= len(word) <= 64:
        return ""
    import difflib

    return next(iter(difflib.get_close_matches(word, sorted(known), 1, _ALIKE)), "")


def nearest(word: str, known: "Iterable[str]") -> str:
    """A hint at the word that was meant; '' if nothing comes to mind."""
    meant = alike(word, known)
    return f"did you mean: {meant}" if meant else ""


def _names(word: str) -> "tuple[list[str], str, str]":
    """The flags of a word that starts with a dash, `=` if a value follows in it, and that value."""
    if word.startswith("--"):
        name, has_value, text = word.partition("=")
        return [name], has_value, text
    return _unbundle(word)


def _unbundle(word: str) -> "tuple[list[str], str, str]":
    """`-vv` is two flags, `-m4G` a flag with its value, `-vm4G` both."""
    names = []
    for index, letter in enumerate(word[1:], 2):
        names.append("-" + letter)
        option = _BY_FLAG.get("-" + letter)
        if option is None or option.kind != "count":
            return names, word[index:] and "=", word[index:]
    return names, "", ""


def _right(option: Option) -> str:
    return "one of " + ", ".join(option.choices) if option.choices else RIGHT[option.kind]
