"""Who runs and who waits, for `sandrun status` and `sandrun kill`; removes dead tickets."""

import glob
import os
import time

from sandrun import kernel, project
from sandrun.model import SandrunError, size_text, span_text
from sandrun.queue import Queue, RunLock


def all_states() -> "list[str]":
    """The state directories of this user's queues."""
    pattern = os.path.join(glob.escape(project.state_root()), f"seq-exec-*-{os.geteuid()}")
    return sorted(path for path in glob.glob(pattern) if os.path.isdir(path))


def open_queue(path: str) -> "Queue | None":
    """The queue in a state directory; None: nobody ever used it. Raises SandrunError."""
    return Queue(path) if os.path.lexists(path) else None


def look(path: str) -> "dict[str, object]":
    """One queue as plain data: its path, and its tickets in order, the running one first."""
    rows: list[dict[str, object]] = []
    note = ""
    try:
        queue = open_queue(path)
        if queue:
            queue.sweep()
            rows = [_row(ticket.id, ticket.pid, ticket) for ticket in queue.tickets()]
            if not any(row["running"] for row in rows) and not _is_free(queue):
                note = "processes of a run whose sandrun was killed hold the run lock"
            queue.write_view()
            os.close(queue.dir)
    except SandrunError as error:
        note = error.text
    return {"path": path, "runs": rows, "note": note}


def _row(run_id: str, pid: int, ticket: "object") -> "dict[str, object]":
    return {
        "id": run_id,
        "pid": pid,
        "running": getattr(ticket, "running", False),
        "since": getattr(ticket, "since", 0),
        "command": getattr(ticket, "command", ""),
        "cwd": _cwd(pid),
        "memory": tree_memory(pid),
    }


def _is_free(queue: Queue) -> bool:
    lock = RunLock(queue)
    free = lock.try_take()
    if free and not lock.read_holder():
        lock.release()
    else:
        os.close(lock.fd)  # without emptying it: the next run cleans up by what stands in it
    return free


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
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
            lines.append(
                f"  {position:3} {state} {row['id']}  {row['command']}  (pid {row['pid']}, "
                f"{span_text(max(0.0, now - row['since']))}{memory}, in {row['cwd']})"
            )
        if not rows:
            lines.append("  empty")
    return "\n".join(lines) or "nothing runs and nothing waits"
