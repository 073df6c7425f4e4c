"""The parts of the page that are tables: summary, days, worst runs, hours lost, all runs.

Promises: each bar is beside the figure that it shows; each run that is on the page is a link.
"""

import time
from collections import Counter

from sandrun.insight.report import markup
from sandrun.insight.report.collect import Collected, Command, Run
from sandrun.insight.report.markup import UNKNOWN, moment, size, span, table, text
from sandrun.insight.report.timeline import ending
from sandrun.insight.wording import REASONS, count, hours

_ROWS = 15
_DAYS = 31
_MINUTES = "%Y-%m-%d %H:%M"


def summary(found: Collected) -> str:
    """The figures that matter most."""
    failed = found.count - found.kinds["ok"]
    share = f" ({failed / found.count:.0%})" if found.count else ""
    peak = next(iter(found.worst("peak")), None)
    figures = (
        ("Runs", f"{found.count:,}", f"of {count(len(found.commands), 'command')}"),
        ("Not successful", f"{failed:,}{share}", f"{found.kinds['limit']:,} at a limit"),
        ("Time run", hours(found.wall), ""),
        ("Lost in queues", hours(found.wait), f"{span(found.wait / max(found.count, 1))} a run"),
        ("Highest peak", size(peak.peak if peak else None), _of_limit(peak)),
    )
    tiles = (
        f"<div><dt>{name}</dt><dd><b>{value}</b> <span>{more}</span></dd></div>"
        for name, value, more in figures
    )
    return f"<dl>{''.join(tiles)}</dl>{_days(found)}"


def _of_limit(run: "Run | None") -> str:
    return f"of {size(run.limit)}" if run and run.limit else ""


def _days(found: Collected) -> str:
    """What ran and waited, in at most `_DAYS` parts of the time."""
    days = sorted(found.days.items())
    if len(days) < 2:
        return ""
    rows = []
    for part in markup.split(days, _DAYS):
        runs, failed, run, wait = (sum(figures[n] for _, figures in part) for n in range(4))
        first = time.strftime("%Y-%m-%d", time.gmtime(part[0][0] * 86400))
        share = _bar(wait / max(run + wait, 1))
        rows.append((first, f"{runs:,.0f}", f"{failed:,.0f}", hours(run), hours(wait), share))
    heads = ("Day", "Runs", "Not successful", "Run", "Waited", "Share of waiting")
    is_long = len(days) > _DAYS
    name = "Periods from each day on" if is_long else "Days"
    return f"<details open><summary>By day</summary>{table(name, heads, rows, 'd####d')}</details>"


def worst(found: Collected, shown: "set[str]", cut: int) -> str:
    """The runs with the most memory, wait and time, and the commands that failed most."""
    parts = [_worst_memory(found, shown, cut)]
    for what, name in (("wait", "Longest waits"), ("wall", "Longest runs")):
        runs = found.worst(what)
        if runs:
            most = getattr(runs[0], what)
            rows = [
                (
                    _link(run, shown, cut),
                    moment(run.start, _MINUTES),
                    span(getattr(run, what)),
                    _bar(getattr(run, what) / most),
                    ending(run),
                )
                for run in runs
            ]
            heads = ("Command", "Start", "Time", "Share of the longest", "End")
            parts.append(table(name, heads, rows, "cd#dd"))
    parts.append(_failing(found, cut))
    return "".join(parts) or "<p>Nothing to report.</p>"


def _worst_memory(found: Collected, shown: "set[str]", cut: int) -> str:
    rows = [
        (
            _link(run, shown, cut),
            moment(run.start, _MINUTES),
            size(run.peak),
            size(run.limit),
            _bar(run.share or 0),
            ending(run),
        )
        for run in found.worst("memory")
    ]
    heads = ("Command", "Start", "Peak", "Limit", "Share", "End")
    return table("Closest to their memory limit", heads, rows, "cd##dd") if rows else ""


def _failing(found: Collected, cut: int) -> str:
    def failures(command: Command) -> int:
        return sum(command.failures.values())

    failing = sorted(filter(failures, found.commands.values()), key=failures, reverse=True)
    rows = [
        (
            text(command.command, cut),
            text(command.project, cut),
            f"{failures(command):,} of {command.runs:,}",
            _bar(failures(command) / command.runs),
            ", ".join(
                f"{text(REASONS.get(reason, reason))} {runs}"
                for reason, runs in command.failures.most_common(4)
            ),
        )
        for command in failing[:_ROWS]
    ]
    heads = ("Command", "Project", "Failures", "Share", "Reasons")
    return table("Commands that failed most", heads, rows, "c #d") if rows else ""


def _link(run: Run, shown: "set[str]", cut: int) -> str:
    name = text(run.command, cut) or UNKNOWN
    return f'<a href="#r{run.key}">{name}</a>' if run.key in shown else name


def _bar(share: float) -> str:
    """A share as a bar, and as a figure."""
    share = max(0.0, min(share, 1.0))
    return (
        '<svg class="bar" width="80" height="10" aria-hidden="true">'
        '<rect class="back" width="80" height="10"/>'
        f'<rect class="wait" width="{share * 80:.0f}" height="10"/></svg> {share:.0%}'
    )


def lost(found: Collected, cut: int) -> str:
    """Whose time was lost in queues, and for what."""
    losers = sorted(found.commands.values(), key=lambda command: -command.wait)
    rows = [
        (
            text(command.command, cut),
            text(command.project, cut),
            hours(command.wait),
            _bar(command.wait / found.wait),
            span(command.wait / command.runs),
        )
        for command in losers[:_ROWS]
        if command.wait >= 1
    ]
    if not rows:
        return "<p>No run waited a second.</p>"
    heads = ("Command", "Project", "Lost", "Share", "A run")
    waited = table("Hours lost, by the command that waited", heads, rows, "c #d#")
    return waited + (_blockers(found, cut) if found.waits else "")


def _blockers(found: Collected, cut: int) -> str:
    blockers: dict[str, float] = {}
    for (_, other), seconds in found.waits.items():
        blockers[other] = blockers.get(other, 0.0) + seconds
    total = sum(blockers.values()) or 1.0
    rows = [
        (text(name, cut), hours(seconds), _bar(seconds / total))
        for name, seconds in Counter(blockers).most_common(_ROWS)
    ]
    heads = ("Command", "Lost", "Share")
    parts = table("Hours lost, by the command that was waited for", heads, rows, "c#d")
    pairs = [
        (text(waiter, cut), text(other, cut), text(project, cut), hours(seconds))
        for ((project, waiter), other), seconds in Counter(found.waits).most_common(_ROWS)
    ]
    names = ("Waited", "For", "Project of the waiting", "Time")
    return parts + table("Who waited for whom", names, pairs, "cc #")


def runs(listed: "list[Run]", curves: "set[str]", cut: int) -> str:
    """All runs of the page, the newest first: what the drawings show, as figures."""
    keys = {run.id: run.key for run in listed}
    rows = []
    for run in reversed(listed):
        waited = span(run.wait) + "".join(_for(*item, keys) for item in run.waited_for[:2])
        peak = size(run.peak) + (f" of {size(run.limit)}" if run.limit else "")
        curve = f'<a href="#c{run.key}">curve</a>' if run.key in curves else UNKNOWN
        # HTML needs no end tags here, and a thousand rows of them take 60 kB.
        rows.append(
            f'<tr id="r{run.key}"><th scope="row" class="d">{moment(run.start)}'
            f'<td class="c">{text(run.command, cut)}<td>{text(run.project, cut)}'
            f'<td class="d">{ending(run)}<td class="c">{waited}<td class="n">{span(run.wall)}'
            f'<td class="n">{span(run.cpu)}<td class="n">{peak}<td class="d">{curve}'
            f'<td class="d">{text(run.id)}'
        )
    names = ("Start", "Command", "Project", "End", "Waited", "Wall", "CPU", "Peak", "Memory", "Run")
    heads = "".join(f'<th scope="col" class="d">{name}' for name in names)
    return (
        '<div class="scroll tall" role="region" tabindex="0" aria-label="Table of all runs">'
        f"<table><caption>Runs, the newest first</caption><thead><tr>{heads}"
        f"<tbody>{''.join(rows)}</table></div>"
    )


def _for(run_id: str, command: str, seconds: float, keys: "dict[str, str]") -> str:
    name = text(command, 40) or text(run_id) or UNKNOWN
    link = f'<a href="#r{keys[run_id]}">{name}</a>' if run_id in keys else name
    return f"<br>{span(seconds)} for {link}"
