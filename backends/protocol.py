"""The protocol between the core and the backends, for type checkers only (never imported in a run).

A backend is the mechanism that enforces limits on a process tree. It knows nothing of queues.
A container is what it opens for one run. The order of calls is fixed:

    backend.open -> container.spawn -> (poll | signal)* -> kill -> close

and, in a process that did not open it, `backend.attach(run_id, token) -> kill -> close`.
"""

from collections.abc import Mapping
from typing import Protocol

from sandrun.model import Escape, Limits, Process, Usage
from sandrun.platform import spawn
from sandrun.types import BackendName, LimitHit


class Container(Protocol):
    """The processes of one run, held together by a mechanism of the kernel or by polling."""

    token: str
    """What `attach` needs to find the container again after the supervisor died; '' if nothing."""
    own: set[int]
    """Children of the supervisor that are no processes of the run: its keeper and its witness."""
    mark: str
    """The entry of SANDRUN_RUNS that every process of the run was started with; set by the core."""
    events: "tuple[int, int]"
    """A descriptor, and the poll(2) events of it that mean that `poll` should look; (-1, 0): none.
    POLLPRI: a control file, to be read again after each; POLLIN: an eventfd, `poll` reads it."""
    limit_hit: LimitHit

    oom_events: int
    """How often memory ran out at that limit, as of the last `poll`; a rise after it was hit
    means that the processes still press against it."""

    @property
    def escaped(self) -> "Mapping[int, Escape]":
        """The processes that were seen to have left for where the limits do not hold, by pid. While
        they live they are among `live_pids`, and `kill` ends them as well."""

    def spawn(self, argv: "list[str]", env: "Mapping[str, str]", caller: spawn.CallerState) -> int:
        """Start the command so that its first instruction already runs inside; return its pid.

        Raises OSError with the errno of the failed exec where that is known at once; otherwise
        the child writes it to `caller.errors` (see `sandrun.platform.spawn`).
        """

    def poll(self) -> "float | None":
        """Look at the usage; update `limit_hit`. Return the seconds until the next look is due.

        None: nothing to look at. Called from one thread only.
        """

    def usage(self) -> Usage:
        """The usage so far, from the kernel's own figures where it has them."""

    def top_consumers(self) -> "list[Process]":
        """The processes that used most when the limit was near or hit, largest first."""

    def live_pids(self) -> "list[int]":
        """The live processes of the run, in any order; zombies left out."""

    def is_too_large_to_signal(self) -> bool:
        """Whether there are too many processes to tell each to end (cheap; a guess may do)."""

    def kill(self) -> None:
        """SIGKILL every process of the run, also those forked meanwhile; return when none is left.

        Raises TimeoutError when a process does not die (uninterruptible sleep).
        """

    def release_processes(self) -> None:
        """Let every process inside go on outside, where sandrun itself is, free of our limits."""

    def close(self) -> None:
        """Remove what `open` made. The container is empty. Never raises for what is gone."""


class Backend(Protocol):
    """A mechanism of containment."""

    name: BackendName
    kernel: bool
    """The kernel enforces the memory limit; False: a monitor polls, or nothing does."""

    def open(self, run_id: str, limits: Limits) -> Container:
        """Make a container for a run. Raises Unusable when this backend cannot work here."""

    def attach(self, run_id: str, token: str) -> Container:
        """The container of a run whose supervisor died; it may be gone already.

        `token` was read from a file, so nothing in it is believed: raises Unusable unless it is
        one that this backend gives to that very run, and what it names was made by our user.
        """
