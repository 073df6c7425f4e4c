"""What the core expects of a backend. For type checkers only: a run never imports this module.

A backend is a mechanism that enforces limits on a process tree; it knows nothing of queues. A
container is what it opens for one run. The order of calls is fixed:

    backend.open -> container.spawn -> (poll | signal)* -> (kill | release_processes) -> close

A process that did not open the container calls `backend.attach(run_id, token) -> kill -> close`.
"""

from collections.abc import Mapping
from typing import Protocol

from sandrun.model import Escape, Limits, Process, Usage
from sandrun.platform import spawn
from sandrun.types import BackendName, LimitHit


class Container(Protocol):
    """The processes of one run, grouped by a kernel mechanism or found by polling."""

    token: str
    """What `attach` needs to find the container after the supervisor has died; '' for nothing."""
    helpers: set[int]
    """Children of the supervisor that do not belong to the run: its keeper and its witness."""
    mark: str
    """The entry of SANDRUN_RUNS in the environment of every process of the run; set by the core."""
    events: "tuple[int, int]"
    """A descriptor and the poll(2) events that require a call of `poll`; (-1, 0) for none. POLLPRI
    is for a control file, which must be read again after each event; POLLIN is for an eventfd,
    which `poll` reads."""
    limit_hit: LimitHit
    """Whose limit was hit; '' for none. Set by `poll`, never reset."""
    oom_events: int
    """How often a memory limit was hit, as of the last `poll`. If the count rises after `limit_hit`
    was set, the processes still allocate at the limit."""

    @property
    def current(self) -> "int | None":
        """The working set in bytes as of the last `poll`; None: not measured."""

    @property
    def escaped(self) -> "Mapping[int, Escape]":
        """The processes found outside the container, where the limits do not apply, by pid. While
        they live, `live_pids` includes them and `kill` ends them too."""

    def spawn(self, argv: "list[str]", env: "Mapping[str, str]", caller: spawn.CallerState) -> int:
        """Start the command so that its first instruction runs inside the container; return its
        pid.

        Raises OSError with the errno of a failed exec if it is known at once; otherwise the child
        writes it to `caller.errors` (see `sandrun.platform.spawn`).
        """

    def poll(self) -> "float | None":
        """Sample the usage and update `limit_hit`. Return the seconds until the next sample is due.

        None: there is nothing to sample. Called from one thread only.
        """

    def usage(self) -> Usage:
        """The usage so far, from the kernel's counters where they exist."""

    def sample(self) -> Usage:
        """Measure memory, CPU time and the number of tasks now; the usage with them."""

    def counters(self) -> "dict[str, int]":
        """The kernel's counters of memory events, by the kernel's names; {}: it has none."""

    def top_consumers(self) -> "list[Process]":
        """The processes that used most memory when the limit was near or hit, largest first."""

    def live_pids(self) -> "list[int]":
        """The live processes of the run, in any order, without zombies."""

    def is_too_large_to_signal(self) -> bool:
        """Whether there are too many processes to signal each one. Cheap; may be an estimate."""

    def kill(self) -> None:
        """SIGKILL every process of the run, including new children; return when none is left.

        Raises TimeoutError when a process does not die (uninterruptible sleep).
        """

    def release_processes(self) -> None:
        """Free every process of the run's limits: move it to sandrun's own group, or lift them."""

    def close(self) -> None:
        """Remove what `open` made. The container must be empty. Ignores what no longer exists."""


class Backend(Protocol):
    """A mechanism that enforces limits."""

    name: BackendName
    kernel: bool
    """Whether the kernel enforces the memory limit; else a monitor polls, or nothing does."""

    def open(self, run_id: str, limits: Limits) -> Container:
        """Make a container for a run. Raises Unusable if this backend cannot work here."""

    def attach(self, run_id: str, token: str) -> Container:
        """The container of a run whose supervisor died; it may no longer exist.

        `token` was read from a file and is not trusted. Raises Unusable if this backend gives that
        run no such token, or if another user made what it names.
        """
