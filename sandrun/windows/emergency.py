"""`sandrun kill` on Windows: ending runs and waiters for sure, whole trees (`sandrun.emergency`).

Waiters go first, so that the end of a run does not start the next. Whoever holds a ticket is told
by its event, and terminated when the grace is over: its job ends the tree. Its process is opened by
the number in the ticket's name before the ticket is seen alive once more, so the number is its own.
"""

import time

from sandrun import overview, project, recovery
from sandrun.model import SandrunError
from sandrun.queue import Queue
from sandrun.runlock import each_slot
from sandrun.ticket import Ticket
from sandrun.windows import api, files, queue, spawn
from sandrun.windows.api import calls

_MARGIN = 2.0
"""Seconds on top of the grace for a supervisor to clean up."""


def end(state: str, run: "str | None", everything: bool, grace: float) -> "list[str]":
    """End what was named; a line for each thing ended. Raises SandrunError for unsafe state."""
    said: list[str] = []
    for path in project.all_states() if everything or run else [state]:
        try:
            found = overview.open_queue(path)
        except SandrunError:
            if not everything:
                raise
            continue
        if found:
            said += _end_queue(found, run, everything, grace)
    return said


def _end_queue(found: Queue, run: "str | None", everything: bool, grace: float) -> "list[str]":
    tickets = [t for t in found.tickets() if everything or t.id == run or (not run and t.running)]
    said = [_end_ticket(found, t, grace) for t in sorted(tickets, key=lambda t: t.running)]
    if not run:
        said += _end_lost(found)
    found.write_view()
    return said


def _end_ticket(found: Queue, ticket: Ticket, grace: float) -> str:
    what = "run" if ticket.running else "waiter"
    found.ring(ticket.name, queue.END)
    if not _gone_within(found, ticket, grace + _MARGIN) and not _terminated(found, ticket):
        return f"could not end {what} {ticket.id} (pid {ticket.pid})"
    if ticket.running:
        _end_lost(found)
    return f"ended {what} {ticket.id}: {ticket.command} (pid {ticket.pid})"


def _terminated(found: Queue, ticket: Ticket) -> bool:
    process = spawn.open_process(ticket.pid, api.PROCESS_TERMINATE)
    if not process:
        return _gone_within(found, ticket, 0.0)
    try:
        if any(other.id == ticket.id for other in found.tickets()):
            calls.TerminateProcess(process, 128 + 9)
    except OSError:
        pass  # it is ending already
    finally:
        files.close(process)
    return _gone_within(found, ticket, 5.0)


def _gone_within(found: Queue, ticket: Ticket, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(other.id == ticket.id for other in found.tickets()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _end_lost(found: Queue) -> "list[str]":
    """Clean up what killed supervisors left, by the lines in the run lock's files."""
    ended = False
    for lock, free in each_slot(found):
        line = lock.read_holder()
        ended |= bool(line) and recovery.end_orphans(found, line)
        if free:
            recovery.take_over(lock)
            lock.release()
    return ["ended what a killed sandrun had left running"] if ended else []
