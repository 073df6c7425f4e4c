"""Messages for people, on stderr only: each line has a prefix, and a `hint:` line names a remedy.

Levels: -2 nothing (`-qq`), -1 only results (`-q`), 0 normal, 1 decisions (`-v`), 2 every write to
a control file (`-vv`). A stderr that is closed or full (its reader is stopped, or Ctrl-S in the
terminal) neither fails nor delays a run: a message that cannot be written soon is dropped. Only on
Windows does a full pipe block.

Every text passes through `model.plain` here, right before it is written. So a name in it cannot
start a line, move the cursor or give a command to a CI service.

Programs subscribe to the events of the run (`subscribers`), which do not depend on the level.
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
            """sandrun exits with `code` after this error message, and there is no record."""


level = 0
_color: "bool | None" = None
_color_setting = "auto"
subscribers: "list[Subscriber]" = []


def setup(verbose: int, quiet: int, color: str) -> None:
    """Set the level and the use of colour (`auto`, `always`, `never`) for this process."""
    global level, _color_setting, _color
    level = verbose - quiet
    _color_setting = color
    _color = None


def colored() -> bool:
    """Whether to use colour on stderr."""
    global _color
    if _color is None:
        _color = wants_color(2)
    return _color


def wants_color(fd: int) -> bool:
    """Whether to use colour: by --color, else by FORCE_COLOR, else by NO_COLOR, else if the
    descriptor is a terminal that is not dumb."""
    env = os.environ
    if _color_setting != "auto":
        return _color_setting == "always"
    if env.get("FORCE_COLOR") or env.get("NO_COLOR"):
        return bool(env.get("FORCE_COLOR"))
    return is_terminal(fd) and env.get("TERM", "dumb") != "dumb"


def is_terminal(fd: int = 2) -> bool:
    """Whether a descriptor, by default stderr, is a terminal."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


_TIMEOUT, _ERROR_TIMEOUT = 100, 2000
"""Milliseconds to wait until stderr accepts more. Meanwhile the run's limits are not polled, its
signals are not handled, and the next run waits."""
_CHUNK = 4096
"""Bytes that are sure to fit when poll(2) reports a pipe as writable: PIPE_BUF (pipe(7))."""


def write(text: str, timeout: int = _TIMEOUT) -> bool:
    """Write raw text to stderr. False: it could not be written within `timeout` milliseconds."""
    if sys.platform == "win32":
        from sandrun.platform import windows_console

        return windows_console.write(text)
    import select

    data = os.fsencode(text)
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    try:
        while data and poll.poll(timeout):
            data = data[os.write(2, data[:_CHUNK]) :]
    except OSError:
        return False
    return not data


def _line(
    text: str, code: str = "", timeout: int = _TIMEOUT, more: "list[str] | None" = None
) -> bool:
    prefix = f"\x1b[{code}msandrun:\x1b[0m" if code and colored() else "sandrun:"
    # Written together, so that the lines of several sandruns on one terminal do not mix.
    lines = [text, *more] if more else [text]
    return write("".join(f"{prefix} {plain(line)}\n" for line in lines), timeout)


def error(text: str, hint: str = "", more: "list[str] | None" = None) -> None:
    """Report a failure. It is usually the last message, so a slow reader gets more time. The lines
    `more` follow `text`."""
    if level > -2 and _line(text, "31", _ERROR_TIMEOUT, more) and hint:
        _line("hint: " + hint, "36", _ERROR_TIMEOUT)


def warn(text: str, hint: str = "") -> None:
    """Report a problem after which the run goes on."""
    if level > -2 and _line(text, "33") and hint:
        _line("hint: " + hint, "36")


def status(text: str) -> None:
    """Report the state of the run; hidden by -q."""
    if level >= 0:
        _line(text, "2")


def decision(text: str) -> None:
    """Report a decision and its reason; shown by -v."""
    if level >= 1:
        _line(text, "2")


def detail(text: str) -> None:
    """Report a write to a control file; shown by -vv."""
    if level >= 2:
        _line(text, "2")


def shortage_hint(number: "int | None") -> str:
    """The hint for an errno that reports a shortage: how to get more of that resource."""
    if number == errno.EMFILE and sys.platform != "win32":
        return f"{os.sysconf('SC_OPEN_MAX')} open files are too few: ulimit -n 1024"
    if number == errno.ENFILE:
        return "the whole host has no more open files: sysctl fs.file-max"
    return "ulimit -a shows the limits of this shell"
