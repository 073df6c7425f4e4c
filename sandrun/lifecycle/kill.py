"""`sandrun kill`: ending runs and waiters for sure, whole trees, and saying what was ended.

Waiters go first, so that the end of a run does not start the next. A run is ended through its
supervisor (SIGTERM, which the command sees), and when the grace is over through its container,
the way a lost run is cleaned up.

What proves that the target is ours: the pid that is signalled is the one of who holds the ticket's
lock, as the kernel tells it in our namespace, asked anew before each signal. Who holds a lock is
alive, so the pid is its own. The number in a ticket's name is believed only where the kernel does
not tell (macOS), and never one that would mean many (kill(2): 0, -1) or init. What a killed
supervisor left is proved by `sandrun.lifecycle.recovery`.

On Windows there are no signals: see `sandrun.lifecycle.windows_kill`.
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
"""Seconds in which a process that was killed is gone."""


class Answer:
    """What was ended, and what could not be: a line for each."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.lives: list[str] = []


def end(state: str, run: "str | None", everything: bool, grace: float) -> Answer:
    """End what was named. Raises SandrunError for unsafe state."""
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
            # One that cannot be used keeps nobody from what is in the others.
            if queue:
                answer.lives.append(error.text)
        finally:
            if queue:
                queue.close()
    return answer


def _end_queue(
    queue: Queue, run: "str | None", everything: bool, grace: float, answer: Answer
) -> None:
    # An empty id, as of a script's unset variable, names no run: least of all that of the project.
    tickets = [
        t for t in queue.tickets() if everything or t.id == run or (run is None and t.running)
    ]
    for ticket in sorted(tickets, key=lambda t: t.running):
        what = f"{'run' if ticket.running else 'waiter'} {ticket.id}"
        if not _ended(queue, ticket, grace):
            answer.lives.append(f"could not end {what} (pid {ticket.pid}{_why()})")
            continue
        if ticket.running:
            _end_lost(queue)
        answer.ended.append(f"ended {what}: {ticket.command} (pid {ticket.pid})")
    if run is None and _end_lost(queue):
        answer.ended.append("ended what a killed sandrun had left running")
    for pid in holder.kept_for(queue):
        answer.lives.append(f"could not end {report.unkillable(pid)}{report.way_to_end(pid)}")
    queue.publish_queue_file()


def _ended(queue: Queue, ticket: Ticket, grace: float) -> bool:
    """Have whoever holds the ticket end, and end it if it does not; whether it is gone."""
    if sys.platform == "win32":
        from sandrun.lifecycle import windows_kill

        windows_kill.tell(queue, ticket)
        if _gone_within(queue, ticket, grace + windows_kill.MARGIN):
            return True
        windows_kill.terminate(queue, ticket)
        return _gone_within(queue, ticket, _DEATH)
    for signum, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _DEATH)):
        pid = nesting.ticket_holder(queue, ticket)
        if pid > 1:
            _send(pid, signum)
            _send(pid, signal.SIGCONT)
        elif not ticket.running:
            queue.notify(ticket.name, CANCEL)  # it is in another pid namespace
        if _gone_within(queue, ticket, patience):
            return True
    return False


def _why() -> str:
    """Why the holder of a lock may not have been found."""
    if sys.platform == "win32":
        return ""
    from sandrun.platform import processes

    if processes.PROC == processes.NOWHERE and not DARWIN:
        return f"; no /proc of ours shows whose that is: {processes.MOUNT_PROC}"
    return ", perhaps of a container"


def _send(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except OSError:
        pass


def _gone_within(queue: Queue, ticket: Ticket, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(other.id == ticket.id for other in queue.tickets()):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _end_lost(queue: Queue) -> bool:
    """End what killed supervisors left, by the lines in the run lock's files; was there any?"""
    ended = False
    for lock, free in holder.each_slot(queue):
        line = lock.read_holder()
        ended |= bool(line) and recovery.end_orphans(queue, line)
        if free and recovery.take_over(lock, []):
            lock.release()
    return ended
