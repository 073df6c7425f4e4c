"""Who runs and who waits, for `sandrun status` and `sandrun kill`; removes dead tickets."""

import os
import time

from sandrun import kernel, project
from sandrun.model import SandrunError, size_text, span_text
from sandrun.queue import Queue
from sandrun.recovery import each_slot
from sandrun.ticket import Ticket


def open_queue(path: str) -> "Queue | None":
    """The queue in a state directory; None: nobody ever used it. Raises SandrunError."""
    return Queue(path) if os.path.lexists(path) else None


def waiting_for_memory() -> "set[str]":
    """The ids of the runs that the pool has not let in yet."""
    path = project.pool_path()
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


def look(path: str) -> "dict[str, object]":
    """One queue as plain data: its path, and its tickets in order, the running one first."""
    rows: list[dict[str, object]] = []
    note = ""
    try:
        queue = open_queue(path)
        if queue:
            queue.sweep()
            poor = waiting_for_memory()
            rows = [_row(ticket, ticket.id in poor) for ticket in queue.tickets()]
            if queue.paused:
                note = "paused; go on with: sandrun resume"
            # Looking means locking for an instant, so only where nobody should hold it.
            elif not any(row["running"] for row in rows) and not all(
                f for _, f in each_slot(queue)
            ):
                note = "processes of a run whose sandrun was killed hold the run lock"
            queue.write_view()
            queue.close()
    except SandrunError as error:
        note = error.text
    return {"path": path, "runs": rows, "note": note}


def _row(ticket: Ticket, poor: bool) -> "dict[str, object]":
    return {
        "id": ticket.id,
        "pid": ticket.pid,
        "running": ticket.running,
        "waits_for_memory": poor,
        "since": ticket.since,
        "head_start": ticket.extra,
        "command": ticket.command,
        "cwd": _cwd(ticket.pid),
        "memory": tree_memory(ticket.pid),
    }


def _cwd(pid: int) -> str:
    try:
        return kernel.directory(pid)
    except OSError:
        return ""


def tree_memory(pid: int) -> int:
    """The summed RSS of a process's descendants, in bytes; 0 where it cannot be known."""
    processes = map(kernel.describe, kernel.descendants(pid))
    return sum(process.memory for process in processes if process)


def text(queues: "list[dict[str, object]]", everything: bool) -> str:
    """The queues for people."""
    lines: list[str] = []
    now = time.time()
    for queue in queues:
        rows = queue["runs"]
        assert isinstance(rows, list)
        if everything and not rows and not queue["note"]:
            continue
        lines.append(f"queue {queue['path']}")
        if queue["note"]:
            lines.append(f"  note: {queue['note']}")
        for position, row in enumerate(rows, 1):
            state = "runs " if row["running"] else "waits"
            memory = f", {size_text(row['memory'])}" if row["running"] else ""
            memory += ", waits for memory in the pool" if row["waits_for_memory"] else ""
            memory += f", head start {row['head_start']} s" if row["head_start"] else ""
            lines.append(
                f"  {position:3} {state} {row['id']}  {row['command']}  (pid {row['pid']}, "
                f"{span_text(max(0.0, now - row['since']))}{memory}, in {row['cwd']})"
            )
        if not rows:
            lines.append("  empty")
    return "\n".join(lines) or "nothing runs and nothing waits"
