"""The memory of each run over time, against its limit.

Promises: a curve keeps its highest point whatever its resolution; every drawing has a title and a
description in words, and the large ones a table of their figures.
"""

from collections import Counter
from collections.abc import Iterable

from sandrun.insight import event_text
from sandrun.insight.report import markup
from sandrun.insight.report.collect import Run
from sandrun.insight.report.drawing import LEFT, RIGHT, WIDTH, Frame
from sandrun.insight.report.markup import UNKNOWN, moment, size, span, text
from sandrun.insight.report.timeline import ending
from sandrun.insight.samples import Event, Point, Samples

_EVENTS = 20
_CONSUMERS = 4
_WORDS = 160
_HITS = ("limit", "timeout")
_EACH = 2
_OFF_SCALE = 5
"""A limit of more than so many times the peak is named, not drawn: the curve would be flat."""
_ROWS = 12
"""The table beside a curve has so many rows."""


def thin(points: "list[Point]", most: int) -> "list[Point]":
    """At most `most` points; of neighbours the one with the most memory."""
    if len(points) <= most:
        return points
    size = len(points) / most
    parts = (points[int(n * size) : int((n + 1) * size)] for n in range(most))
    return [max(part, key=lambda point: point.memory) for part in parts if part]


def figure(run: Run, samples: Samples, points: int, cut: int, with_table: bool) -> str:
    """A run's curve with its caption."""
    table = _figures(run, samples) if with_table else ""
    of = f" of {size(run.limit)}" if run.limit else ", no limit"
    caption = (
        f'<a href="#r{run.key}">{text(run.command, cut) or "unknown command"}</a> '
        f"{moment(run.start)}, {ending(run)}, peak {size(_top(run, samples))}{of}"
    )
    return (
        f'<figure id="c{run.key}"><figcaption>{caption}</figcaption>'
        f"{_drawing(run, samples, points, with_table)}{table}</figure>"
    )


def _top(run: Run, samples: Samples) -> int:
    return max([run.peak or 0, *(point.memory for point in samples.points)])


def _drawing(run: Run, samples: Samples, most: int, is_filled: bool) -> str:
    drawn = thin(samples.points, most)
    peak = _top(run, samples)
    limit = run.limit or samples.limit
    is_drawn = bool(limit) and limit <= max(peak, 1) * _OFF_SCALE
    seconds = max([run.wall, 0.001, *(point.t for point in samples.points)])
    # Room for the line of the limit, or for the words that replace it.
    top = max(peak, limit) * 1.08 if is_drawn else max(peak, 1) * (1.4 if limit else 1.08)
    frame = Frame(0.0, seconds, top)
    parts = [frame.values(markup.SIZES, markup.axis_size)]
    parts += (
        frame.mark(at, markup.axis_span(at)) for at in markup.steps(seconds, markup.SPANS, 3)[1:]
    )
    if drawn:
        line = frame.path((point.t, point.memory) for point in drawn)
        kind = "line" if len(drawn) > 1 else "dot"
        parts.append(f'<path class="{kind}" d="{line}"/>')
        if is_filled and len(drawn) > 1:
            area = f"{line}V{frame.y(0):.0f}H{frame.x(drawn[0].t):.0f}z"
            parts.append(f'<path class="area" d="{area}"/>')
    if is_drawn:
        parts.append(f'<path class="bound" d="M{LEFT} {frame.y(limit):.0f}H{WIDTH - RIGHT}"/>')
    elif limit:
        words = f"limit {size(limit)}, far above"
        parts.append(f'<text class="end" x="{WIDTH - 6}" y="18">{words}</text>')
    marked = samples.events[:_EVENTS]
    parts += (frame.event(event.t, _event_text(event), event.kind in _HITS) for event in marked)
    says = f"Memory over {span(seconds)}: peak {size(peak)}"
    says += f", limit {size(limit)}" if limit else ""
    says += "".join(f"; {_event_text(event)}" for event in marked)
    return frame.svg(says, "".join(parts))


def _event_text(event: Event) -> str:
    return f"{text(event_text.text(event), _WORDS)} after {span(event.t)}"


def _figures(run: Run, samples: Samples) -> str:
    """The figures of the drawing as a table, and the processes that used the memory at a limit."""
    rows = [
        (
            span(p.t),
            size(p.memory),
            span(p.cpu),
            UNKNOWN if p.processes is None else f"{p.processes}",
        )
        for p in thin(samples.points, _ROWS)
    ]
    events = "".join(
        f"<li>{_event_text(event)}{_consumers(event)}</li>" for event in samples.events[:_EVENTS]
    )
    heads = ("After", "Memory", "CPU", "Processes")
    table = markup.table(f"Samples of {text(run.id)}", heads, rows, "####")
    return (
        "<details><summary>Figures</summary>"
        f"{table}{f'<ul>{events}</ul>' if events else ''}</details>"
    )


def _consumers(event: Event) -> str:
    """The processes that had most memory at an event."""
    top = event.details.get("top")
    rows = [row for row in top if isinstance(row, dict)] if isinstance(top, list) else []
    named = [
        f"{text(str(row.get('command', '')), 60)} {size(row['memory'])}"
        for row in rows[:_CONSUMERS]
        if isinstance(row.get("memory"), int)
    ]
    return f"; most memory: {', '.join(named)}" if named else ""


def worst_first(runs: "Iterable[Run]") -> "list[Run]":
    """The runs that a memory limit ended, then the others by their share of the limit. The first
    `_EACH` of each command come before all others, so that one command does not hide the rest."""
    ordered = sorted(
        runs,
        key=lambda run: ("memory" in run.reason, run.share or 0.0, run.peak or 0, run.start or 0.0),
        reverse=True,
    )
    seen: Counter[tuple[str, str]] = Counter()
    places = []
    for run in ordered:
        seen[run.project, run.command] += 1
        places.append(seen[run.project, run.command] > _EACH)
    return [
        run
        for late in (False, True)
        for run, place in zip(ordered, places, strict=True)
        if place == late
    ]
