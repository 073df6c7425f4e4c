"""Notify the program that started us of run events: one line of JSON per event.

The program passes a descriptor and names it in SANDRUN_TELL. The command inherits neither, so a
sandrun inside of it notifies its own caller or nobody. The events are those of
`messages.Subscriber`.

Promises to the program
- It need not read. A pipe that is closed does not fail the run. One that is full delays it by
  0.1 s, once: then the event is dropped, and with -v a message says so. Later events are written
  if they fit at once. (On Windows a full pipe blocks.)
- A line of at most PIPE_BUF bytes is written whole or not at all, so several runs may share a pipe
  (pipe(7)). A longer one may be cut short: the reader must ignore what is not JSON.
- The flags of its own end of the pipe do not change.
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

_TIMEOUT = 100
"""Milliseconds to wait until the pipe accepts more, as for stderr: meanwhile the next run waits."""

_fd = -1
_has_dropped = False


def subscribe() -> None:
    """Subscribe the caller, and hide its descriptor and variable from the command."""
    global _fd
    try:
        _fd = int(os.environ.pop(VARIABLE, ""))
        if sys.platform == "win32":  # only a handle can be inherited
            import msvcrt

            _fd = msvcrt.open_osfhandle(_fd, 0)
        os.set_inheritable(_fd, False)
        _make_non_blocking(_fd)
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
    global _has_dropped
    line = history.encode({"v": VERSION, "event": event, **facts}) + "\n"
    try:
        is_written = _write(line.encode(), 0 if _has_dropped else _TIMEOUT)
    except OSError:
        return  # nobody reads any more
    if not is_written and not _has_dropped:
        _has_dropped = True
        messages.decision(f"dropped the event {event!r}: the pipe of {VARIABLE} is full")


def _write(data: bytes, timeout: int) -> bool:
    """Write data to the program. False: not all of it fitted within `timeout` milliseconds. Raises
    OSError."""
    if sys.platform == "win32":
        os.write(_fd, data)
        return True
    import select

    poll = select.poll()
    poll.register(_fd, select.POLLOUT)
    while data and poll.poll(timeout):
        try:
            data = data[os.write(_fd, data[: select.PIPE_BUF]) :]
        except BlockingIOError:
            pass  # another writer was faster
    return not data


def _make_non_blocking(fd: int) -> None:
    """Replace a pipe's descriptor by one of an open file of our own that does not block.

    O_NONBLOCK belongs to the open file (fcntl(2)), which the program and its other children share.
    Opening /proc/self/fd/N opens the pipe anew (proc(5)). Without a right to that (the pipe of
    another user) or without /proc, poll(2) alone keeps a write from blocking.
    """
    if sys.platform == "win32" or os.fstat(fd).st_mode & 0o170000 != 0o010000:  # stat.S_ISFIFO
        return
    import fcntl

    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return  # not our descriptor: opening it anew would let us write to it
    try:
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return
    os.dup2(own, fd, inheritable=False)
    os.close(own)
