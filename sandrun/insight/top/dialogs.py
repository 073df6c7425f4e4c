"""The other screens of `sandrun top`: help, the question before a kill, a run's log."""

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Static

KEYS = (
    ("arrows, PgUp/PgDn", "select a run or a waiter (Home, End: the first, the last)"),
    ("Tab, Shift-Tab", "go to the next queue, or back"),
    ("Space", "show all waiters of long queues, or only the first"),
    ("Enter, l", "open its log"),
    ("c", "cancel the selected waiter: it exits with 75"),
    ("+, -", "give the waiter an hour more, or less, of a head start"),
    ("k", "kill the selected run or waiter, after a question"),
    ("p", "pause its queue (the current run goes on), or resume it"),
    ("/", "show only what has a text in command, project, id; Esc ends it"),
    ("Ctrl-Z", "suspend; fg continues"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit"),
)
_HELP = """\
MEMORY is what the run uses of its limit, LAST MIN how that went in the last minute, where the full
height is the limit; below the list is the whole run. CPU 100% is one processor. PROCS counts
processes and threads. STALL is the share of the time in which all of the run waited for memory. A
waiter shows when it is expected to start, from past runs.

A key acts on the run that was selected when it was pressed. When that run ends, nothing is selected
until you move."""


class Page(Screen[None]):
    """A text that can be scrolled. Esc, q and Enter go back."""

    DEFAULT_CSS = """
    Page VerticalScroll { scrollbar-size: 0 0; }
    Page #heading { text-style: bold; height: 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,enter,question_mark,l", "app.pop_screen", "back"),
    ]

    def __init__(self, heading: str, text: str) -> None:
        super().__init__()
        self.heading = heading
        self.text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(self.heading, no_wrap=True), id="heading")
        with VerticalScroll():
            yield Static(Text(self.text), id="text")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def show(self, text: str) -> None:
        """Show another text, unless the page was left."""
        self.text = text
        for shown in self.query("#text").results(Static):
            shown.update(Text(text))


def help_page(width: int) -> Page:
    """The help; on a narrow screen the keys are above their texts."""
    form = "{:17} {}" if width >= 80 else "{}\n    {}"
    text = _HELP if width >= 100 else _HELP.replace("\n\n", "\0").replace("\n", " ")
    lines = [form.format(*row) for row in KEYS]
    heading = "sandrun top: help (Esc goes back)"
    return Page(heading, "\n".join([*lines, "", text.replace("\0", "\n\n")]))


class Question(ModalScreen[bool]):
    """A question that only `y` answers with yes."""

    DEFAULT_CSS = """
    Question { align: center middle; background: transparent; }
    Question Static { width: auto; max-width: 90%; height: auto; padding: 1 2; }
    Question Static { border: ascii ansi_default; background: ansi_default; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)"),
        Binding("n,escape,enter,q,ctrl+c", "answer(False)"),
    ]

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(self.text))

    def action_answer(self, yes: bool) -> None:
        """Close with that answer."""
        self.dismiss(yes)
