"""The supervisor's loop, the same on every system, on a container whose events are scripted.

The real thing: tests/integration/test_supervisor_end.py.
"""

import time
from types import SimpleNamespace
from typing import Any

from sandrun.model import Outcome, Usage
from sandrun.supervise.supervisor import MEMORY, BaseSupervisor
from sandrun.types import LimitHit, StopReason


class _Container:
    """Its last process is killed at the memory limit, which only the poll after that shows."""

    limit_hit: LimitHit = ""
    current = None

    def __init__(self) -> None:
        self.pids = [1000]
        self.escaped: dict[int, object] = {}

    def poll(self) -> float:
        self.limit_hit = "" if self.pids else "own"
        return 60.0

    def live_pids(self) -> "list[int]":
        return list(self.pids)

    def is_too_large_to_signal(self) -> bool:
        return False

    def usage(self) -> Usage:
        return Usage()

    def counters(self) -> "dict[str, int]":
        return {}

    def top_consumers(self) -> "list[int]":
        return []


class _Supervisor(BaseSupervisor):
    """The command has exited; the process that it left behind does so after the first polls."""

    def _block(self, until: "float | None") -> None:
        if self.status is None:
            self.status = 0
        elif time.monotonic() > self.began + 0.3:
            self.container.pids.clear()  # type: ignore[attr-defined]

    def _limit_hit(self, now: float) -> None:
        self.reason = MEMORY[0]

    def _ask_to_end(self, reason: StopReason) -> bool:
        return True

    def _exit_outcome(self, status: int) -> Outcome:
        return Outcome("exit", status)


def test_a_limit_that_ended_the_last_leftover_is_reported() -> None:
    off = dict.fromkeys(("memory", "timeout", "cpu_time", "idle_timeout"), 0)
    settings: Any = SimpleNamespace(grace=5.0, leftovers="wait", require="", **off)
    container: Any = _Container()
    assert _Supervisor(1000, container, settings, True).run().reason == "memory"
