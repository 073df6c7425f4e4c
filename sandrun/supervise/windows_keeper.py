"""The keeper on Windows, where no process has to outlive the supervisor.

A job is terminated when its last handle is closed. Only the supervisor has one, so the supervisor's
death ends the tree; the next run of the queue writes the record (`sandrun.lifecycle.recovery`). The
supervisor can wait for all events at once and watches its parent itself.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from sandrun.backends.protocol import Container

    class RunLock(Protocol):
        """What the keeper needs of the run lock."""

        def drop(self) -> None: ...


class Keeper:
    """What a run needs of a keeper; `parent`: the process whose death ends the run."""

    def __init__(
        self,
        container: "Container",
        close: "list[int]",
        lock: "RunLock | None",
        finish: "Callable[[], None]",
        parent: int,
        with_second: bool,
        later: object,
    ) -> None:
        self.parent = parent
        self._lock = lock

    def outlast(self) -> None:
        """Free the run lock, but leave the holder's line, by which the next run cleans up."""
        if self._lock:
            self._lock.drop()

    def dismiss(self) -> None:
        """There is no process."""

    def reap(self) -> None:
        """There is no process."""


def hold(lock: "RunLock", close: "list[int]", until: "Callable[[], None]") -> bool:
    """Returns False: no process of ours outlives the caller here, which keeps the run lock."""
    return False
