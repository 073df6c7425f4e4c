"""The run lock on Windows: an exclusive lock of one file per slot; stands in for `sandrun.queue`.

Promises: at most one run holds a slot of a queue, whoever started it. While a slot is held its file
cannot be removed or renamed (no handle shares deletion), so the lock needs no second home in the
checkout.

Unlike flock(2), a lock is not handed down to children: it is free when the supervisor is dead. The
run's job dies with its last handle at that instant, and the next holder, before it starts anything,
ends and waits for what the last one left (`sandrun.lifecycle.recovery`); what that was stands in
the file.
"""

import os

from sandrun.model import SandrunError
from sandrun.platform import windows_api, windows_files
from sandrun.queue.queue import slot_file
from sandrun.queue.windows_queue import Queue

_ACCESS = windows_api.GENERIC_READ | windows_api.GENERIC_WRITE
_SHARE = windows_api.FILE_SHARE_READ | windows_api.FILE_SHARE_WRITE


class RunLock:
    """One slot of a queue, once taken: `fd` is its file's handle, `slot` its number."""

    def __init__(
        self, queue: Queue, slots: int = 1, root: str = "", name: str = "", first: int = 1
    ) -> None:
        self.queue = queue
        self.slots = slots
        self.first = first
        self.slot = 0
        self._handles: dict[int, int] = {}
        self.blocked: list[int] = []
        """After a failed try: an open file per slot whose lock somebody else holds."""

    @property
    def fd(self) -> int:
        return self._handles.get(self.slot or self.first, 0)

    def path(self, slot: int = 1) -> str:
        """Where a slot's file is."""
        return os.path.join(self.queue.path, slot_file("executor", slot))

    def open_to_watch(self, slot: int) -> int:
        """Another handle of a slot's file, the caller's. Raises SandrunError."""
        path = self.path(slot)
        try:
            where = os.path.abspath(path)
            return windows_files.open_file(where, _ACCESS, _SHARE, windows_api.OPEN_ALWAYS)
        except OSError as error:
            raise SandrunError(
                f"{path}: {error.strerror}", f"look at it with: icacls {path}"
            ) from None

    def _open(self, slot: int) -> int:
        if slot not in self._handles:
            self._handles[slot] = self.open_to_watch(slot)
        return self._handles[slot]

    def prepare(self) -> None:
        """Open the first slot's file ahead of the turn, to be quicker when it comes."""
        self._open(1)

    def try_acquire(self) -> bool:
        """Take a free slot. False: every one is held, see `blocked`. Raises SandrunError."""
        self.blocked = []
        for slot in range(self.first, self.slots + 1):
            handle = self._open(slot)
            if windows_files.try_lock(handle):
                self.take(slot)
                return True
            self.blocked.append(handle)
        return False

    def take(self, slot: int) -> None:
        """The lock of `slot` is ours: close the others."""
        self.slot = slot
        for other in set(self._handles) - {slot}:
            windows_files.close(self._handles.pop(other))

    def unlock(self) -> None:
        """Free what is held: it is not our turn any more."""
        if self.slot:
            windows_files.unlock(self._handles[self.slot])
            self.slot = 0

    def descriptors(self) -> "list[int]":
        """What the command shall inherit: nothing."""
        return []

    def read_holder(self) -> bytes:
        """What the holder wrote about itself; empty after a clean end."""
        return read_holder_line(self.fd)

    def written_at(self) -> float:
        """Not asked for: nothing of git is moved here."""
        return 0.0

    def write_holder(self, line: bytes) -> None:
        """Write who holds the lock. A full disk only costs the cleaning up after a kill."""
        try:
            windows_files.write(self.fd, line)
        except OSError:
            pass

    def release(self) -> None:
        """Empty and free the lock."""
        if self.slot:
            self.write_holder(b"")
        self.drop()

    def drop(self) -> None:
        """Free what is held and close all, without emptying: the next run cleans up by it."""
        for slot in list(self._handles):
            handle = self._handles.pop(slot)
            if slot == self.slot:
                windows_files.unlock(
                    handle
                )  # closing would do it too, but at a time of the kernel's
            windows_files.close(handle)
        self.slot = 0


def read_holder_line(fd: int) -> bytes:
    """The holder's line in an open file."""
    try:
        return windows_files.read(fd)
    except OSError:
        return b""
