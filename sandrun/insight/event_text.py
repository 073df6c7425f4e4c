"""The events of a run in words; for an event of a later version, its name and its figures."""

from typing import Any

from sandrun.insight.samples import Event
from sandrun.model import size_text

_TIMES = {
    "timeout": "its limit on wall time",
    "cpu-time": "its limit on CPU time",
    "idle": "its limit on idle time",
}
_WHOSE = {"own": "its own memory limit", "outer": "an enclosing memory limit"}
_LEFT = {"kill": "ended", "wait": "waited for", "leave": "left alone"}
_NAMED = 3


def text(event: Event) -> str:
    """One event in one line, without its time."""
    kind, details = event.kind, event.details
    if kind == "warned":
        memory = details.get("memory")
        size = f": {size_text(memory)}" if isinstance(memory, int) else ""
        return f"more than half of the memory limit in use{size}"
    if kind == "limit":
        return f"{_WHOSE.get(str(details.get('whose')), 'a memory limit')} was reached"
    if kind == "timeout":
        return f"{_TIMES.get(str(details.get('reason')), 'a time limit')} was reached"
    if kind == "stopped":
        return "stopped (Ctrl-Z, SIGSTOP)"
    if kind == "leftovers":
        return _leftovers(details)
    if kind == "escaped":
        return f"{_process(details)} left the container, to {details.get('group', 'another group')}"
    known = (f"{key} {value}" for key, value in details.items() if isinstance(value, str | int))
    return " ".join([kind, *(f"({fact})" for fact in known)])


def _leftovers(details: "dict[str, Any]") -> str:
    did = _LEFT.get(str(details.get("action")), "found")
    count = details.get("count")
    many = "1 process" if count == 1 else f"{count} processes"
    rows = details.get("top")
    top = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    named = ", ".join(map(_process, top[:_NAMED]))
    return f"{did} {many} that the command left behind{': ' + named if named else ''}"


def _process(row: "dict[str, Any]") -> str:
    return f"{row.get('command', 'a process')} (pid {row.get('pid')})"
