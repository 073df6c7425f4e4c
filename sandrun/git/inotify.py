"""Block until a few directories change: inotify(7), or short sleeps without it.

Invariant: check the files after making `Watch`, then `sleep`. A change in between is queued, so no
wakeup is lost.
"""

import os
import select
import sys
import time

assert sys.platform != "win32"

_EVENTS = 0x40 | 0x80 | 0x200 | 0x400 | 0x800  # MOVED_FROM, MOVED_TO, DELETE, DELETE/MOVE_SELF
_CLOEXEC_NONBLOCK = os.O_CLOEXEC | os.O_NONBLOCK
_POLL_SECONDS = 0.05


class Watch:
    """Watches directories for removed and renamed files; missing directories are skipped."""

    def __init__(self, directories: "set[str]") -> None:
        self.fd = _start()
        for directory in directories if self.fd >= 0 else ():
            _add(self.fd, directory)

    def sleep(self, seconds: float) -> None:
        """Return after a change, or after `seconds`."""
        if self.fd < 0:
            time.sleep(min(seconds, _POLL_SECONDS))
            return
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if poll.poll(max(0.0, seconds) * 1000):
            try:
                os.read(self.fd, 65536)
            except BlockingIOError:
                pass

    def close(self) -> None:
        """Stop watching."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _start() -> int:
    try:
        import ctypes

        return int(ctypes.CDLL(None, use_errno=True).inotify_init1(_CLOEXEC_NONBLOCK))
    except (ImportError, OSError, AttributeError):
        return -1


def _add(fd: int, directory: str) -> None:
    import ctypes

    ctypes.CDLL(None, use_errno=True).inotify_add_watch(fd, os.fsencode(directory), _EVENTS)
