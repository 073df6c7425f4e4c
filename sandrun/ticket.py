"""A ticket: a run's place in a queue, all of it told by a file name.

No file is read to show a queue, and a rename changes a ticket atomically. What a ticket promises
while it is open stands in `sandrun.queue`.
"""

import os
import sys
import time

from sandrun.model import command_text

RUNS = b"R"
"""What a ticket's owner writes into it when its turn has come."""
SECOND = 10**9
# Keys are nanoseconds since the boot plus this, so that a head start taken off soon after a
# boot still leaves a positive number of 20 digits.
_KEY_BASE = 10**19
_COMMAND_BYTES = 120  # names end at 255 bytes


class Ticket:
    """A run's place in the queue, as its file name tells: no file is read to show a queue.

    `<w|r><key>.<id>.<pid>.<epoch seconds>.<extra>.<command>`: r (running) sorts before w
    (waiting); the time is when it began to run or to wait; `extra` is the head start in seconds,
    in the pool the run's memory in bytes. `pid` is for people, and for signals after the lock
    proved it alive.
    """

    __slots__ = ("command", "extra", "fd", "id", "key", "name", "pid", "running", "since")

    def __init__(self, name: str, fd: int = -1) -> None:
        self.fd = fd
        self.rename(name)

    def rename(self, name: str) -> None:
        self.name = name
        order, self.id, pid, since, extra, command = name.split(".", 5)
        self.running = order[0] == "r"
        self.key = int(order[1:])
        self.pid = int(pid)
        self.since = int(since)
        self.extra = int(extra)
        self.command = unescape(command)

    def ran(self) -> bool:
        """Whether its owner, which ended, had its turn; only the first who asks is told."""
        try:
            return RUNS in os.read(self.fd, 4096)
        except OSError:
            return False

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1


_UNSAFE = b'/%\\:*?"<>|.' if sys.platform == "win32" else b"/%"
"""What a file name cannot have, or, on Windows, must not end with; a blank is kept from its end."""


def escape(text: str) -> str:
    """A command as part of a file name: no slash, nothing unprintable, short."""
    raw = os.fsencode(text)[:_COMMAND_BYTES]
    safe = "".join(chr(c) if 32 <= c < 127 and c not in _UNSAFE else f"%{c:02X}" for c in raw)
    return safe[:160].rstrip(" ") if sys.platform == "win32" else safe[:160]


def unescape(text: str) -> str:
    if "%" not in text:
        return text
    first, *rest = text.split("%")
    raw = first.encode("latin-1")
    for part in rest:
        try:
            raw += bytes((int(part[:2], 16),)) + part[2:].encode("latin-1")
        except ValueError:  # cut in the middle of an escape
            break
    shown = raw.decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in shown)


def shown(command: "list[str]") -> str:
    """A command as its ticket shows it."""
    return unescape(escape(command_text(command)))


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped (Ctrl-Z, a debugger)."""
    from sandrun import kernel

    try:
        return kernel.Stat(pid).state in "Tt"
    except OSError:
        return False


def head_key(head_start: int) -> int:
    """The key of who comes now with a head start in seconds.

    The clock is CLOCK_MONOTONIC on Linux; on Windows time.monotonic would tick 64 times a second.
    """
    return _KEY_BASE + time.perf_counter_ns() - head_start * SECOND
