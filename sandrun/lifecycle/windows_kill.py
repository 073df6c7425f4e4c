"""How `sandrun kill` ends the holder of a ticket on Windows (`sandrun.lifecycle.kill`).

An event asks the holder to end. After the grace the holder is terminated, and its job ends the
tree. The process is opened by the pid in the ticket's name, then the ticket is checked once more:
if it is still alive, the pid is the holder's.
"""

from sandrun.platform import windows_api, windows_files, windows_spawn
from sandrun.platform.windows_api import calls
from sandrun.queue import BaseQueue, Ticket, windows_queue

MARGIN = 2.0
"""Seconds for a supervisor to clean up, in addition to the grace."""


def ask_to_end(where: BaseQueue, ticket: Ticket) -> None:
    """Ask the holder to end."""
    where.notify(ticket.name, windows_queue.END)


def terminate(where: BaseQueue, ticket: Ticket) -> None:
    """Terminate the holder, if it is still alive."""
    process = windows_spawn.open_process(ticket.pid, windows_api.PROCESS_TERMINATE)
    if not process:
        return
    try:
        if any(other.id == ticket.id for other in where.tickets()):
            calls.TerminateProcess(process, 128 + 9)
    except OSError:
        pass  # it is already ending
    finally:
        windows_files.close(process)
