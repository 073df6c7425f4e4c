"""The one table of options, and the tiny parser of the hot path.

`OPTIONS` drives the parser here, click's (`sandrun.cli.app`), the settings and README's table, so
that a flag, a variable and a key in a file can never drift apart. The parser here exists because
importing click costs more than everything else that `sandrun -- true` does; a test runs one
corpus of command lines through both.
"""

from sandrun.model import MIB, UsageError

MEMORY_FLOOR = MIB
"""Below this the kernel kills a command before its first instruction (64 KiB killed `true`)."""


def _number(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e18:  # also refuses nan
        raise ValueError
    return value


def parse_size(text: str) -> int:
    """`512` (MiB), `300M`, `4G`, `1.5GiB` as bytes. Raises ValueError."""
    word = text.strip().upper()
    if word.endswith("B") and word[-2:-1].isalpha():
        word = word[:-1]
    if word.endswith("I"):
        word = word[:-1]
    scale = {"B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(word[-1:])
    size = _number(word[:-1]) * scale if scale else _number(word) * MIB
    if size < MEMORY_FLOOR:
        raise ValueError("at least 1M")
    return int(size)


def parse_bytes(text: str) -> int:
    """A size that may be nothing: `0`, `512M`. Raises ValueError."""
    return 0 if text.strip() in ("0", "0M") else parse_size(text)


def parse_rate(text: str) -> int:
    """Bytes or operations a second: `1000`, `500K`, `20M`. Raises ValueError."""
    word = text.strip().upper()
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(word[-1:], 1)
    rate = int(_number(word[:-1] if scale > 1 else word) * scale)
    if rate < 1:
        raise ValueError("at least 1")
    return rate


def parse_share(text: str) -> float:
    """A number of processors: `1.5`. Raises ValueError."""
    value = _number(text)
    if value < 0.01:
        raise ValueError("at least 0.01")
    return value


def parse_weight(text: str) -> int:
    """A weight as cgroup v2 has it: 1 to 10000, where 100 is everybody's. Raises ValueError."""
    value = int(text)
    if not 1 <= value <= 10000:
        raise ValueError("at least 1 and at most 10000")
    return value


def parse_tasks(text: str) -> int:
    """A number of tasks, at least 1. Raises ValueError."""
    value = int(text)
    if not 1 <= value < 1 << 31:
        raise ValueError("at least 1")
    return value


def parse_span(text: str) -> float:
    """`90`, `1.5s`, `200ms`, `10m`, `2h`, `1d` as seconds. Raises ValueError."""
    word = text.strip().lower()
    for unit, scale in (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)):
        if word.endswith(unit):
            return _number(word[: -len(unit)]) * scale
    return _number(word)


def parse_interval(text: str) -> float:
    """A span that is not zero. Raises ValueError."""
    value = parse_span(text)
    if value <= 0:
        raise ValueError("more than 0")
    return value


_PRIORITIES = {"high": 3600, "normal": 0, "low": -3600}
"""Head starts in seconds: a high one goes before normal ones that came up to an hour earlier."""
_MOST_HEAD_START = 10**6


def parse_priority(text: str) -> int:
    """`high`, `normal`, `low` or a head start in seconds, as seconds. Raises ValueError."""
    word = text.strip().lower()
    value = _PRIORITIES[word] if word in _PRIORITIES else int(word)
    if abs(value) > _MOST_HEAD_START:
        raise ValueError(f"at least {-_MOST_HEAD_START} and at most {_MOST_HEAD_START}")
    return value


def parse_slots(text: str) -> int:
    """How many runs of a queue may run at once. Raises ValueError."""
    value = int(text)
    if not 1 <= value <= 64:
        raise ValueError("at least 1 and at most 64")
    return value


def parse_pool(text: str) -> str:
    """`off`, a share of the memory (`80%`), or a size, which becomes bytes. Raises ValueError."""
    word = text.strip().lower()
    if word in ("off", "no", "false", "0"):
        return "off"
    if word.endswith("%"):
        if not 0 < _number(word[:-1]) <= 100:
            raise ValueError("more than 0% and at most 100%")
        return word
    return str(parse_size(word))


def parse_count(text: str) -> int:
    """A level: `2`, or a word for on and off. Raises ValueError."""
    word = text.strip().lower()
    if word in ("", "no", "off", "false"):
        return 0
    if word in ("yes", "on", "true"):
        return 1
    value = int(word)
    if not 0 <= value < 100:
        raise ValueError
    return value


def parse_text(text: str) -> str:
    """Any text but the empty one. Raises ValueError."""
    if not text or "\0" in text:
        raise ValueError
    return text


class Option:
    """One setting: its key in files, its flags, its variables, its values.

    `kind` names the parser of its values; `count` is a flag that may be repeated. `variable` is the
    plain environment variable (the `SANDRUN_` one follows from the key). `scope` is where it
    may be set: `all`, or `flag` for what makes sense only there.
    """

    __slots__ = (
        "choices",
        "default",
        "flags",
        "help",
        "key",
        "kind",
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

    def convert(self, text: str) -> object:
        """The value of a text. Raises ValueError with what would be right."""
        if self.kind == "choice":
            if text not in self.choices:
                raise ValueError("one of " + ", ".join(self.choices))
            return text
        try:
            return _PARSERS[self.kind](text)
        except (ValueError, OverflowError) as error:
            # Only our own parsers raise with advice; float() and int() speak Python.
            advice = str(error) if str(error).startswith(("at least", "more than")) else ""
            raise ValueError(f"{_RIGHT[self.kind]}{', ' + advice if advice else ''}") from None


_PARSERS = {
    "size": parse_size,
    "bytes": parse_bytes,
    "rate": parse_rate,
    "share": parse_share,
    "weight": parse_weight,
    "tasks": parse_tasks,
    "span": parse_span,
    "interval": parse_interval,
    "priority": parse_priority,
    "slots": parse_slots,
    "pool": parse_pool,
    "count": parse_count,
    "text": parse_text,
}
_RIGHT = {
    "size": "a size such as 512M, 4G or a number of MiB",
    "bytes": "a size such as 0, 512M, 4G or a number of MiB",
    "rate": "a rate a second such as 1000, 500K or 20M",
    "share": "a number of processors such as 1 or 1.5",
    "weight": "a weight from 1 to 10000",
    "tasks": "a number of tasks",
    "span": "a time such as 30, 90s, 10m or 2h",
    "interval": "a time such as 5, 0.5s or 200ms",
    "priority": "high, normal, low or a head start in seconds",
    "slots": "a number of runs",
    "pool": "off, a share such as 80%, or a size such as 8G",
    "count": "a number from 0 to 99, or true or false",
    "text": "a text that is not empty",
}

BACKENDS = ("auto", "cgroup2", "systemd", "cgroup1", "rlimit", "none")

OPTIONS = (
    Option(
        "memory",
        ("-m", "--memory"),
        "size",
        2048 * MIB,
        "Memory for the whole process tree: 512M, 4G, or a number of MiB.",
        "SIZE",
        "MEMORY_LIMIT_MB",
    ),
    Option(
        "timeout",
        ("-t", "--timeout"),
        "span",
        0.0,
        "Wall time after which the run is ended (SIGTERM, --grace, SIGKILL); 0: none.",
        "TIME",
        "TIMEOUT",
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
        "Refuse to run (exit 125) unless the kernel enforces the limits.",
        "WHAT",
        choices=("any", "kernel"),
    ),
    Option(
        "swap",
        ("--swap",),
        "bytes",
        0,
        "Swap on top of the memory; 0: none.",
        "SIZE",
    ),
    Option(
        "pids",
        ("--pids",),
        "tasks",
        8192,
        "Processes and threads of the tree; more than a build needs, less than a fork bomb.",
        "NUMBER",
    ),
    Option("cpus", ("--cpus",), "share", 0.0, "Processors' worth of time: 1.5.", "NUMBER"),
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
    ),
    Option(
        "io_write_bps",
        ("--io-write-bps",),
        "rate",
        -1,
        "Bytes a second written to the project's disk.",
        "RATE",
    ),
    Option(
        "io_read_iops",
        ("--io-read-iops",),
        "rate",
        -1,
        "Reads a second from the project's disk.",
        "RATE",
    ),
    Option(
        "io_write_iops",
        ("--io-write-iops",),
        "rate",
        -1,
        "Writes a second to the project's disk.",
        "RATE",
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
        "How many runs of this queue may run at once.",
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
        "Give up at once (exit 75) when it is not our turn.",
    ),
    Option(
        "wait_timeout",
        ("--wait-timeout",),
        "span",
        0.0,
        "Give up (exit 75) after waiting so long; 0: never. Who comes back soon has its old place.",
        "TIME",
    ),
    Option(
        "git_wait",
        ("--git-wait",),
        "span",
        10.0,
        "Longest wait for a git operation under way in the project's repository.",
        "TIME",
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
        "text",
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
        "quiet",
        ("-q", "--quiet"),
        "count",
        0,
        "Say nothing of waiting; twice: nothing at all.",
    ),
)

SUBCOMMANDS = frozenset({"config", "doctor", "kill", "pause", "queue", "resume", "status"})

_BY_FLAG = {flag: option for option in OPTIONS for flag in option.flags}
_HELP = ("-h", "--help", "--version")


class Parsed:
    """A command line taken apart: `flags` by key, then either a `command` or a `subcommand`.

    `subcommand` is '' for a run, else its name or `--help` / `--version`.
    """

    __slots__ = ("command", "flags", "subcommand")

    def __init__(self) -> None:
        self.flags: dict[str, object] = {}
        self.command: list[str] = []
        self.subcommand = ""


def parse(argv: "list[str]") -> Parsed:
    """Take `argv` (without the program's name) apart. Raises UsageError.

    Options end at `--` or at the first word that is no option. That word starts the command,
    unless it is a subcommand and no `--` came before.
    """
    parsed = Parsed()
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
            else:
                parsed.command = argv[at - 1 :]
            break
        at = _take_option(parsed.flags, word, argv, at)
    return parsed


def _take_option(flags: "dict[str, object]", word: str, argv: "list[str]", at: int) -> int:
    """Take one word of options, and its value from `argv[at]` if it needs one; the new `at`."""
    if word.startswith("--"):
        name, has_value, text = word.partition("=")
        names = [name]
    else:
        names, has_value, text = _unbundle(word)
    for name in names:
        option = _BY_FLAG.get(name)
        if option is None:
            raise UsageError(
                f"no such option: {name}",
                "options of the command itself go after it, or after --; see sandrun --help",
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
    return "one of " + ", ".join(option.choices) if option.choices else _RIGHT[option.kind]
