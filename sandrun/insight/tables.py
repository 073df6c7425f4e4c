"""Records and statistics as text for people: lines that fit into the terminal."""

import unicodedata

from sandrun.insight import wording
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
from sandrun.insight.wording import count, hours
from sandrun.model import command_text, plain, size_text
from sandrun.types import Record

HEADER = (
    f"{'run':8}  {'started':11} {'wait':>6} {'wall':>6}  {'peak':>8}  {'result':12} {'command'}"
)
_UNKNOWN = "-"


def moment(since: "float | None", now: float) -> str:
    """A start in eleven characters: with the time for the last half year, else with the year."""
    if since is None:
        return _UNKNOWN
    form = "%m-%d %H:%M" if -86400 < now - since < 182 * 86400 else "%Y-%m-%d"
    return wording.moment(since, form)


def _span(seconds: "float | None") -> str:
    return _UNKNOWN if seconds is None else wording.short_span(seconds)


def _size(size: "float | None") -> str:
    return _UNKNOWN if size is None else size_text(int(size))


def result(record: Record) -> str:
    """How a run ended: `ok`, `exit 2`, `signal 15`, `memory limit`."""
    return plain(wording.ending(record.get("reason", ""), record.get("exit")))[:12] or _UNKNOWN


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
    left = (
        f"{plain(record.get('id') or _UNKNOWN)[:8]:8}  {moment(record.get('since'), now):11} "
        f"{_span(record.get('wait')):>6} {_span(record.get('wall')):>6}  "
        f"{_size(record.get('peak')):>8}  "
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
        more = f"{count(len(order) - most, 'more command')}, {count(rest, 'run')}"
        lines += ["", f"{more}: sandrun stats --top 0"]
    return lines + _waits(found, width)


def _totals(found: Statistics, projects: int) -> "list[str]":
    groups = found.groups.values()
    runs = sum(group.runs for group in groups)
    failed = sum(sum(group.failures.values()) for group in groups)
    waited = sum(group.total("wait") for group in groups)
    first, last = (wording.moment(at, "%Y-%m-%d") for at in _bounds(found))
    commands = count(len(found.groups), "command")
    where = f" in {projects} projects" if projects > 1 else ""
    return [
        f"{count(runs, 'run')} of {commands}{where}, {first} to {last}",
        f"{failed:,} failed ({failed / runs:.0%}); {hours(waited)} lost in queues",
    ]


def _bounds(found: Statistics) -> "tuple[float, float]":
    return found.since if found.since[0] <= found.since[1] else (0.0, 0.0)


def _group(key: Key, group: Group, with_project: bool, width: int) -> "list[str]":
    name = command_of(key)
    if with_project and key[0]:
        name += f"  (in {plain(key[0])})"
    lines = [clipped(name, width), f"  {count(group.runs, 'run')}{_failures(group)}"]
    lines.append("       " + "".join(f"{name:>10}" for name in PERCENTILES))
    for measure in MEASURES:
        values = summary(group.known(measure))
        show = _size if measure == "peak" else _span
        cells = "".join(f"{show(values.get(name)):>10}" for name in PERCENTILES)
        part = f"   of {values['runs']:,.0f}" if 0 < values["runs"] < group.runs else ""
        lines.append(f"  {measure:5}{cells}{part}")
    return lines


def _failures(group: Group) -> str:
    if not group.failures:
        return ", none failed"
    order = sorted(group.failures.items(), key=lambda item: -item[1])
    shown = [f"{plain(wording.REASONS.get(reason, reason))} {runs:,}" for reason, runs in order[:4]]
    more = sum(runs for _, runs in order[4:])
    return f", {sum(group.failures.values()):,} failed: " + ", ".join(
        shown + ([f"other {more:,}"] if more else [])
    )


def _waits(found: Statistics, width: int) -> "list[str]":
    if not found.waits:
        return []
    order = sorted(found.waits.items(), key=lambda item: -item[1][1])[:5]
    lines = ["", "who waited for whom most"]
    for (key, text), (runs, seconds) in order:
        left = f"  {hours(seconds):>10} in {count(int(runs), 'run')}: "
        room = max((width - len(left) - 5) // 2, 10)
        lines.append(f"{left}{clipped(command_of(key), room)} for {clipped(plain(text), room)}")
    return lines
