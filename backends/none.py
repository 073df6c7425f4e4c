"""No container, because the user chose so: the command runs as from a shell.

Promises faithful execution at the lowest cost. Processes that the command leaves behind live on. A
limit that the user set is refused, as by every backend that cannot enforce it.
"""

from sandrun.model import Limits, Process, Unusable, Usage
from sandrun.platform import spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.model import Escape
    from sandrun.types import BackendName, LimitHit


_LIMITS = frozenset(
    ("memory", "swap", "pids", "cpus", "cpu_weight", "io_weight")
    + ("io_read_bps", "io_write_bps", "io_read_iops", "io_write_iops")
)
"""Settings that need a container; limits on time do not."""


class NoContainer:
    """See `sandrun.backends.protocol.Container`."""

    token = ""
    mark = ""
    events = (-1, 0)
    limit_hit: "LimitHit" = ""
    oom_events = 0
    current = None

    def __init__(self) -> None:
        self.helpers: set[int] = set()

    @property
    def escaped(self) -> "Mapping[int, Escape]":
        return {}

    def spawn(self, argv: "list[str]", env: "Mapping[str, str]", caller: spawn.CallerState) -> int:
        return spawn.direct(argv, env, caller)

    def poll(self) -> "float | None":
        return None

    def usage(self) -> Usage:
        return Usage()

    def sample(self) -> Usage:
        return Usage()

    def counters(self) -> "dict[str, int]":
        return {}

    def top_consumers(self) -> "list[Process]":
        return []

    def live_pids(self) -> "list[int]":
        return []

    def is_too_large_to_signal(self) -> bool:
        return False

    def kill(self) -> None:
        pass

    def release_processes(self) -> None:
        pass

    def close(self) -> None:
        pass


class NoBackend:
    """See `sandrun.backends.protocol.Backend`."""

    name: "BackendName" = "none"
    kernel = False

    def open(self, run_id: str, limits: Limits) -> NoContainer:
        asked = sorted(limits.set_by_user & _LIMITS)
        if asked:
            raise Unusable(
                f"nothing would enforce {', '.join(asked)}",
                "leave out the limit, or --backend none",
            )
        return NoContainer()

    def attach(self, run_id: str, token: str) -> NoContainer:
        return NoContainer()
