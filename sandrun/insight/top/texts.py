"""The lines of `sandrun top` as pieces of text with a style, for any width.

Knows nothing of Textual. A style is a word list of Rich (`bold red`); a style never carries meaning
alone, because there may be no colour.
"""

import time

from rich.cells import cell_len, set_cell_size

from sandrun.insight import plots
from sandrun.insight.figures import Figures, Series
from sandrun.insight.live import PoolView, QueueView, Row, Snapshot, user_name
from sandrun.insight.wording import count, moment, short_span
from sandrun.model import plain, size_text, span_text

Piece = tuple[str, str]
Line = list[Piece]

_RECENT = 60.0
"""Seconds that the curve in the list shows."""
_FAR = 6
"""Below this part of the limit the curve of the details has a scale of its own."""
HIGH, FULL = 0.8, 0.95
"""The shares of the limit from which memory is shown as high, and as nearly full."""


class Glyphs:
    """The characters for curves and bars: Unicode blocks, or ASCII."""

    def __init__(self, ascii_only: bool) -> None:
        self.ascii_only = ascii_only
        self.levels = " .:-=+*#@" if ascii_only else " ▁▂▃▄▅▆▇█"
        self.full, self.empty = ("#", "-") if ascii_only else ("█", "░")
        self.rule = "-" if ascii_only else "─"
        self.dot = "|" if ascii_only else "·"
        self.more = "..." if ascii_only else "…"

    def text(self, text: str) -> str:
        """`text` as one harmless line, in ASCII where needed."""
        shown = plain(text)
        return shown.encode("ascii", "backslashreplace").decode() if self.ascii_only else shown

    def fit(self, text: str, width: int) -> str:
        """`text` in exactly `width` columns; an ellipsis marks a cut."""
        if width <= 0:
            return ""
        if cell_len(text) > width:
            text = set_cell_size(text, max(0, width - len(self.more))) + self.more
        return set_cell_size(text, width)

    def bar(self, share: float, width: int) -> str:
        filled = min(width, max(0, round(share * width)))
        return self.full * filled + self.empty * (width - filled)

    def curve(
        self, series: Series, seconds: float, top: float, width: int, height: int = 1
    ) -> list[str]:
        """The last `seconds` as a curve of blocks, `height` lines high, highest line first. Each
        column has the maximum of its time, so that no peak is lost."""
        end = series[-1][0] if series else 0.0
        columns = plots.columns(series, end - max(seconds, 0.1), end, width)
        steps = len(self.levels) - 1
        lines = []
        for line in range(height - 1, -1, -1):
            levels = []
            for value in columns:
                whole = value / top * steps * height if top else 0.0
                level = min(steps, max(0, round(whole - line * steps)))
                # Something that is used is never shown as nothing.
                levels.append(max(1, level) if line == 0 and value > 0 else level)
            lines.append("".join(self.levels[level] for level in levels))
        return lines


def sizes(memory: int | None, limit: int, of: str = "/") -> str:
    """`1.2/2.0 GiB`: the unit once where both have the same."""
    used = size_text(memory) if memory is not None else "?"
    if not limit:
        return used
    most = size_text(limit)
    number, _, unit = used.partition(" ")
    return f"{number if most.endswith(unit) else used}{of}{most}"


def memory_style(figures: Figures) -> str:
    share = (figures.memory or 0) / figures.limit if figures.limit else 0.0
    return "bold red" if share >= FULL else "yellow" if share >= HIGH else "green"


def state(row: Row) -> Piece:
    """The state of a run or waiter in one word."""
    if row.stopped:
        return "stopped", "yellow"
    if row.waits_for_memory:
        return "memory", "yellow"
    if row.ticket.running:
        return "runs", "bold green"
    return f"wait {row.position}", ""


def header(snapshot: Snapshot, glyphs: Glyphs, width: int, note: str) -> Line:
    """The first line of the screen: how many, and the time."""
    tickets = [ticket for queue in snapshot.queues for ticket in queue.tickets]
    running = sum(ticket.running for ticket in tickets)
    if width < 50:
        return [
            (glyphs.fit(f"{running} run, {len(tickets) - running} wait  {note}", width), "bold")
        ]
    text = f"{running} running, {len(tickets) - running} waiting"
    text += f", {count(len(snapshot.queues), 'queue')}" + (f"  {note}" if note else "")
    clock = time.strftime("%H:%M:%S")
    room = max(0, width - 13 - len(clock))
    return [("sandrun top  ", "bold"), (glyphs.fit(text, room), ""), (clock, "dim")]


def pool(view: PoolView, budget: int, glyphs: Glyphs, width: int, whose: str) -> Line:
    """The memory pool: its budget, and who has reserved how much."""
    used = view.reserved()
    label = f"pool{whose}  "
    share = used / budget if budget else 0.0
    bar = glyphs.bar(share, 10 if width >= 60 else 5) + " " if budget else ""
    text = f"{sizes(used, budget, ' of ')} reserved"
    users = [
        f"{size_text(t.extra)} {'by' if t.running else 'wanted by'} {t.id} {t.command}"
        for t in view.tickets
    ]
    rest = glyphs.text("  ".join([text, *users]))
    style = "bold red" if share >= FULL else "yellow" if share >= HIGH else "green"
    pieces = [(label, "bold"), (bar, style)]
    return [*pieces, (glyphs.fit(rest, width - len(label) - len(bar)), "")]


class Columns:
    """Which columns a width has room for."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.age = 7 if width >= 60 else 0
        self.memory = 15 if width >= 70 else 0
        self.share = 6 if not self.memory else 0
        self.curve = 24 if width >= 140 else 12 if width >= 100 else 8 if width >= 78 else 0
        self.cpu = 5 if width >= 70 else 0
        self.processes = 6 if width >= 110 else 0
        self.stalled = 6 if width >= 120 else 0
        used = 1 + 9 + 10 + sum(self.figures()) + (self.age and self.age + 1)
        self.command = max(4, width - used)

    def figures(self) -> list[int]:
        all_of_them = (self.memory, self.share, self.curve, self.cpu, self.processes, self.stalled)
        return [size + 1 for size in all_of_them if size]

    def heading(self) -> str:
        cells = [" " + "ID".ljust(9) + "STATE".ljust(10)]
        cells += ["FOR".ljust(self.age + 1)] if self.age else []
        names = ("MEMORY", "MEM", "LAST MIN", "CPU", "PROCS", "STALL")
        numbers = (self.memory, self.share, self.curve, self.cpu, self.processes, self.stalled)
        for name, size in zip(names, numbers, strict=True):
            if size:
                right = name in ("CPU", "PROCS", "STALL", "MEM")
                cells.append((name.rjust(size) if right else name.ljust(size)) + " ")
        return "".join(cells) + "COMMAND"


def row(shown: Row, columns: Columns, glyphs: Glyphs) -> Line:
    """A run or a waiter as a line of the list."""
    ticket = shown.ticket
    word, style = state(shown)
    line: Line = [(f" {ticket.id} ", ""), (glyphs.fit(word, 9) + " ", style)]
    if columns.age:
        age = short_span(time.time() - ticket.since)
        line.append((glyphs.fit(age, columns.age) + " ", "dim"))
    room = sum(columns.figures())
    if shown.figures:
        line += _figures(shown.figures, columns, glyphs)
    elif columns.share:
        soon = "" if shown.starts_in is None else short_span(shown.starts_in)
        line.append((soon.rjust(columns.share) + " ", "dim"))
    elif room:
        line.append((glyphs.fit(_wait(shown), room - 1) + " ", "dim"))
    return [*line, (glyphs.fit(glyphs.text(ticket.command), columns.command), "")]


def _peak(figures: Figures) -> float:
    return max((value for _, value in figures.curve), default=0.0)


def _wait(shown: Row) -> str:
    """What a waiter, or a run whose command has not been started, waits for."""
    hours = shown.ticket.extra / 3600
    if shown.waits_for_memory:
        text = "waits for memory in the pool"
    elif shown.ticket.running:
        text = "starts"
    elif shown.starts_in is not None:
        text = f"in about {span_text(shown.starts_in)}"
    else:
        text = ""
    if shown.ticket.running or not hours:
        return text
    first = f"{'+' if hours > 0 else ''}{hours:g} h head start"
    return f"{text}, {first}" if text else first


def _figures(figures: Figures, columns: Columns, glyphs: Glyphs) -> Line:
    line: Line = []
    style = memory_style(figures)
    share = (figures.memory or 0) / figures.limit if figures.limit else 0.0
    if columns.memory:
        text = sizes(figures.memory, figures.limit)
        line.append((glyphs.fit(text, columns.memory) + " ", style))
    if columns.share:
        line.append((f"{share * 100:.0f}%".rjust(columns.share) + " ", style))
    if columns.curve:
        top = figures.limit or _peak(figures)
        curve = glyphs.curve(figures.curve, _RECENT, top, columns.curve)
        line.append((curve[0] + " ", style))
    for size, text in (
        (columns.cpu, "" if figures.cpu is None else f"{figures.cpu * 100:.0f}%"),
        (columns.processes, "" if figures.processes is None else str(figures.processes)),
        (columns.stalled, "" if figures.stalled is None else f"{figures.stalled * 100:.0f}%"),
    ):
        if size:
            line.append((text.rjust(size) + " ", ""))
    return line


def title(view: QueueView, glyphs: Glyphs, width: int, whose: bool) -> Line:
    """The line above the runs of a queue."""
    text = view.title or view.path
    if whose:
        text += f"  ({user_name(view.uid)})"
    note = "  PAUSED" if view.paused else ""
    note += f"  {view.note}" if view.note else ""
    room = max(8, width - cell_len(note))
    text = glyphs.text(text)
    shown = glyphs.fit(text, room).rstrip() if cell_len(text) > room else text
    rest = glyphs.fit(glyphs.text(note), width - cell_len(shown))
    return [(shown, "bold underline"), (rest, "bold red")]


def details(view: QueueView, shown: Row, glyphs: Glyphs, width: int, height: int) -> list[Line]:
    """The lines about the selected run; where there is room, with its whole curve."""
    ticket = shown.ticket
    lines: list[Line] = [[(glyphs.fit(glyphs.text(ticket.command), width), "bold")]]
    began = moment(ticket.since, "%H:%M:%S")
    facts = [f"pid {ticket.pid}", f"since {began}"]
    figures = shown.figures
    if figures:
        facts.append(f"limit {size_text(figures.limit) if figures.limit else 'none'}")
        facts.append(f"peak {size_text(int(_peak(figures)))}")
        facts.append(figures.backend)
        if figures.last_event:
            facts.append(f"{figures.last_event[0]} after {span_text(figures.last_event[1])}")
    if wait := _wait(shown) if not figures else "":
        facts.append(wait)
    if shown.stopped:
        facts.append(f"stopped: fg, or kill -CONT {shown.stopped}")
    if shown.cwd and shown.cwd != view.title:
        facts.append(f"in {shown.cwd}")
    lines.append([(glyphs.fit(glyphs.text(f" {glyphs.dot} ".join(facts)), width), "")])
    room = height - len(lines)
    if figures and figures.curve and room > 0:
        peak = _peak(figures)
        # Against a limit far above, the curve would be a flat line.
        top = figures.limit if figures.limit and peak * _FAR > figures.limit else peak * 1.2
        label = " " + size_text(int(top))
        seconds = figures.curve[-1][0]
        curve = glyphs.curve(figures.curve, seconds, top, max(1, width - 10), room)
        style = memory_style(figures)
        for number, text in enumerate(curve):
            ends = label if number == 0 else " 0" if number == room - 1 else ""
            lines.append([(text, style), (glyphs.fit(ends, 10), "dim")])
    return lines
