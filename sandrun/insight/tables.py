"""Records and statistics as text for people: lines that fit into the terminal."""

import time
import unicodedata

from sandrun.insight.statistics import (
    MEASURES,
    OTHERS,
    PERCENTILES,
    Group,
    Key,
    Statistics,
    command_of,
    summary,
)
from sandrun.model import command_text, plain, size_text, span_text
from sandrun.types import Record

HEADER = (
    f"{'run':8}  {'started':11} {'wait':>6} {'wall':>6}  {'peak':>8}  {'result':12} {'command'}"
)
_UNKNOWN = "-"
_REASONS = {
    "memory": "memory limit",
    "outer-memory": "outer limit",
    "cpu-time": "cpu time",
    "parent": "parent died",
    "not-started": "not started",
    "left": "left queue",
}
"""Reasons of at most twelve characters, in words."""


def short_span(seconds: "float | None") -> str:
    """A duration in at most six characters: `0.4s`, `59s`, `3m20s`, `2h05m`, `3d04h`, `999d`."""
    if seconds is None:
        return _UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    days = whole // 86400
    return f"{days}d{whole % 86400 // 3600:02}h" if days < 100 else f"{min(days, 99999)}d"


def moment(since: "float | None", now: float) -> str:
    """A start in eleven characters: with the time for the last half year, else with the year."""
    if since is None:
        return _UNKNOWN
    form = "%m-%d %H:%M" if -86400 < now - since < 182 * 86400 else "%Y-%m-%d"
    return time.strftime(form, time.localtime(since))


def result(record: Record) -> str:
    """How a run ended: `ok`, `exit 2`, `signal 15`, `memory limit`."""
    reason, code = record.get("reason", ""), record.get("exit")
    if reason == "exit":
        return "ok" if code == 0 else f"exit {code}"
    if reason == "signal" and code is not None:
        return f"signal {code - 128}" if 128 < code < 256 else "signal"
    return plain(_REASONS.get(reason, reason))[:12] or _UNKNOWN


def clipped(text: str, width: int) -> str:
    """At most `width` columns of a text. An ellipsis marks a cut."""
    used = 0
    for at, char in enumerate(text):
        used += _columns(char)
        if used > width or (used == width and at + 1 < len(text)):
            return text[:at] + "…"
    return text


def _columns(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def row(record: Record, now: float, width: int, colored: bool) -> str:
    """One run in one line of at most `width` columns."""
    how = f"{result(record):12}"
    peak = record.get("peak")
    left = (
        f"{plain(record.get('id') or _UNKNOWN)[:8]:8}  {moment(record.get('since'), now):11} "
        f"{short_span(record.get('wait')):>6} {short_span(record.get('wall')):>6}  "
        f"{_UNKNOWN if peak is None else size_text(peak):>8}  "
    )
    command = plain(command_text(record.get("command", [])))
    room = max(width - len(left) - len(how) - 1, 8)
    if colored and how.strip() != "ok":
        how = f"\x1b[31m{how}\x1b[0m"
    return f"{left}{how} {clipped(command, room)}".rstrip()


def statistics(found: Statistics, most: int, width: int) -> "list[str]":
    """The statistics in lines: a summary, then the `most` commands that took the most time."""
    if not found.groups:
        return ["no runs"]
    order = found.by_time()
    projects = {key[0] for key in found.groups if key != OTHERS}
    lines = _totals(found, len(projects))
    for key, group in order[: most or None]:
        lines += ["", *_group(key, group, len(projects) > 1, width)]
    if 0 < most < len(order):
        rest = sum(group.runs for _, group in order[most:])
        lines += ["", f"{len(order) - most} more commands, {rest:,} runs: sandrun stats --top 0"]
    return lines + _waits(found, width)


def _totals(found: Statistics, projects: int) -> "list[str]":
    groups = found.groups.values()
    runs = sum(group.runs for group in groups)
    failed = sum(sum(group.failures.values()) for group in groups)
    waited = sum(group.total("wait") for group in groups)
    first, last = (time.strftime("%Y-%m-%d", time.localtime(at)) for at in _bounds(found))
    commands = f"{len(found.groups):,} commands" if len(found.groups) > 1 else "1 command"
    where = f" in {projects} projects" if projects > 1 else ""
    return [
        f"{_many(runs, 'run')} of {commands}{where}, {first} to {last}",
        f"{failed:,} failed ({failed / runs:.0%}); {_hours(waited)} lost in queues",
    ]


def _bounds(found: Statistics) -> "tuple[float, float]":
    return found.since if found.since[0] <= found.since[1] else (0.0, 0.0)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else span_text(seconds)


def _group(key: Key, group: Group, with_project: bool, width: int) -> "list[str]":
    name = command_of(key)
    if with_project and key[0]:
        name += f"  (in {plain(key[0])})"
    lines = [clipped(name, width), f"  {_many(group.runs, 'run')}{_failures(group)}"]
    lines.append("       " + "".join(f"{name:>10}" for name in PERCENTILES))
    for measure in MEASURES:
        values = summary(group.known(measure))
        show = _size if measure == "peak" else short_span
        cells = "".join(f"{show(values.get(name)):>10}" for name in PERCENTILES)
        part = f"   of {values['runs']:,.0f}" if 0 < values["runs"] < group.runs else ""
        lines.append(f"  {measure:5}{cells}{part}")
    return lines


def _size(size: "float | None") -> str:
    return _UNKNOWN if size is None else size_text(int(size))


def _failures(group: Group) -> str:
    if not group.failures:
        return ", none failed"
    order = sorted(group.failures.items(), key=lambda item: -item[1])
    shown = [f"{plain(_REASONS.get(reason, reason))} {count:,}" for reason, count in order[:4]]
    more = sum(count for _, count in order[4:])
    return f", {sum(group.failures.values()):,} failed: " + ", ".join(
        shown + ([f"other {more:,}"] if more else [])
    )


def _waits(found: Statistics, width: int) -> "list[str]":
    if not found.waits:
        return []
    order = sorted(found.waits.items(), key=lambda item: -item[1][1])[:5]
    lines = ["", "who waited for whom most"]
    for (key, text), (runs, seconds) in order:
        left = f"  {_hours(seconds):>10} in {_many(int(runs), 'run')}: "
        room = max((width - len(left) - 5) // 2, 10)
        lines.append(f"{left}{clipped(command_of(key), room)} for {clipped(plain(text), room)}")
    return lines
