"""The queue of a project: tickets in order, the run lock, the wait for a turn, the memory pool.

Promises that each slot of a queue runs one command at a time, in the order of priority and arrival,
and that a killed run leaves no lock behind. Leaves the run itself to others. Imports backends,
config, history, messages, errors, platform and model.
"""

import sys

from sandrun.queue.queue import BaseQueue, StateGone, Ticket, is_stopped, new_key, ticket_text

if sys.platform == "win32":
    from sandrun.queue.windows_queue import CANCEL, Queue
    from sandrun.queue.windows_run_lock import RunLock, read_holder_line
else:
    from sandrun.queue.posix_queue import CANCEL, Queue
    from sandrun.queue.posix_run_lock import RunLock, read_holder_line

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class RunLockContract(Protocol):
        """The run lock of each system; one slot of a queue, once acquired.

        At most one process tree holds a slot, whatever the order of the tickets. The lock's file
        contains the holder's line (`sandrun.queue.holder`) while the command runs, and nothing
        after a clean end.
        """

        queue: Queue
        first: int
        """The number of the first slot that may be acquired."""
        slots: int
        """The number of the last slot that may be acquired."""
        slot: int
        """The slot that we hold; 0: none."""
        blocked: list[int]
        """After a failed try, for each slot an open file whose lock another process holds."""

        @property
        def fd(self) -> int:
            """The open file that contains the holder's line."""

        def prepare(self) -> None:
            """Open the files of the first slot, so that `try_acquire` is quicker."""

        def try_acquire(self) -> bool:
            """Acquire a free slot. False: all are held, see `blocked`.

            Raises SandrunError if a lock file is not what it should be; StateGone.
            """

        def unlock(self) -> None:
            """Unlock what was acquired while we waited; the files stay open."""

        def descriptors(self) -> list[int]:
            """The locked files that the command inherits, so that its tree keeps the lock."""

        def read_holder(self) -> bytes:
            """The holder's line; empty after a clean end."""

        def write_holder(self, line: bytes) -> None:
            """Write the holder's line. On a full disk it is missing, and then no run can clean up
            after a SIGKILL."""

        def written_at(self) -> float:
            """When the holder's line was written, by the clock of its file system."""

        def release(self) -> None:
            """Empty the file and free the lock, also for children that inherited it."""

        def drop(self) -> None:
            """Free the lock and keep the line, from which the next holder learns what to clean
            up."""

    _IS_IMPLEMENTED: type[RunLockContract] = RunLock

__all__ = [
    "CANCEL", "BaseQueue", "Queue", "RunLock", "StateGone", "Ticket", "is_stopped", "new_key",
    "read_holder_line", "ticket_text",
]  # fmt: skip
