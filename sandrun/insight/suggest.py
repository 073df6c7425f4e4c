"""Limits from past runs: a memory limit, a timeout and a limit on processes, with the evidence.

Promises that no suggestion is lower than what a counted run used, and that none is made from fewer
than `ENOUGH` runs. A run that a limit ended would have used more than that limit, so the limit is
doubled, as the message at the end of such a run suggests.

The margins, on top of the highest use of all counted runs (a percentile would end the other runs):
- Memory: a quarter, at least 64 MiB. A build grows with its code, and differs by a few percent
  between runs. Kubernetes' vertical autoscaler adds 15 % to a percentile and 20 % or 100 MB after a
  limit was hit; a build that is ended has to be repeated by hand, so it gets more.
- Wall time: twice. It depends on caches and on what else the machine does; a timeout is there for
  runs that never end. (Jenkins' build-timeout plug-in waits for 150 % of the last three builds.)
- Processes: twice, at least 256. `make -j` starts more of them on a larger machine.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from sandrun.insight import records
from sandrun.insight.wording import count, moment
from sandrun.model import MIB, command_text, plain, size_text, span_text
from sandrun.types import Record

ENOUGH = 5
"""Runs. With fewer, the highest use so far says little about the next run."""
_PER_COMMAND = 100  # the newest runs of each command count
_DAYS = 90  # older runs than that, seen from the newest one, do not count
_NEVER_RAN = ("not-started", "left", "failed", "lost")


@dataclass(frozen=True)
class Suggestion:
    """What the project's settings could be; None: too few runs. `evidence` has a line for each of
    `memory`, `timeout` and `pids`: the reason for the value, or why there is none."""

    runs: int
    commands: int
    memory: "int | None"
    timeout: "float | None"
    pids: "int | None"
    evidence: "dict[str, str]" = field(default_factory=dict)

    def values(self) -> "dict[str, str | int]":
        """The suggested settings, in the form that a settings file has."""
        found: dict[str, str | int] = {}
        if self.memory is not None:
            found["memory"] = f"{self.memory // MIB}M"
        if self.timeout is not None:
            found["timeout"] = _span_value(self.timeout)
        if self.pids is not None:
            found["pids"] = self.pids
        return found


class _Highest:
    """The highest use in some runs, and the highest limit that ended one of them."""

    def __init__(self) -> None:
        self.runs = self.ended = 0
        self.most = self.limit = -1.0
        self.run: Record = {}
        self.ended_run: Record = {}

    def add(self, record: Record, value: "float | None", was_ended: bool) -> None:
        if value is None:
            return
        self.runs += 1
        self.ended += was_ended
        if was_ended and value > self.limit:
            self.limit, self.ended_run = value, record
        elif not was_ended and value > self.most:
            self.most, self.run = value, record

    @property
    def is_open(self) -> bool:
        """Whether the highest use is unknown, because a limit ended the run that had it."""
        return self.limit >= self.most

    @property
    def value(self) -> float:
        return max(self.most, self.limit)


def recent(project: str, command: str = "") -> "Iterator[Record]":
    """The newest runs of each of a project's commands, of the last months in which it had runs."""
    counts: dict[tuple[str, ...], int] = {}
    newest = 0.0
    for record in records.newest_first(project=project, command=command):
        newest = newest or record.get("since", 0.0)
        if record.get("since", newest) < newest - _DAYS * 86400:
            continue
        words = tuple(record.get("command", ()))
        counts[words] = counts.get(words, 0) + 1
        if counts[words] <= _PER_COMMAND:
            yield record


def suggest(runs: "Iterable[Record]") -> Suggestion:
    """The limits that would have been enough for all these runs."""
    memory, wall, tasks = _Highest(), _Highest(), _Highest()
    commands = set()
    counted = 0
    for record in runs:
        reason = record.get("reason")
        if reason in _NEVER_RAN:
            continue
        counted += 1
        commands.add(tuple(record.get("command", ())))
        peak, limit = record.get("peak"), record.get("limit", 0)
        is_full = reason == "memory"
        memory.add(record, max(peak or 0, limit) if is_full else peak, is_full)
        if reason in ("exit", "timeout"):  # another end came before the run's own
            wall.add(record, record.get("wall"), reason == "timeout")
        tasks.add(record, _processes(record), False)
    size = _memory(memory)
    span = _timeout(wall)
    pids = _pids(tasks)
    evidence = {"memory": size[1], "timeout": span[1], "pids": pids[1]}
    return Suggestion(counted, len(commands), size[0], span[0], pids[0], evidence)


def _processes(record: Record) -> "int | None":
    value = record.get("processes")
    return value if isinstance(value, int) and value > 0 else None


def _memory(found: _Highest) -> "tuple[int | None, str]":
    if found.runs < ENOUGH:
        return None, _too_few(found.runs, "a known peak")
    if found.is_open:
        value = 2 * found.limit
        text = (
            f"at least {size_text(int(found.limit))}: {_count(found)} reached this limit "
            f"({_which(found.ended_run)}); doubled"
        )
    else:
        value = max(found.most * 1.25, found.most + 64 * MIB)
        text = (
            f"highest of {found.runs} runs: {size_text(int(found.most))} ({_which(found.run)}); "
            + ("+ 25 %" if found.most >= 256 * MIB else "+ 64 MiB")
        )
    return _rounded(value / MIB, 64 if value < 1 << 30 else 256) * MIB, text


def _timeout(found: _Highest) -> "tuple[float | None, str]":
    if found.runs < ENOUGH:
        return None, _too_few(found.runs, "an end of their own")
    value = 2 * found.value
    if found.is_open:
        text = (
            f"at least {span_text(found.limit)}: {_count(found)} reached this timeout "
            f"({_which(found.ended_run)}); doubled"
        )
    else:
        text = (
            f"longest of {found.runs} runs: {span_text(found.most)} ({_which(found.run)}); doubled"
        )
    return _rounded(value, 60 if value < 3600 else 600), text


def _pids(found: _Highest) -> "tuple[int | None, str]":
    if found.runs < ENOUGH:
        return None, _too_few(found.runs, "a known number of processes")
    value = max(2 * found.most, 256)
    text = f"most of {found.runs} runs: {found.most:.0f} ({_which(found.run)}); "
    return _rounded(value, 64), text + ("doubled" if found.most >= 128 else "at least 256")


def _too_few(runs: int, what: str) -> str:
    had = f"only {count(runs, 'run')}" if runs else "no run"
    return f"{had} with {what}; {ENOUGH} are needed"


def _count(found: _Highest) -> str:
    return f"{found.ended} of {found.runs} runs"


def _which(record: Record) -> str:
    """A run in a few words: its command, day and id."""
    command = plain(command_text(record.get("command", [])))
    if len(command) > 30:
        command = command[:29] + "…"
    day = moment(record.get("since", 0.0), "%Y-%m-%d")
    return f"{command}, {day}, {record.get('id', 'no id')}"


def _rounded(value: float, step: int) -> int:
    return math.ceil(value / step) * step


def _span_value(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}h" if whole % 3600 == 0 else f"{whole // 60}m"


def text(found: Suggestion, project: str) -> "list[str]":
    """The suggestion in lines that can be pasted into a settings file."""
    many = f"{count(found.runs, 'run')} of {count(found.commands, 'command')}"
    lines = [f"# {project}: {many} in the last {_DAYS} days with runs"]
    values = found.values()
    for key, reason in found.evidence.items():
        value = values.get(key)
        shown = value if isinstance(value, int) else f'"{value}"'
        lines += [f"# {reason}", f"{key} = {shown}"] if value else [f"# no {key}: {reason}"]
    return lines
