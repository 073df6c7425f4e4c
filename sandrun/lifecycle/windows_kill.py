"""How `sandrun kill` ends who holds a ticket on Windows (`sandrun.lifecycle.kill`).

It is told by its event, and terminated when the grace is over: its job ends the tree. Its process
is opened by the number in the ticket's name before the ticket is seen alive once more, so the
number is its own.
"""

from sandrun.platform import windows_api, windows_files, windows_spawn
from sandrun.platform.windows_api import calls
from sandrun.queue import BaseQueue, Ticket, windows_queue

MARGIN = 2.0
"""Seconds on top of the grace for a supervisor to clean up."""


def tell(where: BaseQueue, ticket: Ticket) -> None:
    """Ask the owner to end."""
    where.notify(ticket.name, windows_queue.END)


def terminate(where: BaseQueue, ticket: Ticket) -> None:
    """End the owner at once, if it still lives."""
    process = windows_spawn.open_process(ticket.pid, windows_api.PROCESS_TERMINATE)
    if not process:
        return
    try:
        if any(other.id == ticket.id for other in where.tickets()):
            calls.TerminateProcess(process, 128 + 9)
    except OSError:
        pass  # it is ending already
    finally:
        windows_files.close(process)
