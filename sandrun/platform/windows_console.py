"""The events of the console: Ctrl-C, Ctrl-Break, and the end of the console.

A console sends its events to all attached processes, so the command has already received a Ctrl-C.
For each event the system starts a thread, which only records it. Without a console there are no
events, and nothing fails.
"""

import ctypes
import os
import sys

from sandrun.platform import windows_api, windows_files
from sandrun.platform.windows_api import calls

_CLOSING_SECONDS = 10
"""More than the five seconds after which Windows terminates the processes of a closed console."""

event = 0
"""The handle of a Windows event that is set while `pending` is not empty; 0: not listening."""
pending: "list[int]" = []
"""The console's events that `take_events` has not returned yet, oldest first."""
_handler: object = None


def listen() -> None:
    """Record the console's events from now on instead of being terminated by them."""
    global event, _handler
    if event:
        return
    event = windows_files.make_event()
    kind = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)(windows_api.BOOL, windows_api.DWORD)
    _handler = kind(_record)  # must stay referenced while the system may call it
    calls.SetConsoleCtrlHandler(_handler, True)


def restore() -> None:
    """Let the console's events terminate us again, as they terminate an ordinary program."""
    global event, _handler
    if event:
        calls.SetConsoleCtrlHandler(_handler, False)
        windows_files.close(event)
        event, _handler = 0, None


def _record(kind: int) -> int:
    pending.append(kind)
    windows_files.set_event(event)
    if kind >= windows_api.CTRL_CLOSE_EVENT:  # or logoff, or shutdown
        # The process is terminated when this returns, so wait while the main thread ends the run.
        calls.WaitForSingleObject(calls.GetCurrentProcess(), _CLOSING_SECONDS * 1000)
    return 1


def take_events() -> "list[int]":
    """The events since the last call."""
    found: list[int] = []
    while pending:
        found.append(pending.pop(0))
    return found


def write(text: str) -> bool:
    """Write to stderr; False: not possible. Blocks on a full pipe."""
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(text)  # a console needs UTF-16, which Python's stream writes
            sys.stderr.flush()
        else:
            os.write(2, os.fsencode(text))
        return True
    except OSError:
        return False


def break_all(members: "set[int]") -> bool:
    """Send Ctrl-Break to the processes of our console. False: not all of them are among `members`,
    so a shell or our caller would get it, too."""
    room = 256
    pids = (windows_api.DWORD * room)()
    try:
        count = calls.GetConsoleProcessList(pids, room)
        if not 1 < count <= room or not set(pids[:count]) <= members:
            return False
        calls.GenerateConsoleCtrlEvent(windows_api.CTRL_BREAK_EVENT, 0)
        return True
    except OSError:  # there is no console
        return False
