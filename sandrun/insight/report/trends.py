"""How the time and the memory of each command changed from run to run.

Promises: the commands with the most time in them come first; a run that failed has a mark of
another shape; a table of the same figures is beside each drawing.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from sandrun.insight.report import markup
from sandrun.insight.report.collect import Command
from sandrun.insight.report.drawing import Frame
from sandrun.insight.report.markup import moment, size, span, text
from sandrun.insight.wording import count

_OPEN = 8
"""So many trends are visible without a click."""
_PARTS = 8
"""Periods of a trend's table and of its line."""

Rows = list[tuple[float, float, int | None, bool]]


class _Kind(NamedTuple):
    """A measure: its name, the steps of its axis, and how its values are formatted."""

    name: str
    bases: Sequence[float]
    short: Callable[[float], str]
    full: Callable[[float], str]


_WALL = _Kind("Wall time", markup.SPANS, markup.axis_span, span)
_PEAK = _Kind("Peak memory", markup.SIZES, markup.axis_size, size)


def section(commands: list[Command], most: int, cut: int) -> str:
    """The trends of at most `most` commands that ran at least three times."""
    repeated = [found for found in commands if len(found.newest) >= 3]
    chosen = sorted(repeated, key=lambda found: (-found.wall, found.command))[:most]
    if not chosen:
        return "<p>No command ran three times.</p>"
    drawn = [_trend(found, cut) for found in chosen]
    shown, more = "".join(drawn[:_OPEN]), "".join(drawn[_OPEN:])
    if more:
        more = (
            f"<details><summary>{count(len(drawn) - _OPEN, 'more command')}</summary>"
            f'<div class="trends">{more}</div></details>'
        )
    return f'<div class="trends">{shown}</div>{more}'


def _trend(command: Command, cut: int) -> str:
    rows = sorted(command.newest, key=lambda run: run[0])  # a peak may be unknown
    times = [(start, wall, failed) for start, wall, _, failed in rows]
    peaks = [(start, float(peak), failed) for start, _, peak, failed in rows if peak is not None]
    drawn = _plot(times, _WALL)
    if len(peaks) > 1:
        drawn += _plot(peaks, _PEAK)
    newest = f", the newest {len(rows)} drawn" if command.runs > len(rows) else ""
    return (
        f'<section class="trend"><h3>{text(command.command, cut)}</h3>'
        f"<p>{text(command.project, 200)}: {count(command.runs, 'run')}, "
        f"{sum(command.failures.values())} not successful{newest}</p>"
        f'<div class="pair">{drawn}</div>'
        f"<details><summary>Figures</summary>{_table(rows, text(command.command, 60))}</details>"
        "</section>"
    )


def _plot(points: "list[tuple[float, float, bool]]", kind: _Kind) -> str:
    first, last = points[0][0], points[-1][0]
    frame = Frame(first, last, max(*(value for _, value, _ in points), 0.001) * 1.08)
    form = "%Y-%m-%d" if last - first > 2 * 86400 else "%m-%d %H:%M"
    good = "".join(f"M{frame.at(start, value)}h0" for start, value, failed in points if not failed)
    bad = "".join(
        f"M{frame.at(start, value)}m-3-3l6 6m0-6l-6 6" for start, value, failed in points if failed
    )
    parts = markup.split(points, _PARTS)
    middles = [median(value for _, value, _ in part) for part in parts]
    line = " ".join(
        frame.at(part[len(part) // 2][0], at) for part, at in zip(parts, middles, strict=True)
    )
    says = (
        f"{kind.name} of {len(points)} runs: median {kind.full(middles[0])} at first, "
        f"{kind.full(middles[-1])} of late"
    )
    drawn = (
        frame.values(kind.bases, kind.short)
        + frame.mark(first, moment(first, form), "start")
        + frame.mark(last, moment(last, form))
        + f'<path class="line" d="M{line}"/><path class="dot" d="{good}"/>'
        + (f'<path class="cross" d="{bad}"/>' if bad else "")
    )
    return f"<figure><figcaption>{says}</figcaption>{frame.svg(says, drawn)}</figure>"


def _table(rows: Rows, name: str) -> str:
    lines = []
    for part in markup.split(rows, _PARTS):
        peaks = [peak for _, _, peak, _ in part if peak is not None]
        lines.append(
            (
                moment(part[0][0], "%Y-%m-%d %H:%M"),
                str(len(part)),
                str(sum(failed for *_, failed in part)),
                span(median(wall for _, wall, _, _ in part)),
                span(max(wall for _, wall, _, _ in part)),
                size(median(peaks)) if peaks else markup.UNKNOWN,
                size(max(peaks)) if peaks else markup.UNKNOWN,
            )
        )
    heads = (
        "From",
        "Runs",
        "Not successful",
        "Wall, median",
        "Wall, most",
        "Peak, median",
        "Peak, most",
    )
    return markup.table(f"Trend of {name}", heads, lines, "d######")
