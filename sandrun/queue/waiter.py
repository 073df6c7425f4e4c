"""Waiting for a turn, by what this system can sleep on; imported only by a run that has to wait."""

import sys

if sys.platform == "win32":
    from sandrun.queue.windows_waiter import Waiter, wait_room, wait_turn
else:
    from sandrun.queue.posix_waiter import Waiter, wait_room, wait_turn

__all__ = ["Waiter", "wait_room", "wait_turn"]
