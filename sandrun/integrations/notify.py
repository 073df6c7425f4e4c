"""Notify the program that started us of run events: one line of JSON per event.

The program passes a descriptor and names it in SANDRUN_TELL. The command inherits neither, so a
sandrun inside of it notifies its own caller or nobody. A caller that closes the pipe does not fail
the run.

The events are those of `messages.Subscriber`.
"""

import os
import sys

from sandrun import history, messages

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.types import Record

VARIABLE = "SANDRUN_TELL"
VERSION = 1

_fd = -1


def subscribe() -> None:
    """Subscribe the caller, and hide its descriptor and variable from the command."""
    global _fd
    try:
        _fd = int(os.environ.pop(VARIABLE, ""))
        if sys.platform == "win32":  # only a handle can be inherited
            import msvcrt

            _fd = msvcrt.open_osfhandle(_fd, 0)
        os.set_inheritable(_fd, False)
        messages.subscribers.append(sys.modules[__name__])
    except (ValueError, OSError):
        _fd = -1  # not our descriptor: the variable was inherited from another process


def queued(run_id: str) -> None:
    _notify("queued", {"id": run_id})


def ended(record: "Record") -> None:
    _notify("ended", record)


def failed(text: str, hint: str, code: int) -> None:
    _notify("failed", {"text": text, "hint": hint, "exit": code})


def _notify(event: str, facts: "Mapping[str, object]") -> None:
    line = history.encode({"v": VERSION, "event": event, **facts}) + "\n"
    try:
        os.write(_fd, line.encode())
    except OSError:
        pass
