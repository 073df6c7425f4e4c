"""The closed sets and the record of a run as types.

For type checkers and for the API. No module on the path of `sandrun -- true` imports this one at
run time, because importing `typing` takes time.
"""

from typing import Literal, TypedDict

BackendName = Literal["auto", "cgroup2", "systemd", "cgroup1", "rlimit", "job-object", "none"]
Leftovers = Literal["kill", "wait", "leave"]
LimitHit = Literal["", "own", "outer", "cpu-time"]
"""Whose memory limit ended processes of a run: the run's own, or an outer one (a container's, a
slice's, the host's). `cpu-time`: the kernel ended them at their limit on CPU time."""
Stopped = Literal["timeout", "cpu-time", "idle", "memory", "outer-memory", "parent", "escaped"]
Reason = Stopped | Literal["exit", "signal", "not-started", "left", "failed", "lost"]
"""Why a run ended (see `sandrun.model.Outcome`); `Stopped`: sandrun or a limit ended it."""
StopReason = Stopped | Literal["", "signal", "leftovers"]
"""Why a supervisor ends its run. '': it does not; `leftovers`: the command has already exited."""


class WaitedFor(TypedDict):
    """A run that held the queue while another one waited, and for how long of that wait."""

    id: str
    command: str
    seconds: float


class Record(TypedDict, total=False):
    """What the history keeps of a run (`sandrun.history`), as far as it is known. Sizes in bytes,
    times in seconds, `since` in seconds since 1970.

    `limit` is the memory limit, `wait` the time in the queue, `wall` the time of the run after it.
    `cpu`, `peak`, `peak_with_cache` and `stalled` are those of `sandrun.model.Usage`; `processes`
    is its `most_tasks`. `waited_for` names at most five runs, the longest first, if the wait took a
    second or more; the command is cut to 80 characters.
    """

    id: str
    pid: int
    project: str
    cwd: str
    command: list[str]
    backend: str
    limit: int
    since: float
    wait: float
    wall: float
    exit: int
    reason: Reason
    cpu: float
    peak: int | None
    peak_with_cache: int | None
    stalled: float | None
    processes: int | None
    waited_for: list[WaitedFor]
