"""The full screen of `sandrun top`, and what its keys do."""

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import ClassVar

from textual import events, work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType

from sandrun.config.settings import Settings
from sandrun.insight import run_log, run_text
from sandrun.insight.live import QueueView, Row, Snapshot, Watch, own_uid, user_name
from sandrun.insight.top import actions, texts
from sandrun.insight.top.board import Board, Lines
from sandrun.insight.top.dialogs import Page, Question, help_page
from sandrun.model import SandrunError, error_text, is_run_id
from sandrun.queue import memory_pool

INTERVAL = 1.0
"""Seconds between two snapshots."""
_SHARE = 0.01
"""The share of a processor that snapshots may use: after an expensive one, the next comes later."""
_NOTE_SECONDS = 8.0
_KEYS = "c cancel  k kill  +/- priority  p pause  l log  / filter  ? help  q quit"
_SHORT_KEYS = "c k +/- p l /  ? help  q quit"


class Top(App[int]):
    """Shows the snapshots that `take` returns. `budget` is that of the caller's pool in bytes;
    `grace` the seconds for which a killed run may clean up."""

    TITLE = "sandrun top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q,ctrl+c", "quit", priority=False),
        Binding("ctrl+z", "suspend_process"),
        Binding("c", "cancel"),
        Binding("k", "kill"),
        Binding("plus,equals_sign", "prioritize(1)"),
        Binding("minus", "prioritize(-1)"),
        Binding("p", "pause"),
        Binding("l,enter", "log"),
        Binding("slash", "filter"),
        Binding("escape", "clear"),
        Binding("question_mark,h,f1", "help"),
    ]

    def __init__(
        self, take: Callable[[], Snapshot], budget: int, grace: float, ascii_only: bool
    ) -> None:
        super().__init__(ansi_color=True)
        self.take = take
        self.budget = budget
        self.grace = grace
        self.glyphs = texts.Glyphs(ascii_only)
        self.note = ""
        self.noted_at = 0.0
        self.died_of = 0
        self.is_typing = False

    def compose(self) -> ComposeResult:
        yield Lines("header")
        yield Board(self.glyphs)
        yield Lines("details")
        yield Lines("keys")

    def on_mount(self) -> None:
        self.theme = "ansi-dark"
        self.board = self.query_one(Board)
        self.board.focus()
        if sys.platform != "win32":
            import asyncio

            loop = asyncio.get_running_loop()
            for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                loop.add_signal_handler(signum, self._end, signum)
        self._refresh()

    def _end(self, signum: int) -> None:
        self.died_of = signum
        self.exit()

    def _print_error_renderables(self) -> None:
        """Print no traceback of Textual's: `show` raises the exception."""

    def _refresh(self) -> None:
        began = time.process_time()
        try:
            self.board.update(self.take())
            self._draw()
        except (OSError, SandrunError) as error:  # such as too few file descriptors: it may pass
            self.say(error_text(error) if isinstance(error, OSError) else error.text)
        cost = time.process_time() - began
        self.set_timer(max(INTERVAL, cost / _SHARE), self._refresh)

    def on_resize(self) -> None:
        """Which lines there are depends on the height."""
        if hasattr(self, "board"):
            self._draw()

    def on_board_moved(self) -> None:
        self._draw()

    def _draw(self) -> None:
        """Draw the lines above and below the list."""
        width, height = self.size
        snapshot = self.board.snapshot
        if time.monotonic() - self.noted_at > _NOTE_SECONDS:
            self.note = ""
        match = f"filter: {self.board.filter}" if self.board.filter else ""
        lines = [texts.header(snapshot, self.glyphs, width, match)] if height > 5 else []
        me = own_uid()
        pools = sorted(snapshot.pools, key=lambda pool: pool.uid != me)
        for pool in pools[: 0 if height < 12 else 1 if height < 30 else 4]:
            own = pool.uid == me
            whose = "" if own else f" of {user_name(pool.uid)}"
            budget = self.budget if own else 0
            lines.append(texts.pool(pool, budget, self.glyphs, width, whose))
        self.query_one("#header", Lines).show(lines)
        self.query_one("#details", Lines).show(self._details(width, height))
        note = self.glyphs.text(self.note)
        if self.is_typing:
            note = f"filter: {self.glyphs.text(self.board.filter)}_  (Enter: done, Esc: all)"
        keys = _KEYS if width > len(_KEYS) else _SHORT_KEYS
        last: texts.Line = [(note, "bold")] if note else [(self.glyphs.fit(keys, width), "dim")]
        self.query_one("#keys", Lines).show([last])

    def _details(self, width: int, height: int) -> list[texts.Line]:
        room = min(10, (height - 14) // 2)
        if room < 2:
            return []
        rule: texts.Line = [(self.glyphs.rule * width, "dim")]
        selection = self.board.selection()
        if selection is None or selection[1] is None:
            over = self.board.selected and selection is None
            text = self._why_none() if over else ""
            return [rule, [(text, "dim")], *[[] for _ in range(room - 1)]]
        lines = texts.details(selection[0], selection[1], self.glyphs, width, room)
        return [rule, *lines, *[[] for _ in range(room - len(lines))]]

    def say(self, text: str) -> None:
        """Show a line at the bottom for some seconds."""
        self.note, self.noted_at = text, time.monotonic()
        self._draw()

    def _selected(self) -> tuple[QueueView, Row] | None:
        selection = self.board.selection()
        if selection and selection[1]:
            return selection[0], selection[1]
        self.say(self._why_none() if self.board.selected else "nothing is selected")
        return None

    def _why_none(self) -> str:
        hidden = ", or the filter hides it" if self.board.filter else ""
        return f"the selected run is over{hidden}"

    def action_cancel(self) -> None:
        """Cancel the selected waiter."""
        if found := self._selected():
            self.say(actions.cancel(found[0].path, found[1].id))

    def action_prioritize(self, steps: int) -> None:
        """Move the selected waiter."""
        if found := self._selected():
            self.say(actions.prioritize(found[0].path, found[1].id, steps))

    def action_pause(self) -> None:
        """Pause or resume the queue of the selection."""
        if selection := self.board.selection():
            self.say(actions.toggle_pause(selection[0].path, selection[0].paused))
        else:
            self._selected()

    def action_kill(self) -> None:
        """Ask, then kill the selected run or waiter."""
        found = self._selected()
        if not found:
            return
        path, run_id = found[0].path, found[1].id
        what = "run" if found[1].ticket.running else "waiter"
        command = self.glyphs.text(found[1].ticket.command)

        def answered(yes: bool | None) -> None:
            if yes:
                self.say(f"ending {run_id} ...")
                self._kill(path, run_id)

        self.push_screen(
            Question(f"Kill {what} {run_id} with all its processes?\n{command}\n\ny: yes, n: no"),
            answered,
        )

    @work(thread=True)
    def _kill(self, path: str, run_id: str) -> None:
        lines = actions.kill(path, run_id, self.grace)
        self.call_from_thread(self.say, "; ".join(lines))

    def action_log(self) -> None:
        """Show the log of the selected run, also if it has just ended."""
        if is_run_id(self.board.selected):
            page = Page(f"log of {self.board.selected} (Esc goes back)", "...")
            self.push_screen(page)  # at once: the next key is already for it
            self._show_log(page, self.board.selected, self.size.width)
        else:
            self._selected()

    @work(thread=True)
    def _show_log(self, page: Page, run_id: str, width: int) -> None:
        try:
            log = run_log.find(run_id, "", "")
            lines = run_text.lines(log, width, not self.glyphs.ascii_only)
        except SandrunError as error:
            lines = [error.text]
        self.call_from_thread(page.show, "\n".join(map(self.glyphs.text, lines)))

    def action_filter(self) -> None:
        """Begin to read a filter."""
        self.is_typing = True
        self._draw()

    def on_key(self, event: events.Key) -> None:
        """Read a filter; no key has its other meaning meanwhile. There is no Input widget, because
        keys that were typed before it got the focus would go to the list."""
        if not self.is_typing or event.key == "ctrl+c":
            return
        event.prevent_default()
        text = self.board.filter
        if event.key in ("enter", "escape"):
            self.is_typing = False
            text = "" if event.key == "escape" else text
        elif event.key == "backspace":
            text = text[:-1]
        elif event.key == "ctrl+u":
            text = ""
        elif event.character and event.is_printable:
            text += event.character
        self._set_filter(text)

    def _set_filter(self, text: str) -> None:
        self.board.filter = text
        self.board.update(self.board.snapshot)
        self._draw()

    def action_clear(self) -> None:
        """End the filter."""
        self._set_filter("")

    def action_help(self) -> None:
        """Show the help."""
        self.push_screen(help_page(self.size.width))


def main(here: tuple[str, str], settings: Settings, ascii_only: bool, colored: bool) -> int:
    """Show the full screen until the user ends it. Returns the exit code, or -n for the signal n
    that ended it, which the caller then sends to this process."""
    os.environ.pop("NO_COLOR", None)  # --color always overrides it, --color never sets it
    if not colored:
        os.environ["NO_COLOR"] = "1"
    return show(
        Top(Watch(here).take, memory_pool.budget(settings.pool), settings.grace, ascii_only)
    )


def show(app: Top) -> int:
    """Run the app, and restore the terminal. Returns what `main` returns, and raises what the app
    raised."""
    app.run()
    if app._exception:
        raise app._exception
    return -app.died_of if app.died_of else app.return_code or 0
