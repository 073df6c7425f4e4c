"""The holder's line: a description, in the run lock's file, of the run that holds the lock.

A run writes it when its command starts. From it, a process that finds the supervisor dead learns
what to end and what to record (`sandrun.lifecycle.recovery`). The line is only text, so it is
rejected as a whole unless each field is well-formed (`parse`).
"""

import os
import sys
import time

from sandrun import history
from sandrun.model import is_run_id
from sandrun.queue import Queue, RunLock, StateGone, Ticket, read_holder_line
from sandrun.queue.state import slot_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Protocol

    class Writable(Protocol):
        """A run lock in whose file a holder's line can be written."""

        def write_holder(self, line: bytes) -> None: ...


class Holder:
    """The run that a holder's line describes. Every field has been checked: texts contain no NUL,
    `state` is an absolute path, `since` is in the past. `born` is the supervisor's start time in
    clock ticks (0: unknown). `record` has the known fields of the run's record. `unkillable` are
    the processes that could not be ended, with their start times."""

    __slots__ = (
        *("backend", "born", "container", "cwd", "id", "leaves", "pid", "record", "since"),
        *("state", "unkillable"),
    )

    def __init__(self, fields: "Mapping[str, object]") -> None:
        """Raises ValueError, TypeError or AttributeError for fields that we never write."""
        self.id = _text(fields, "id")
        self.pid = _number(fields, "pid", 1 << 32)
        self.backend = _text(fields, "backend")
        self.container = _text(fields, "container")
        self.state = _text(fields, "state")
        self.cwd = _text(fields, "cwd")
        self.since = _number(fields, "since", time.time() + _AHEAD)
        self.born = int(_number(fields, "born", 1 << 62)) if "born" in fields else 0
        self.leaves = fields.get("leftovers") == "leave"
        self.unkillable = _starts(fields.get("unkillable"))
        known = fields.get("v", history.VERSION) == history.VERSION  # older lines have no version
        if not known or not is_run_id(self.id) or not os.path.isabs(self.state):
            raise ValueError
        self.record = history.checked(fields)


_AHEAD = 3600.0
"""Seconds by which the clock may have been set back since the line was written."""


def _text(fields: "Mapping[str, object]", key: str) -> str:
    value = fields.get(key)
    # A text that cannot be encoded or contains a NUL names no file.
    if not isinstance(value, str) or b"\0" in os.fsencode(value):
        raise ValueError
    return value


def _number(fields: "Mapping[str, object]", key: str, most: float) -> float:
    value = fields.get(key)
    if not isinstance(value, int | float) or not 0 < value < most:
        raise ValueError
    return value


def _starts(value: object) -> "dict[int, int]":
    """Start times by pid, as `note_unkillable` writes them. We only wait for these processes."""
    pairs = value if isinstance(value, list) else []
    return {pid: start for pid, start in pairs if type(pid) is type(start) is int and pid > 1}


def note_unkillable(lock: "Writable", line: bytes, pids: "Iterable[int]") -> None:
    """Add the processes that could not be ended to the holder's line."""
    import json

    from sandrun.platform import processes

    fields = {**json.loads(line), "unkillable": [[pid, processes.start(pid)] for pid in pids]}
    lock.write_holder(history.encode(fields).encode())


def unkillable(line: bytes) -> "list[int]":
    """The live processes that the line names as impossible to end."""
    holder = parse(line) if b'"unkillable"' in line else None
    return list(alive(holder.unkillable)) if holder else []


def kept_for(queue: Queue) -> "list[int]":
    """The live processes that could not be ended, for which run locks of a queue are held. Locks
    nothing."""
    return [pid for _, line in lines(queue) for pid in unkillable(line)]


def parse(line: bytes) -> "Holder | None":
    """The run that a line describes; None: it is not a line that we write."""
    import json

    try:
        return Holder(json.loads(line))
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def alive(known: "dict[int, int]") -> "dict[int, int]":
    from sandrun.platform import processes

    return {
        pid: start
        for pid, start in known.items()
        if processes.start(pid) == start and not processes.has_exited(pid)
    }


def each_slot(queue: Queue) -> "Iterator[tuple[RunLock, bool]]":
    """The run lock of each slot that was ever used in a state directory, and whether it was free.
    If so, we hold it until the next one is asked for, or until it is dropped or released."""
    for slot in queue.slots():
        lock = RunLock(queue, slot, first=slot)
        try:
            is_free = lock.try_acquire()
        except StateGone:  # a missing lock has no holder
            return
        yield lock, is_free
        lock.drop()


def lines(queue: Queue) -> "Iterator[tuple[os.stat_result, bytes]]":
    """The file status and the holder's line of each slot in a state directory. Locks nothing.
    Empty on Windows, where no caller needs them."""
    if sys.platform == "win32":
        return
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    for slot in queue.slots():
        try:
            fd = os.open(slot_file("executor", slot), flags, dir_fd=queue.dir)
        except OSError:
            continue
        yield os.fstat(fd), read_holder_line(fd)
        os.close(fd)


def directory(queue: Queue, ticket: Ticket) -> str:
    """The directory in which the run of a ticket was started; '' if unknown. If the command runs,
    the holder's line has it, because the supervisor is then in `/` (except on Windows)."""
    from sandrun.platform import processes

    if ticket.running:
        for record in history.records(line for _, line in lines(queue)):
            if record.get("id") == ticket.id:
                return str(record.get("cwd", ""))
    try:
        return processes.working_directory(ticket.pid)
    except OSError:
        return ""
