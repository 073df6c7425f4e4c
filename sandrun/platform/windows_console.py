"""What this process is told while it waits or supervises: Ctrl-C, Ctrl-Break, the end of the
console, and the orders of another sandrun (`sandrun kill`, `queue cancel`).

A console's events come to every process that is attached to it, so the command has had its Ctrl-C
already. Each comes in a thread of its own that the system makes; nothing but noting it is done
there. Without a console none comes, and nothing fails.
"""

import ctypes
import os
import sys

from sandrun.platform import windows_api, windows_files
from sandrun.platform.windows_api import calls

_CLOSING_SECONDS = 10
"""The system ends a process of a console that goes away after five seconds at the latest."""

event = 0
"""Set when there is something in `said`; 0: `listen` was not called."""
said: "list[int]" = []
"""The console's events that nobody took yet, oldest first."""
_handler: object = None


def listen() -> None:
    """Take the console's events from here on instead of dying of them."""
    global event, _handler
    if event:
        return
    event = windows_files.make_event()
    kind = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)(windows_api.BOOL, windows_api.DWORD)
    _handler = kind(_note)  # kept: the system calls it until the end
    calls.SetConsoleCtrlHandler(_handler, True)


def restore() -> None:
    """Die of the console's events again, as an ordinary program."""
    global event, _handler
    if event:
        calls.SetConsoleCtrlHandler(_handler, False)
        windows_files.close(event)
        event, _handler = 0, None


def _note(kind: int) -> int:
    said.append(kind)
    windows_files.set_event(event)
    if kind >= windows_api.CTRL_CLOSE_EVENT:  # or logoff, or shutdown
        # The process ends when this returns; it ends anyway when the run is over.
        calls.WaitForSingleObject(calls.GetCurrentProcess(), _CLOSING_SECONDS * 1000)
    return 1


def take() -> "list[int]":
    """The events that came since the last call."""
    found: list[int] = []
    while said:
        found.append(said.pop(0))
    return found


def write(text: str) -> bool:
    """Write to stderr; False: there is none. A pipe that nobody reads is waited for."""
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            sys.stderr.write(text)  # a console takes UTF-16, and Python's stream knows how
            sys.stderr.flush()
        else:
            os.write(2, os.fsencode(text))
        return True
    except OSError:
        return False


def break_all(members: "set[int]") -> bool:
    """Send Ctrl-Break to the processes of our console, if all of them are among `members`; else
    False: a shell or whoever started us would be hit as well."""
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
