"""`sandrun kill`: end runs and waiters, whole process trees, and report what was ended.

Waiters are ended first, so that the end of a run does not start the next one. A run is ended
through its supervisor (SIGTERM, which the command gets), and after the grace through its container,
as a lost run is.

The proof that a target is ours: the pid that is signalled is the holder of the ticket's lock, as
the kernel reports it in our namespace, queried anew for SIGTERM and for SIGKILL. The holder of a
lock is alive, so the pid is its own. The pid in a ticket's name is used only where the kernel does
not report the holder (macOS), and never one that means many processes (kill(2): 0, -1) or init.
`sandrun.lifecycle.recovery` proves which processes a killed supervisor left.

Windows has no signals: see `sandrun.lifecycle.windows_kill`.
"""

import os
import signal
import sys
import time

from sandrun.lifecycle import recovery, status
from sandrun.model import DARWIN, SandrunError
from sandrun.queue import CANCEL, Queue, Ticket, holder, nesting
from sandrun.queue.state import all_states
from sandrun.supervise import report

_DEATH = 5.0
"""Seconds within which a killed process is gone."""


class Answer:
    """What was ended, and what survived, one line each."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.survived: list[str] = []


def end(state: str, run: "str | None", everything: bool, grace: float) -> Answer:
    """End a run by its id, the run of the queue in `state`, or everything.

    Raises SandrunError for an unsafe state directory.
    """
    several = everything or run is not None
    states = all_states() if several else [state]
    answer = Answer()
    for path in states:
        queue = None
        try:
            queue = status.open_queue(path)
            if queue:
                _end_queue(queue, run, everything, grace, answer)
        except SandrunError as error:
            if not several:
                raise
            # A queue that cannot be used must not hide the others.
            if queue:
                answer.survived.append(error.text)
        finally:
            if queue:
                queue.close()
    return answer


def _end_queue(
    queue: Queue, run: "str | None", everything: bool, grace: float, answer: Answer
) -> None:
    # An empty id, as from a script's unset variable, matches no run, not even the project's.
    tickets = [
        t for t in queue.tickets() if everything or t.id == run or (run is None and t.running)
    ]
    for ticket in sorted(tickets, key=lambda t: t.running):
        what = f"{'run' if ticket.running else 'waiter'} {ticket.id}"
        if not _end_holder(queue, ticket, grace):
            answer.survived.append(f"could not end {what} (pid {ticket.pid}{_why()})")
            continue
        if ticket.running:
            _end_lost(queue)
        answer.ended.append(f"ended {what}: {ticket.command} (pid {ticket.pid})")
    if run is None and _end_lost(queue):
        answer.ended.append("ended what a killed sandrun had left running")
    for pid in holder.kept_for(queue):
        answer.survived.append(f"could not end {report.unkillable(pid)}{report.way_to_end(pid)}")
    queue.publish_queue_file()


def _end_holder(queue: Queue, ticket: Ticket, grace: float) -> bool:
    """Ask the holder of a ticket to end, then kill it. Returns whether it is gone."""
    if sys.platform == "win32":
        from sandrun.lifecycle import windows_kill

        windows_kill.ask_to_end(queue, ticket)
        if _is_gone_within(queue, ticket, grace + windows_kill.MARGIN):
            return True
        windows_kill.terminate(queue, ticket)
        return _is_gone_within(queue, ticket, _DEATH)
    for signum, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, _DEATH)):
        pid = nesting.ticket_holder(queue, ticket)
        if pid > 1:
            _send(pid, signum)
            _send(pid, signal.SIGCONT)
        elif not ticket.running:
            queue.notify(ticket.name, CANCEL)  # it is in another pid namespace
        if _is_gone_within(queue, ticket, seconds):
            return True
    return False


def _why() -> str:
    """The reason why the holder of a lock may be unknown."""
    if sys.platform == "win32":
        return ""
    from sandrun.platform import processes

    if processes.PROC == processes.NO_PROC and not DARWIN:
        return f"; no /proc of our pid namespace shows its holder: {processes.MOUNT_PROC}"
    return ", perhaps of a container"


def _send(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except OSError:
        pass


def _is_gone_within(queue: Queue, ticket: Ticket, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(other.id == ticket.id for other in queue.tickets()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _end_lost(queue: Queue) -> bool:
    """End the processes that killed supervisors left, by the holders' lines. Returns whether any
    was ended."""
    ended = False
    for lock, free in holder.each_slot(queue):
        line = lock.read_holder()
        ended |= bool(line) and recovery.end_orphans(queue, line)
        if free and recovery.take_over(lock, []):
            lock.release()
    return ended
