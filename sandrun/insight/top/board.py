"""The list of queues, runs and waiters: a widget that renders only the lines on the screen.

The selection is the id of a run. If that run ends, nothing is selected until the user moves, so
that a key never hits the run that took its line.
"""

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget

from sandrun.insight.live import QueueView, Row, Snapshot
from sandrun.insight.top import texts

_TITLE, _FOLDED = -1, -2
_FEW = 5
"""How many waiters of a long queue are shown where there are other queues."""
_STYLES: dict[str, Style] = {}


def style(words: str) -> Style:
    """A style of Rich, parsed once."""
    if words not in _STYLES:
        _STYLES[words] = Style.parse(words)
    return _STYLES[words]


def strip(line: texts.Line, width: int, selected: bool = False) -> Strip:
    """A line as Textual draws it, in exactly `width` columns. A selected line has no colours,
    because reverse video would turn them into coloured patches."""
    if selected:
        line = [("".join(text for text, _ in line), "reverse")]
    segments = [Segment(text, style(words)) for text, words in line if text]
    return Strip(segments).adjust_cell_length(width, style("reverse") if selected else None)


class Lines(Widget):
    """A fixed number of lines."""

    DEFAULT_CSS = "Lines { height: 0; }"

    def __init__(self, name: str) -> None:
        super().__init__(id=name)
        self.lines: list[texts.Line] = []

    def show(self, lines: list[texts.Line]) -> None:
        """Show these lines; the widget's height follows their number."""
        if len(lines) != len(self.lines):
            self.styles.height = len(lines)
        if lines != self.lines:
            self.lines = lines
            self.refresh()

    def render_line(self, y: int) -> Strip:
        line = self.lines[y] if y < len(self.lines) else []
        return strip(line, self.size.width)


class Board(ScrollView, can_focus=True):
    """The list. Posts `Moved` when another run is selected, and `Opened` for Enter."""

    DEFAULT_CSS = "Board { scrollbar-size: 0 0; height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", show=False),
        Binding("down", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "move(-1000000000)", show=False),
        Binding("end,G", "move(1000000000)", show=False),
        Binding("tab", "queue(1)", show=False),
        Binding("shift+tab", "queue(-1)", show=False),
        Binding("space", "fold", show=False),
    ]

    class Moved(Message):
        """Another run is selected."""

    def __init__(self, glyphs: texts.Glyphs) -> None:
        super().__init__(id="board")
        self.glyphs = glyphs
        self.snapshot = Snapshot([], [])
        self.entries: list[tuple[QueueView, int]] = []
        """A line each: a queue and the index of its ticket, or `_TITLE` or `_FOLDED`."""
        self.unfolded = False
        self.filter = ""
        self.selected = ""
        self.cursor = 0
        """The line of the selected run, or its last line if the run has ended."""
        self.whose = False

    def update(self, snapshot: Snapshot) -> None:
        """Show another snapshot."""
        self.snapshot = snapshot
        self.whose = len({queue.uid for queue in snapshot.queues}) > 1
        first = not self.entries
        self.entries = [entry for queue in snapshot.queues for entry in self._entries(queue)]
        self.virtual_size = Size(self.size.width, len(self.entries) + 1)  # 1: the fixed heading
        at = self._line_of(self.selected)
        if at >= 0 and at != self.cursor:  # else the mouse wheel would have no effect
            self._place(at)
        elif first and not self.selected:
            self.action_move(0)
        self.cursor = max(0, min(self.cursor, len(self.entries) - 1))
        self.refresh()

    def _entries(self, queue: QueueView) -> list[tuple[QueueView, int]]:
        words = self.filter.lower()
        if words:
            title = queue.title or queue.path
            found = [
                (queue, index)
                for index, ticket in enumerate(queue.tickets)
                if words in f"{ticket.id} {ticket.command} {title}".lower()
            ]
            return [(queue, _TITLE), *found] if found else []
        shown, count = queue.running + _FEW, len(queue.tickets)
        # The waiters of one queue must not hide the runs of all others.
        is_long = count > shown + _FEW and len(self.snapshot.queues) > 1 and not self.unfolded
        last = [(queue, _FOLDED)] if is_long else []
        indexes = range(shown if is_long else count)
        return [(queue, _TITLE), *((queue, index) for index in indexes), *last]

    def action_fold(self) -> None:
        """Show all waiters of all queues, or only the first ones of long queues."""
        self.unfolded = not self.unfolded
        self.update(self.snapshot)

    def action_queue(self, queues: int) -> None:
        """Select the first run of the next or previous queue."""
        at = self._line_of(self.selected)
        line = at if at >= 0 else self.cursor
        titles = [number for number, (_, index) in enumerate(self.entries) if index == _TITLE]
        own = max((number for number in titles if number <= line), default=0)
        if titles:
            target = titles[(titles.index(own) + queues) % len(titles)]
            self.select(target if self._key(target) else target + 1)

    def _line_of(self, key: str) -> int:
        if key and self.cursor < len(self.entries) and self._key(self.cursor) == key:
            return self.cursor
        lines = range(len(self.entries)) if key else ()
        return next((line for line in lines if self._key(line) == key), -1)

    def _key(self, line: int) -> str:
        """What is selected with a line: a run's id, or the path of a queue without runs."""
        queue, index = self.entries[line]
        if index >= 0:
            return queue.tickets[index].id
        return "" if queue.tickets or index == _FOLDED else queue.path

    def selection(self) -> tuple[QueueView, Row | None] | None:
        """The selected queue, and the run or waiter if there is one; None: it is over."""
        line = self._line_of(self.selected)
        if line < 0:
            return None
        queue, index = self.entries[line]
        return queue, queue.row(index) if index >= 0 else None

    def action_move(self, lines: int) -> None:
        """Select the run so many lines further, or the last one there."""
        runs = [line for line in range(len(self.entries)) if self._key(line)]
        if not runs:
            return
        if self._line_of(self.selected) < 0:  # its run is over: the nearest line
            target = min(runs, key=lambda line: abs(line - self.cursor))
        else:
            at = runs.index(self.cursor) if self.cursor in runs else 0
            target = runs[max(0, min(at + lines, len(runs) - 1))]
        self.select(target)

    def action_page(self, pages: int) -> None:
        """Move by a screen."""
        self.action_move(pages * max(1, self.size.height - 2))

    def select(self, line: int) -> None:
        """Select the run of a line."""
        self.selected = self._key(line)
        self._place(line)
        self.refresh()
        self.post_message(self.Moved())

    def _place(self, line: int) -> None:
        self.cursor = line
        top, height = self.scroll_offset.y, max(1, self.size.height - 1)
        first = line - 1 if line and self.entries[line - 1][1] < 0 else line
        if first < top:
            self.scroll_to(y=first, animate=False, immediate=True)
        elif line >= top + height:
            self.scroll_to(y=line - height + 1, animate=False, immediate=True)

    def on_resize(self) -> None:
        """Keep the selected line on the screen."""
        self._place(self.cursor)

    def on_click(self, event: events.Click) -> None:
        line = event.y - 1 + self.scroll_offset.y
        if event.y > 0 and 0 <= line < len(self.entries) and self._key(line):
            self.select(line)

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        columns = texts.Columns(width)
        if y == 0:
            return strip([(columns.heading(), "")], width, selected=True)
        line = y - 1 + self.scroll_offset.y
        if line >= len(self.entries):
            empty = "nothing runs and nothing waits" if not self.filter else "nothing matches"
            shown = empty if not self.entries and y == 1 else ""
            return strip([(shown, "dim")], width)
        queue, index = self.entries[line]
        is_selected = self.selected != "" and self._key(line) == self.selected
        if index == _FOLDED:
            more = f"   {self.glyphs.more} {len(queue.tickets) - queue.running - _FEW} more wait"
            return strip([(f"{more} (Space shows them)", "dim")], width)
        if index < 0:
            title = texts.title(queue, self.glyphs, width, self.whose)
            return strip(title, width, is_selected)
        pieces = texts.row(queue.row(index), columns, self.glyphs)
        if is_selected:  # a mark besides the colours, for terminals that show no reverse
            pieces[0] = (">" + pieces[0][0][1:], pieces[0][1])
        return strip(pieces, width, is_selected)
