"""What sandrun says to people: stderr only, each line prefixed, a `hint:` line that mends it.

Levels: -2 silent (`-qq`), -1 results only (`-q`), 0 normal, 1 decisions (`-v`), 2 every write to
a control file (`-vv`). A stderr that is closed or full (a reader that stands still, a terminal
after Ctrl-S) never fails a run nor holds it up: what cannot be said soon is dropped.

Each text passes `model.plain` here, at the exit, whoever wrote it: a name in it cannot start a
line, move the cursor or command a CI service.

Programs subscribe to the run's events (`subscribers`), which do not depend on the level.
"""

import errno
import os
import sys

from sandrun.model import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sandrun.types import Record

    class Subscriber(Protocol):
        """Is notified of the events of this process's run, in this order."""

        def queued(self, run_id: str) -> None:
            """The run exists and will wait for its turn."""

        def ended(self, record: Record) -> None:
            """The run is over."""

        def failed(self, text: str, hint: str, code: int) -> None:
            """sandrun exits with `code` after that message, and there is no record."""


level = 0
_color: "bool | None" = None
_color_wish = "auto"
subscribers: "list[Subscriber]" = []


def setup(verbose: int, quiet: int, color: str) -> None:
    """Fix the level and the wish for colour (`auto`, `always`, `never`) for this process."""
    global level, _color_wish, _color
    level = verbose - quiet
    _color_wish = color
    _color = None


def colored() -> bool:
    """Whether to colour: --color, then FORCE_COLOR, NO_COLOR, then a TTY that is not dumb."""
    global _color
    if _color is None:
        env = os.environ
        if _color_wish != "auto":
            _color = _color_wish == "always"
        elif env.get("FORCE_COLOR"):
            _color = True
        elif env.get("NO_COLOR"):
            _color = False
        else:
            _color = is_terminal() and env.get("TERM", "dumb") != "dumb"
    return _color


def is_terminal() -> bool:
    """Whether stderr is a terminal."""
    try:
        return os.isatty(2)
    except OSError:
        return False


_PATIENCE, _LAST_WORDS = 100, 2000
"""Milliseconds to wait for room: limits, signals and the queue's next wait as long."""
_ROOM = 4096
"""Bytes that fit where poll(2) says that there is room: PIPE_BUF (pipe(7))."""


def write(text: str, patience: int = _PATIENCE) -> bool:
    """Write raw text to stderr; False: there was no room for it within `patience` milliseconds."""
    if sys.platform == "win32":
        from sandrun.platform import windows_console

        return windows_console.write(text)
    import select

    data = os.fsencode(text)
    waiter = select.poll()
    waiter.register(2, select.POLLOUT)
    try:
        while data and waiter.poll(patience):
            data = data[os.write(2, data[:_ROOM]) :]
    except OSError:
        return False
    return not data


def _line(
    text: str, code: str = "", patience: int = _PATIENCE, more: "list[str] | None" = None
) -> bool:
    prefix = f"\x1b[{code}msandrun:\x1b[0m" if code and colored() else "sandrun:"
    # One write, so that lines of several sandruns on one terminal never mix.
    lines = [text, *more] if more else [text]
    return write("".join(f"{prefix} {plain(line)}\n" for line in lines), patience)


def error(text: str, hint: str = "", more: "list[str] | None" = None) -> None:
    """Something failed: mostly our last words, worth some waiting for a slow reader. `more` lines
    follow the first."""
    if level > -2 and _line(text, "31", _LAST_WORDS, more) and hint:
        _line("hint: " + hint, "36", _LAST_WORDS)


def warn(text: str, hint: str = "") -> None:
    """Something the user should know though the run goes on."""
    if level > -2 and _line(text, "33") and hint:
        _line("hint: " + hint, "36")


def status(text: str) -> None:
    """Where the run stands; hidden by -q."""
    if level >= 0:
        _line(text, "2")


def decision(text: str) -> None:
    """What was decided and why; shown by -v."""
    if level >= 1:
        _line(text, "2")


def detail(text: str) -> None:
    """Each write to a control file; shown by -vv."""
    if level >= 2:
        _line(text, "2")


def shortage_hint(number: "int | None") -> str:
    """The hint for an errno of a shortage: what gives more of what the system refused."""
    if number == errno.EMFILE and sys.platform != "win32":
        return f"{os.sysconf('SC_OPEN_MAX')} open files are too few: ulimit -n 1024"
    if number == errno.ENFILE:
        return "the whole host has no more open files: sysctl fs.file-max"
    return "ulimit -a shows what this shell may have"
