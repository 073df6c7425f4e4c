"""The post-mortem of a run that hit its memory limit: the last minute, who had the memory, what the
kernel counted, whose limit it was, and what to change."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sandrun import history
from sandrun.insight import plots, records
from sandrun.insight.samples import Event, Samples
from sandrun.insight.suggest import suggest
from sandrun.model import MIB, size_text, span_text
from sandrun.types import Record

_MINUTE = 60.0
_WHOSE = {
    "own": "the run's own limit of {limit}",
    "outer": "an enclosing limit, of a container, a slice or the host (the run's own is {limit})",
}


_SEARCHED = 1 << 22
"""Bytes at the end of the history that are searched for earlier runs, some ten thousand. The end of
a run that hit its limit searches them, too, and must not take long."""


@dataclass(frozen=True)
class Advice:
    """What to change after a limit was reached: options of a run, and why these values."""

    options: str
    why: str


def advice(record: Record) -> "Advice | None":
    """What past runs of the command suggest, after a limit that a run can set was reached."""
    key = {"memory": "memory", "timeout": "timeout"}.get(record.get("reason", ""))
    if key is None:
        return None
    past = filter(None, map(records.decode, history.last_lines(_SEARCHED)))
    same = ("project", "command")
    found = suggest(p for p in past if all(p.get(k) == record.get(k) for k in same))
    why = found.evidence.get(key, "")
    if value := found.values().get(key):
        return Advice(f"--{key} {value}", why)
    if key == "memory" and (limit := record.get("limit", 0)):
        return Advice(f"--memory {max(2 * limit // MIB, 1)}M", f"twice the limit: {why}")
    return None


def last_limit(seen: "Samples | None") -> "Event | None":
    """The last time that a memory limit was reached; None: it never was."""
    hits = [event for event in seen.events if event.kind == "limit"] if seen else []
    return hits[-1] if hits else None


def lines(seen: Samples, hit: Event, wide: int, blocks: bool) -> "Iterator[str]":
    """The post-mortem of one hit."""
    whose = _WHOSE.get(str(hit.details.get("whose")), "a memory limit of {limit}")
    limit = size_text(seen.limit or None)
    yield f"at the limit, after {span_text(hit.t)}: {whose.format(limit=limit)}"
    start = max(0.0, hit.t - _MINUTE)
    memory = [(p.t, float(p.memory)) for p in seen.points if start <= p.t <= hit.t + 1]
    if start and memory:  # without start, the curve of the whole run shows the same
        yield from plots.Plot(memory, start, hit.t, seen.limit, wide, blocks).lines()
    for process in _rows(hit.details.get("top")):
        command = str(process.get("command", ""))
        memory_text = size_text(_number(process.get("memory")))
        yield f"  {memory_text:>9}  pid {process.get('pid')}  {command}"
    kinds = _named(hit.details.get("kinds"))
    if kinds:
        yield "  memory    " + ", ".join(f"{kind} {size_text(size)}" for kind, size in kinds)
    counters = _named(hit.details.get("counters"))
    if counters:
        yield "  kernel    " + ", ".join(f"{name} {value}" for name, value in counters)


def _rows(value: object) -> "list[dict[str, Any]]":
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _named(value: object) -> "list[tuple[str, int]]":
    pairs = value.items() if isinstance(value, dict) else ()
    return [(str(name), number) for name, number in pairs if isinstance(number, int)]


def _number(value: object) -> "int | None":
    return value if isinstance(value, int) else None
