"""The queue of a project: tickets in order, the run lock that excludes, the wait for a turn, the
pool.

Promises that one run at a time holds a slot, first in first out, and that no killed run leaves a
lock behind. Knows nothing of what runs. Imports config, messages, platform and model.
"""

import sys

from sandrun.queue.queue import BaseQueue, StateGone, Ticket, is_stopped, new_key, ticket_text

if sys.platform == "win32":
    from sandrun.queue.windows_queue import CANCEL, Queue
    from sandrun.queue.windows_run_lock import RunLock, read_holder_line
else:
    from sandrun.queue.posix_queue import CANCEL, Queue
    from sandrun.queue.posix_run_lock import RunLock, read_holder_line

__all__ = [
    "CANCEL", "BaseQueue", "Queue", "RunLock", "StateGone", "Ticket", "is_stopped", "new_key",
    "read_holder_line", "ticket_text",
]  # fmt: skip
