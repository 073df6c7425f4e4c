"""What the keys of `sandrun top` do to a run or a queue: by its id and path, never by a row.

Each action reads the queue again, because the run may have started, moved or ended since the key
was pressed; then it does nothing. It returns the line to show.
"""

from collections.abc import Callable

from sandrun.config.values import parse_priority
from sandrun.lifecycle import kill as killing
from sandrun.model import SandrunError, plain
from sandrun.queue import CANCEL, Queue, Ticket
from sandrun.queue.state import all_states

_STEP = 3600
"""Seconds by which a key changes a head start: the difference of low, normal and high."""


def _with_waiter(path: str, run_id: str, act: Callable[[Queue, Ticket], str]) -> str:
    """Act on a waiter if it still waits. Root does not act on another user's queue, because that
    user may change the directory meanwhile."""
    if path not in all_states():
        return f"{run_id} belongs to another user, who can do that"
    try:
        queue = Queue(path)
    except SandrunError as error:
        return error.text
    try:
        ticket = next((ticket for ticket in queue.tickets() if ticket.id == run_id), None)
        if ticket is None:
            return f"{run_id} is over"
        if ticket.running:
            return f"{run_id} already runs; k ends it"
        return act(queue, ticket)
    finally:
        queue.close()


def cancel(path: str, run_id: str) -> str:
    """Remove a waiter from its queue; it exits with 75."""

    def act(queue: Queue, ticket: Ticket) -> str:
        queue.notify(ticket.name, CANCEL)
        return f"cancelled {run_id}: {plain(ticket.command)}"

    return _with_waiter(path, run_id, act)


def prioritize(path: str, run_id: str, steps: int) -> str:
    """Give a waiter so many hours more of a head start."""

    def act(queue: Queue, ticket: Ticket) -> str:
        try:
            head_start = parse_priority(str(ticket.extra + steps * _STEP))
        except ValueError as error:
            return f"{run_id}: {error}"
        if not queue.move(ticket, head_start):
            return f"{run_id} no longer waits"
        ids = [other.id for other in queue.tickets()]
        at = f"position {ids.index(run_id) + 1} of {len(ids)}" if run_id in ids else "it is over"
        return f"moved {run_id}, head start {head_start} s: {at}"

    return _with_waiter(path, run_id, act)


def toggle_pause(path: str, paused: bool) -> str:
    """Pause a queue that was not `paused` when the key was pressed, or resume it."""
    if path not in all_states():
        return "the queue belongs to another user, who can do that"
    try:
        queue = Queue(path)
    except SandrunError as error:
        return error.text
    try:
        if paused:
            return "resumed" if queue.resume() else "it was no longer paused"
        return "paused: the current run goes on" if queue.pause() else "it was already paused"
    except FileNotFoundError:
        return "the queue is gone: nothing runs and nothing waits"
    finally:
        queue.close()


def kill(path: str, run_id: str, grace: float) -> list[str]:
    """End a run or a waiter with all its processes; may take the grace period and some seconds."""
    if path not in all_states():
        return [f"{run_id} belongs to another user: sudo -u USER sandrun kill {run_id}"]
    answer = killing.end(path, run_id, False, grace)
    return [*answer.ended, *answer.survived] or [f"{run_id} is over"]
