"""Settings and their values as people write them: sizes, times, rates, priorities.

Each parser returns the value or raises ValueError. The error's message is advice for people only if
it starts with `at least` or `more than`.
"""

import os

from sandrun.model import MIB

MEMORY_FLOOR = MIB
"""With less, the kernel kills a command before its first instruction (64 KiB killed `true`)."""
_CEILING = 1 << 60
"""The largest quantity. Kernels use signed 64-bit numbers, and sometimes add several of them."""
_LONGEST = 10 * 365 * 86400.0


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
    if not MEMORY_FLOOR <= size <= _CEILING:
        raise ValueError("at least 1M and at most 1048576T")
    return int(size)


def parse_bytes(text: str) -> int:
    """A size that may be zero: `0`, `512M`. Raises ValueError."""
    return 0 if text.strip() in ("0", "0M") else parse_size(text)


def parse_rate(text: str) -> int:
    """Bytes or operations per second: `1000`, `500K`, `20M`. Raises ValueError."""
    word = text.strip().upper()
    scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(word[-1:], 1)
    rate = int(_number(word[:-1] if scale > 1 else word) * scale)
    if not 1 <= rate <= _CEILING:
        raise ValueError("at least 1 and at most 1073741824G")
    return rate


def parse_share(text: str) -> float:
    """A number of processors: `1.5`. Raises ValueError."""
    value = _number(text)
    if value < 0.01:
        raise ValueError("at least 0.01")
    return value


def parse_weight(text: str) -> int:
    """A weight of cgroup v2: 1 to 10000; the default is 100. Raises ValueError."""
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
    """`90`, `1.5s`, `200ms`, `10m`, `2h`, `1d` as seconds. A time of more than ten years becomes
    ten years, which in effect never pass. Raises ValueError."""
    word = text.strip().lower()
    for unit, scale in (("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86400.0)):
        if word.endswith(unit):
            return min(_number(word[: -len(unit)]) * scale, _LONGEST)
    return min(_number(word), _LONGEST)


def parse_interval(text: str) -> float:
    """A time span that is not zero. Raises ValueError."""
    value = parse_span(text)
    if value <= 0:
        raise ValueError("more than 0")
    return value


_PRIORITIES = {"high": 3600, "normal": 0, "low": -3600}
"""Head starts in seconds: a high ticket precedes normal ones that arrived up to an hour earlier."""
_MOST_HEAD_START = 10**6


def parse_priority(text: str) -> int:
    """`high`, `normal`, `low` or a head start in seconds, as seconds. Raises ValueError."""
    word = text.strip().lower()
    value = _PRIORITIES[word] if word in _PRIORITIES else int(word)
    if abs(value) > _MOST_HEAD_START:
        raise ValueError(f"at least {-_MOST_HEAD_START} and at most {_MOST_HEAD_START}")
    return value


def parse_slots(text: str) -> int:
    """The number of runs of a queue that may run at once. Raises ValueError."""
    value = int(text)
    if not 1 <= value <= 64:
        raise ValueError("at least 1 and at most 64")
    return value


def parse_pool(text: str) -> str:
    """`off`, a share of the memory (`80%`), or a size (converted to bytes). Raises ValueError."""
    word = text.strip().lower()
    if word in ("off", "no", "false", "0"):
        return "off"
    if word.endswith("%"):
        if not 0 < _number(word[:-1]) <= 100:
            raise ValueError("more than 0% and at most 100%")
        return word
    return str(parse_size(word))


def parse_count(text: str) -> int:
    """A level: `2`, or a word for on or off. Raises ValueError."""
    word = text.strip().lower()
    if word in ("", "no", "off", "false"):
        return 0
    if word in ("yes", "on", "true"):
        return 1
    value = int(word)
    if not 0 <= value < 100:
        raise ValueError
    return value


def parse_signal(text: str) -> int:
    """The number of `TERM`, `SIGINT`, `rtmin+1`, `15`. Raises ValueError."""
    from sandrun.bare import signal as _signal

    word = text.strip().upper().removeprefix("SIG")
    name, plus, more = word.partition("+")
    value = int(word) if word.isdigit() else getattr(_signal, "SIG" + name, None)
    number = int(value) + (int(more) if plus else 0) if isinstance(value, int) else 0
    if number not in _signal.valid_signals() or not name.isalnum():
        raise ValueError
    return number


def parse_text(text: str) -> str:
    """A text that is not empty and contains no NUL. Raises ValueError."""
    if not text or "\0" in text:
        raise ValueError
    return text


def parse_file(text: str) -> str:
    """An absolute path. Raises ValueError."""
    if not os.path.isabs(text):
        raise ValueError
    return parse_text(text)


def parse_name(text: str) -> str:
    """A text that is no longer than a file name may be. Raises ValueError."""
    if len(os.fsencode(text)) > 255:
        raise ValueError("at most 255 bytes")
    return parse_text(text)


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
    "signal": parse_signal,
    "text": parse_text,
    "name": parse_name,
    "file": parse_file,
}
_EXPECTED = {
    "size": "a size such as 512M, 4G or a number of MiB",
    "bytes": "a size such as 0, 512M, 4G or a number of MiB",
    "rate": "a rate per second such as 1000, 500K or 20M",
    "share": "a number of processors such as 1 or 1.5",
    "weight": "a weight from 1 to 10000",
    "tasks": "a number of tasks",
    "span": "a time such as 30, 90s, 10m or 2h",
    "interval": "a time such as 5, 0.5s or 200ms",
    "priority": "high, normal, low or a head start in seconds",
    "slots": "a number of runs",
    "pool": "off, a share such as 80%, or a size such as 8G",
    "count": "a number from 0 to 99, or true or false",
    "signal": "a signal such as INT, SIGTERM or 15",
    "text": "a text that is not empty",
    "name": "a name of 1 to 255 bytes",
    "file": "a file, by its absolute path",
}


class Option:
    """One setting: its key in files, its flags, its variables, its values.

    `kind` selects the parser of its values; a `count` is a flag that may be repeated. `variable` is
    the plain environment variable (the `SANDRUN_` one follows from the key). `alias` is a second
    key with the same meaning. `scope` is where the option may be set: `all`, or `flag` for the
    command line only.

    `is_limit` decides what a project's file may set before the user has run `sandrun trust`
    (`sandrun.config.settings`). A limit takes effect at once, because it bounds the project's own
    run; but it never loosens a limit of the user's own file. Every other option needs trust, and
    the user's own file overrides it: such options affect the user's protection (backend, leftovers,
    kill_signal, grace, check_interval, detach), the user's other runs (pool, priority, queue,
    slots, the weights) and files (history_age, history_size, metrics_textfile), whether there is a
    run at all (require, no_wait), what is reported to the user (quiet, verbose, color) or what the
    command sees (clean_git_env, daemons, private_tmp, private_ipc). A stricter `require` needs
    trust, too: it refuses runs, and the user decides whether a run without a kernel's limits is
    better than none.
    """

    __slots__ = (
        *("alias", "choices", "default", "flags", "help", "is_limit", "key", "kind", "metavar"),
        *("scope", "variable"),
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
        self.is_limit = limit

    def names(self) -> "tuple[str, ...]":
        """Its names in files and, with `SANDRUN_`, in the environment."""
        return (self.key, self.alias) if self.alias else (self.key,)

    def expected(self) -> str:
        """A description of its valid values, such as `a number of runs`."""
        return "one of " + ", ".join(self.choices) if self.choices else _EXPECTED[self.kind]

    def is_tighter(self, value: object, other: object) -> bool:
        """Whether a limit of `value` allows less than one of `other`. For a limit whose default is
        0.0, 0 means no limit."""
        assert isinstance(value, int | float) and isinstance(other, int | float)
        if self.default == 0.0 and isinstance(self.default, float):
            return (value or float("inf")) < (other or float("inf"))
        return value < other

    def convert(self, text: str) -> object:
        """The value that `text` stands for. Raises ValueError with a description of valid ones."""
        if self.kind == "choice":
            if text not in self.choices:
                raise ValueError(self.expected())
            return text
        try:
            return _PARSERS[self.kind](text)
        except (ValueError, OverflowError) as error:
            # Only the messages of our own parsers are advice for people, not those of float() and
            # int().
            advice = str(error) if str(error).startswith(("at least", "more than")) else ""
            raise ValueError(f"{self.expected()}{', ' + advice if advice else ''}") from None
