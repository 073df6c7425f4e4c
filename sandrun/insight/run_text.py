"""One run as text for people: what it was, how it ended, its memory, its events, and the
post-mortem of a limit.

Promises that each line went through `model.plain` and that plots are no wider than the terminal. A
line with a command or a path may be wider.
"""

import signal
from collections.abc import Iterator
from typing import Any

from sandrun.insight import event_text, plots, post_mortem, wording
from sandrun.insight.run_log import RunLog
from sandrun.insight.samples import Samples
from sandrun.model import command_text, plain, size_text, span_text
from sandrun.types import Record

_RESULTS = {
    "memory": "ended at its memory limit of {limit}",
    "outer-memory": "ended at an enclosing memory limit (its own is {limit})",
    "timeout": "ended at its limit on wall time",
    "cpu-time": "ended at its limit on CPU time",
    "idle": "ended because it was idle for too long",
    "parent": "ended because the process that had started sandrun died",
    "escaped": "ended because a process left its container",
    "not-started": "the command could not be started",
    "left": "a signal ended it before its command was started",
    "failed": "sandrun failed",
    "lost": "its sandrun was killed",
}
_OUTER_ADVICE = "check: the container's memory limit, the slice's MemoryMax, and the host's memory"


def result(record: Record) -> str:
    """How a run ended, in words and with its exit code."""
    reason, code = record.get("reason", "lost"), record.get("exit")
    if reason == "exit":
        return "succeeded" if code == 0 else f"failed: exit {code}"
    if reason == "signal":
        text = f"ended by {_signal_name((code or 128) - 128)}"
    else:
        limit = record.get("limit") or None
        text = _RESULTS.get(reason, reason).format(limit=size_text(limit))
    return text if code is None else f"{text}: exit {code}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def lines(log: RunLog, wide: int, blocks: bool) -> "list[str]":
    """The lines that `sandrun log` prints. `wide`: the terminal's columns; `blocks`: whether it can
    show block characters."""
    rows = [f"run {log.id}: {command_text(log.record.get('command', []))}"]
    rows += [f"  {label:9} {text}" for label, text in _facts(log) if text]
    seen = log.samples
    if seen is None or not seen.points:
        rows += ["", f"no samples{_why_none(log)}"] if log.state != "waits" else []
    else:
        rows += ["", *_plots(seen, 0.0, seen.points[-1].t, wide, blocks)]
    if seen and seen.events:
        rows += [
            "",
            "events",
            *(f"  {span_text(e.t):>12}  {event_text.text(e)}" for e in seen.events),
        ]
    if seen and (hit := post_mortem.last_limit(seen)):
        rows += ["", *post_mortem.lines(seen, hit, wide, blocks)]
    if advice := post_mortem.advice(log.record):
        rows += ["", f"suggested: {advice.options} ({advice.why})"]
    elif log.record.get("reason") == "outer-memory":
        rows += ["", _OUTER_ADVICE]
    return [plain(row) for row in rows]


def _why_none(log: RunLog) -> str:
    if log.record.get("backend") == "none":
        return ": the backend none measures nothing"
    if log.state == "runs":
        return " yet"
    return ": it ran for less than a second" if log.record.get("wall", 0.0) < 1.1 else " are kept"


def _facts(log: RunLog) -> "Iterator[tuple[str, str]]":
    record = log.record
    queue, cwd = record.get("project", ""), record.get("cwd", "")
    yield "project", queue if queue == cwd else f"{queue}, started in {cwd}" if queue else cwd
    yield "result", _state(log)
    yield "time", _times(log)
    yield "waited", _wait(log)
    yield "memory", _memory(record)
    yield "CPU", _cpu(record)
    yield "processes", _processes(log)
    yield "backend", record.get("backend", "")


def _state(log: RunLog) -> str:
    if log.state == "waits":
        return f"waits, position {log.position}"
    if log.state == "runs":
        return f"runs (pid {log.record.get('pid')})"
    if log.state == "lost":
        return "its sandrun was killed; the next run of the queue records how it ended"
    return result(log.record)


def _times(log: RunLog) -> str:
    if log.state == "waits":
        return f"since {_clock(log.record['since'])}"
    since, wall = log.record.get("since"), log.record.get("wall")
    if since is None:
        return ""
    text = _clock(since)
    if log.state != "runs" and wall is not None and wall >= 1:
        text += f" to {_clock(since + wall, since)}"
    return text + ("" if wall is None else f", {span_text(wall)}")


def _clock(moment: float, beside: float = 0.0) -> str:
    """A local time; without the date if that is the one of `beside`."""
    day = "%Y-%m-%d"
    same = wording.moment(moment, day) == wording.moment(beside, day)
    return wording.moment(moment, "%H:%M:%S" if same else f"{day} %H:%M:%S")


def _wait(log: RunLog) -> str:
    wait = log.record.get("wait", 0.0)
    if wait < 0.05:
        return ""
    blockers: Any = log.record.get("waited_for") or (log.samples.waited_for if log.samples else [])
    named = ", ".join(
        f"{one['command']} ({one['id']}, {span_text(one['seconds'])})" for one in blockers
    )
    return span_text(wait) + (f", for {named}" if named else "")


def _memory(record: Record) -> str:
    peak, limit = record.get("peak"), record.get("limit")
    if peak is None:
        return ""
    text = f"peak {size_text(peak)}"
    if limit:
        text += f" of {size_text(limit)} ({100 * peak // limit} %)"
    if (stalled := record.get("stalled") or 0.0) >= 0.1:
        text += f", waited {span_text(stalled)} for memory"
    return text


def _cpu(record: Record) -> str:
    cpu, wall = record.get("cpu"), record.get("wall", 0.0)
    if cpu is None:
        return ""
    average = f", {_processors(cpu / wall)} processors on average" if wall >= 1 else ""
    return span_text(cpu) + average


def _processors(number: float) -> str:
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"


def _processes(log: RunLog) -> str:
    counts = _counts(log.samples) if log.samples else []
    most = log.record.get("processes") or (_highest(counts) if counts else 0)
    return f"at most {most:.0f}, with threads" if most else ""


def _highest(series: plots.Series) -> float:
    return max(value for _, value in series)


def _plots(seen: Samples, start: float, end: float, wide: int, blocks: bool) -> "list[str]":
    """The curve of memory, and below it CPU and processes over the same time, as far as known."""
    memory = [(point.t, float(point.memory)) for point in seen.points]
    below: list[tuple[str, plots.Series]] = []
    if rates := _rates(seen):
        below.append((f"max {_processors(_highest(rates))} CPUs", rates))
    if counts := _counts(seen):
        below.append((f"max {_highest(counts):.0f} processes", counts))
    longest = max((len(label) for label, _ in below), default=0)
    plot = plots.Plot(memory, start, end, seen.limit, wide, blocks, longest)
    return plot.lines() + [plot.labelled(name, plot.sparkline(series)) for name, series in below]


def _counts(seen: Samples) -> "list[tuple[float, float]]":
    return [(p.t, float(p.processes)) for p in seen.points if p.processes is not None]


def _rates(seen: Samples) -> "list[tuple[float, float]]":
    """The processors in use between each two samples."""
    rates, before, used = [], 0.0, 0.0
    for point in seen.points:
        if point.cpu is not None and point.t > before:
            rates.append((point.t, max(0.0, point.cpu - used) / (point.t - before)))
            before, used = point.t, point.cpu
    return rates
