"""The timeline of the queues: what ran, and who waited for whom.

Promises: a drawing for each busy period, between breaks in which nothing ran or waited; in it one
block for each queue, with runs in lanes (one a slot) and waits as thin bars below, each ended by a
line up to its run. Every bar's title says in words what it shows.
"""

import time
from collections.abc import Iterable, Iterator

from sandrun.insight import wording
from sandrun.insight.report import markup
from sandrun.insight.report.collect import Run
from sandrun.insight.report.markup import moment, number, span, text
from sandrun.insight.wording import count, hours

_BREAKS = [n * 3600.0 for n in (0.5, 1, 2, 4, 8, 24, 72, 168, 720, 8760, 87600)]
_PERIODS = 40
"""At most so many drawings. If there are more busy periods, longer breaks are drawn, too."""
_SHOWN = 8
"""So many periods are visible without a click."""
_NARROW, _WIDE = 900, 6000
_SHORTEST = 10.0  # seconds of a drawing
_RUN = 16
"""Pixels of the run of median length: wide enough for a pointer."""
_LANE, _BAR, _ROW = 24, 20, 8
_LETTER = 6.5
_LABEL = 5
"""A bar has a label only if so many letters fit into it."""
_WAITS = 40
"""Rows of waits that are drawn of a queue; the table of runs has all of them."""


def section(runs: list[Run], cut: int) -> str:
    """The drawings, the newest first; `cut`: characters of a command that a title shows."""
    timed = [run for run in runs if run.start is not None]
    periods = _periods(timed)
    if not periods:
        return "<p>No run has a known time.</p>"
    drawn = [_period(period, n == 0, cut) for n, period in enumerate(reversed(periods))]
    older = "".join(drawn[_SHOWN:])
    if older:
        many = count(len(drawn) - _SHOWN, "older period")
        older = f"<details><summary>{many}</summary>{older}</details>"
    return _LEGEND + "".join(drawn[:_SHOWN]) + older


_KINDS = {
    "ok": "succeeded",
    "failed": "failed",
    "limit": "ended by a limit",
    "other": "cancelled, lost or not started",
    "wait": "waited",
}
_LEGEND = (
    '<p class="legend">'
    + " ".join(
        '<span><svg class="key" width="24" height="12" aria-hidden="true">'
        f'<rect class="{kind}" width="24" height="{5 if kind == "wait" else 12}"/></svg>'
        f"{name}</span>"
        for kind, name in _KINDS.items()
    )
    + "</p>"
)


def begin(run: Run) -> float:
    """When a run was queued."""
    return (run.start or 0.0) - run.wait


def end(run: Run) -> float:
    return (run.start or 0.0) + run.wall


def _periods(runs: list[Run]) -> list[list[Run]]:
    """The runs by busy period, the oldest first."""
    found: list[list[Run]] = []
    for longest_break in _BREAKS:
        found, until = [], float("-inf")
        for run in sorted(runs, key=begin):
            if begin(run) - until > longest_break or not found:
                found.append([])
            found[-1].append(run)
            until = max(until, end(run))
        if len(found) <= _PERIODS:
            break
    return found[-_PERIODS:]


def _period(runs: list[Run], is_open: bool, cut: int) -> str:
    first, last = min(map(begin, runs)), max(map(end, runs))
    failed = sum(run.kind != "ok" for run in runs)
    waited = sum(run.wait for run in runs)
    form = "%H:%M" if last - first < 86400 else "%Y-%m-%d %H:%M"
    title = f"{moment(first, '%a %Y-%m-%d %H:%M')} to {moment(last, form)}"
    says = count(len(runs), "run") + (f", {failed} not successful" if failed else "")
    says += f", {hours(waited)} waited" if waited >= 1 else ""
    middle = sorted(run.wall for run in runs)[len(runs) // 2] or 1.0
    width = min(_WIDE, max(_NARROW, (last - first) / middle * _RUN))
    scale = _Scale(first, max(last - first, _SHORTEST), width)
    queues: dict[str, list[Run]] = {}
    for run in sorted(runs, key=begin):
        queues.setdefault(run.project, []).append(run)
    blocks = "".join(_queue(project, its, scale, cut) for project, its in queues.items())
    return (
        f"<details{' open' * is_open}><summary><b>{title}</b> <span>{says}</span></summary>"
        f'<div class="scroll timeline" role="region" tabindex="0" aria-label="Timeline {title}">'
        f"{blocks}{_axis(scale)}</div></details>"
    )


class _Scale:
    def __init__(self, first: float, seconds: float, width: float) -> None:
        self.first = first
        self.seconds = seconds
        self.width = width

    def x(self, moment: float) -> float:
        return (moment - self.first) / self.seconds * self.width


def _lanes(bars: "Iterable[tuple[float, float, Run]]") -> "Iterator[tuple[int, float, float, Run]]":
    """Each bar with the first lane that is free at its start."""
    free: list[float] = []
    for start, stop, run in bars:
        lane = next((n for n, until in enumerate(free) if until <= start + 0.001), len(free))
        free[lane:] = [stop, *free[lane + 1 :]]
        yield lane, start, stop, run


def _queue(project: str, runs: list[Run], scale: _Scale, cut: int) -> str:
    ran = sorted(runs, key=lambda run: run.start or 0.0)
    lanes = list(_lanes((run.start or 0.0, end(run), run) for run in ran))
    lane_of = {run.key: lane for lane, _, _, run in lanes}
    # A wait that is shorter than a pixel would only hide the run.
    waited = [run for run in runs if run.wait >= 1 and run.wait / scale.seconds * scale.width >= 1]
    rows = [
        row
        for row in _lanes((begin(run), run.start or 0.0, run) for run in waited)
        if row[0] < _WAITS
    ]
    below = (max(lane_of.values(), default=0) + 1) * _LANE
    height = below + (max((row[0] for row in rows), default=-1) + 1) * _ROW + 2
    parts = [
        _wait_bar(run, scale, below + row * _ROW, lane_of[run.key] * _LANE + _BAR, cut)
        for row, _, _, run in rows
    ]
    parts += (_run_bar(run, scale, lane * _LANE, cut) for lane, _, _, run in lanes)
    hidden = len(waited) - len(rows)
    note = f" ({hidden} more waits are in the table of runs)" if hidden else ""
    return (
        f'<h3 class="queue">{text(project, 200) or "unknown project"}{note}</h3>'
        f'<svg role="group" aria-label="Runs and waits; the table of all runs has the same figures"'
        f' width="{scale.width:.0f}" height="{height}">{"".join(parts)}</svg>'
    )


def _wait_bar(run: Run, scale: _Scale, y: int, foot: int, cut: int) -> str:
    x, right = scale.x(begin(run)), scale.x(run.start or 0.0)
    return (
        f'<path class="join" d="M{number(right)} {y + 5}V{foot}"/>'
        f'<rect class="wait" x="{number(x)}" y="{y}" width="{number(right - x)}" height="5">'
        f"<title>{_wait_title(run, cut)}</title></rect>"
    )


def _run_bar(run: Run, scale: _Scale, y: int, cut: int) -> str:
    x = scale.x(run.start or 0.0)
    width = max(1.5, scale.x(end(run)) - x)
    letters = int((width - 6) / _LETTER)
    label = ""
    if letters >= min(_LABEL, len(run.command)) > 0 and run.kind != "other":
        words = text(run.command, letters)
        label = f'<text class="on" x="{number(x + 4)}" y="{y + 14}">{words}</text>'
    return (
        f'<a href="#r{run.key}" tabindex="-1"><title>{_run_title(run, cut)}</title>'
        f'<rect class="{run.kind}" x="{number(x)}" y="{y}" width="{number(width)}" '
        f'height="{_BAR}"/>{label}</a>'
    )


def _wait_title(run: Run, cut: int) -> str:
    says = f"{text(run.command, cut)} waited {span(run.wait)}"
    for run_id, command, seconds in run.waited_for[:1]:
        says += f", {span(seconds)} of it for {text(command, cut)} ({text(run_id)})"
    return says


def _run_title(run: Run, cut: int) -> str:
    return f"{text(run.command, cut)}: {ending(run)}, {span(run.wall)} from {moment(run.start)}"


def ending(run: Run) -> str:
    """How a run ended, for people."""
    return text(wording.ending(run.reason, run.exit or 0) or "unknown")


def _axis(scale: _Scale) -> str:
    ticks = markup.steps(scale.seconds, markup.SPANS[5:], max(4, int(scale.width / 110)))
    step = ticks[1] if len(ticks) > 1 else scale.seconds
    first = scale.first + -_local(scale.first) % step
    form = "%H:%M:%S" if step < 60 else "%H:%M" if scale.seconds < 86400 else "%m-%d %H:%M"
    marks = "".join(
        f'<path d="M{number(scale.x(at))} 0v5"/>'
        f'<text x="{number(scale.x(at) + 3)}" y="14">{moment(at, form)}</text>'
        for at in (first + tick for tick in ticks)
        if scale.x(at) < scale.width - 60
    )
    width = f"{scale.width:.0f}"
    return f'<svg class="axis" aria-hidden="true" width="{width}" height="18">{marks}</svg>'


def _local(seconds: float) -> float:
    """Seconds since midnight, as the local clock shows it."""
    there = time.localtime(seconds)
    return there.tm_hour * 3600 + there.tm_min * 60 + there.tm_sec + seconds % 1
