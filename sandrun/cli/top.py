"""The subcommand top: queues and runs on a full screen."""

import os
import sys

import click

from sandrun import messages
from sandrun.cli import extras
from sandrun.config import settings
from sandrun.model import SandrunError
from sandrun.platform import spawn

REQUIREMENT = "textual>=8,<9"


@click.command(short_help="Watch queues and runs on a full screen.")
@click.pass_obj
def top(obj: "tuple[str, settings.Settings]") -> None:
    """Watch all your queues, their runs and waiters on a full screen; root sees those of all users.

    Shows memory against the limit as a curve, CPU, processes, and when a waiter is expected to
    start. Keys cancel, move, pause, kill (after a question) and open a run's log; ? lists them.
    """
    if not (_is_terminal(0) and _is_terminal(1) and _is_terminal(2)):
        raise SandrunError("top needs a terminal", "sandrun status --all --watch")
    if os.environ.get("TERM", "") in ("", "dumb", "unknown") and sys.platform != "win32":
        raise SandrunError(
            f"top needs a terminal that can move the cursor (TERM={os.environ.get('TERM', '')})",
            "sandrun status --all --watch",
        )
    extras.load("textual", REQUIREMENT, "sandrun top")
    from sandrun.insight import plots
    from sandrun.insight.top import app

    root, chosen = obj
    code = app.main(
        (root, chosen.queue),
        chosen,
        not plots.can_show_blocks(),
        messages.colored() and _has_colors(),
    )
    if code < 0:  # a signal, which is repeated now that the terminal is restored
        spawn.die_of(-code)
    raise SystemExit(code)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _has_colors() -> bool:
    """Whether terminfo knows the terminal as one with colours; unknown ones have some."""
    try:
        import curses
    except ImportError:  # Windows, or a Python that was built without it
        return True
    try:
        curses.setupterm()
    except curses.error:
        return True
    return curses.tigetnum("colors") > 0


ALL: "tuple[click.Command, ...]" = (top,)
