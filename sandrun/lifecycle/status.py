"""The runs and waiters of a queue, for `sandrun status` and `sandrun kill`. Removes dead
tickets."""

import os
import sys
import time

from sandrun.errors import command_for
from sandrun.model import SandrunError, plain, size_text, span_text
from sandrun.platform import processes
from sandrun.queue import Queue, Ticket, holder, is_stopped
from sandrun.queue.state import pool_path
from sandrun.supervise import report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def open_queue(path: str) -> "Queue | None":
    """The queue in a state directory. None: it was never used. Raises SandrunError."""
    return Queue(path) if os.path.lexists(path) else None


def waiting_for_memory() -> "set[str]":
    """The ids of the runs that wait for memory in the pool."""
    path = pool_path()
    try:
        queue = open_queue(path)
    except SandrunError:
        queue = None
    if queue is None:
        return set()
    try:
        return {ticket.id for ticket in queue.tickets() if not ticket.running}
    finally:
        queue.close()


def describe(
    path: str, root: str = "", name: str = "", passive: bool = False
) -> "dict[str, object]":
    """One queue as plain data: its path, and its tickets in order, running ones first.

    With the project `root` or the `name` of the queue, `held` lists the holders of the run lock
    that have no ticket here. `passive`, for a caller that calls it repeatedly: writes no queue.txt,
    removes only dead tickets, and tries no run lock, which could delay a run that is starting.
    """
    rows: list[dict[str, object]] = []
    held: list[dict[str, object]] = []
    note = ""
    lost = False
    try:
        queue = open_queue(path)
        if queue:
            if not passive:
                queue.sweep()
            waiting = waiting_for_memory()
            rows = [_row(queue, ticket, ticket.id in waiting) for ticket in queue.tickets()]
            # This locks for an instant, so it is done only if no run should hold the lock.
            probe = not passive and not any(row["running"] for row in rows)
            note, lost = _note(queue, name, probe)
            if not passive:
                queue.publish_queue_file()
        if sys.platform != "win32" and (root or name) and not lost:
            from sandrun.queue import lock_holders

            held = lock_holders.foreign(queue, root, name, not passive)
        if queue:
            queue.close()
    except SandrunError as error:
        note = error.text
    of = "" if name else root
    return {"path": path, "project": of, "queue": name, "runs": rows, "held": held, "note": note}


def _note(queue: Queue, name: str, probe: bool) -> "tuple[str, bool]":
    """What is unusual about a queue in words, and whether an ended run still holds the run lock.
    `probe`: also try to lock that."""
    if kept := holder.kept_for(queue):
        what = f"{report.unkillable(kept[0])}{report.way_to_end(kept[0])}"
        return f"the run lock is kept for what could not be ended: {what}", True
    if queue.paused:
        return f"paused; go on with: {command_for('resume', name)}", False
    if probe and not all(free for _, free in holder.each_slot(queue)):
        return "processes of a run whose sandrun was killed hold the run lock", True
    return "", False


def _row(queue: Queue, ticket: Ticket, waits_for_memory: bool) -> "dict[str, object]":
    stopped = stopped_process(ticket)
    return {
        "id": ticket.id,
        "pid": ticket.pid,
        "running": ticket.running,
        "stopped": bool(stopped),
        "stopped_pid": stopped,
        "waits_for_memory": waits_for_memory,
        "since": ticket.since,
        "head_start": ticket.extra,
        "command": ticket.command,
        "cwd": holder.directory(queue, ticket),
        "memory": tree_memory(ticket.pid) if ticket.running else 0,
    }


def stopped_process(ticket: Ticket) -> int:
    """The stopped process that delays a run or a waiter; 0: none."""
    if sys.platform == "win32":
        return 0
    # A supervisor stops when the terminal stops the command, but not at a SIGSTOP to it alone.
    command = processes.children(ticket.pid) if ticket.running else []
    return next((pid for pid in (ticket.pid, *command) if is_stopped(pid)), 0)


def tree_memory(pid: int) -> int:
    """The summed memory of a process's descendants (`processes.describe`), in bytes; 0: unknown."""
    found = map(processes.describe, processes.descendants(pid))
    return sum(process.memory for process in found if process)


def text(queues: "list[dict[str, object]]", everything: bool) -> str:
    """The queues as text for people."""
    lines: list[str] = []
    for queue in queues:
        rows, held = queue["runs"], queue["held"]
        assert isinstance(rows, list) and isinstance(held, list)
        if everything and not rows and not held and not queue["note"]:
            continue
        of = queue["project"] or (f"the name {queue['queue']}" if queue["queue"] else "")
        lines.append(f"queue {queue['path']}" + (f" of {of}" if of else ""))
        if queue["note"]:
            lines.append(f"  note: {queue['note']}")
        lines += [f"  held: {holder_text(row)}" for row in held]
        lines += [f"  {position:3} {_row_text(row)}" for position, row in enumerate(rows, 1)]
        if not rows:
            lines.append("  empty")
    return "\n".join(map(plain, lines)) or "nothing runs and nothing waits"


def ids(queues: "list[dict[str, Any]]", waiting: bool) -> "list[str]":
    """The ids of all runs and waiters, or only of waiters, each with a description."""
    rows = [row for queue in queues for row in queue["runs"] if not (waiting and row["running"])]
    states = {True: "runs", False: "waits"}
    return [f"{row['id']}\t{states[row['running']]}: {plain(row['command'])}" for row in rows]


def _row_text(row: "dict[str, Any]") -> str:
    state = "runs " if row["running"] else "waits"
    stopped = f"stopped: fg, or kill -CONT {row['stopped_pid']}; " if row["stopped"] else ""
    memory = f", {size_text(row['memory'])}" if row["running"] else ""
    memory += ", waits for memory in the pool" if row["waits_for_memory"] else ""
    memory += f", head start {row['head_start']} s" if row["head_start"] else ""
    return (
        f"{state} {row['id']}  {row['command']}  ({stopped}pid {row['pid']}, "
        f"{_age(row['since'])}{memory}, in {row['cwd']})"
    )


def holder_text(row: "dict[str, Any]") -> str:
    """A holder of the run lock that has no ticket in this queue."""
    if not row["user"]:
        pid = f"pid {row['pid']}" if row["pid"] else "in another container, perhaps"
        return f"{row['path']} by a process that cannot be seen from here ({pid})"
    return (
        f"{row['path']} by {row['user']}: {row['command']}  "
        f"(pid {row['pid']}, {_age(row['since'])})"
    )


def _age(since: float) -> str:
    return span_text(max(0.0, time.time() - since))
