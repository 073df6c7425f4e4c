"""The run lock on Windows: an exclusive lock of one file for each slot.

Promises that at most one run holds a slot of a queue, whoever started it. While a slot is held, its
file cannot be removed or renamed, because no handle shares deletion. So no second lock file is
needed.

Unlike a lock of flock(2), it is not inherited by children: it is free when the supervisor is dead.
The run's job ends at that instant, with its last handle. Before the next holder starts a command,
it ends the last run's processes and waits for their exit (`sandrun.lifecycle.recovery`). The
holder's line names their job.
"""

import os

from sandrun.model import SandrunError
from sandrun.platform import windows_api, windows_files
from sandrun.queue.state import slot_file
from sandrun.queue.windows_queue import Queue

_ACCESS = windows_api.GENERIC_READ | windows_api.GENERIC_WRITE
_SHARE = windows_api.FILE_SHARE_READ | windows_api.FILE_SHARE_WRITE


class RunLock:
    """The run lock of a queue; see `sandrun.queue.RunLockContract`. `fd` is a handle."""

    def __init__(
        self, queue: Queue, slots: int = 1, root: str = "", name: str = "", first: int = 1
    ) -> None:
        self.queue = queue
        self.slots = slots
        self.first = first
        self.slot = 0
        self._handles: dict[int, int] = {}
        self.blocked: list[int] = []
        """After a failed try, for each slot an open file whose lock another run holds."""

    @property
    def fd(self) -> int:
        return self._handles.get(self.slot or self.first, 0)

    def path(self, slot: int = 1) -> str:
        """The path of a slot's file."""
        return os.path.join(self.queue.path, slot_file("executor", slot))

    def open_to_watch(self, slot: int) -> int:
        """Open another handle of a slot's file, which the caller closes. Raises SandrunError."""
        path = self.path(slot)
        try:
            where = os.path.abspath(path)
            return windows_files.open_file(where, _ACCESS, _SHARE, windows_api.OPEN_ALWAYS)
        except OSError as error:
            raise SandrunError(f"{path}: {error.strerror}", f"inspect it: icacls {path}") from None

    def _open(self, slot: int) -> int:
        if slot not in self._handles:
            self._handles[slot] = self.open_to_watch(slot)
        return self._handles[slot]

    def prepare(self) -> None:
        """Open the file of the first slot, so that `try_acquire` is quicker."""
        self._open(1)

    def try_acquire(self) -> bool:
        """Acquire a free slot. False: all are held, see `blocked`. Raises SandrunError."""
        self.blocked = []
        for slot in range(self.first, self.slots + 1):
            handle = self._open(slot)
            if windows_files.try_lock(handle):
                self.slot = slot
                for other in set(self._handles) - {slot}:
                    windows_files.close(self._handles.pop(other))
                return True
            self.blocked.append(handle)
        return False

    def unlock(self) -> None:
        """Free the lock: we are no longer the head of the queue."""
        if self.slot:
            windows_files.unlock(self._handles[self.slot])
            self.slot = 0

    def descriptors(self) -> "list[int]":
        """No descriptors: the command inherits no lock."""
        return []

    def read_holder(self) -> bytes:
        """The holder's line; empty after a clean end."""
        return read_holder_line(self.fd)

    def written_at(self) -> float:
        """Not needed on Windows, where recovery moves no lock of git."""
        return 0.0

    def write_holder(self, line: bytes) -> None:
        """Write the holder's line. On a full disk it is missing, and then no run can clean up
        after a kill."""
        try:
            windows_files.write(self.fd, line)
        except OSError:
            pass

    def release(self) -> None:
        """Empty the file and free the lock."""
        if self.slot:
            self.write_holder(b"")
        self.drop()

    def drop(self) -> None:
        """Free the lock, close all files, and keep the line for the next holder."""
        for slot in list(self._handles):
            handle = self._handles.pop(slot)
            if slot == self.slot:
                # Closing unlocks, too, but the kernel may do so later.
                windows_files.unlock(handle)
            windows_files.close(handle)
        self.slot = 0


def read_holder_line(fd: int) -> bytes:
    """Read the holder's line from an open lock file."""
    try:
        return windows_files.read(fd)
    except OSError:
        return b""
