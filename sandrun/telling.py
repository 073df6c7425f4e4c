"""Telling the program that started us what happens to the run: one line of JSON for each event.

It hands down a descriptor and names it in SANDRUN_TELL. Neither reaches the command, so a sandrun
inside of it tells its own caller or nobody. A caller that stopped listening never fails a run.

Events: `queued` (with the run's id), `ended` (with its record), `failed` (what sandrun said and
the exit code, when no record is to come).
"""

import os

from sandrun import history

VARIABLE = "SANDRUN_TELL"
VERSION = 1

_fd = -1


def take() -> None:
    """Take what the caller handed down, out of the environment and out of the command's sight."""
    global _fd
    text = os.environ.pop(VARIABLE, "")
    try:
        _fd = int(text)
        os.set_inheritable(_fd, False)
    except (ValueError, OSError):
        _fd = -1


def tell(event: str, facts: "dict[str, object]") -> None:
    """Tell the caller, if there is one who asked for it."""
    if _fd < 0:
        return
    line = history.encode({"v": VERSION, "event": event, **facts}) + "\n"
    try:
        os.write(_fd, line.encode())
    except OSError:
        pass
