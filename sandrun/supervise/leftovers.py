"""The end of a run whose command left processes behind: end them, wait for them, or leave them.

Imported only by such a run. `settle` returns when no process is left, when the user wants them
left, or when they were killed.
"""

import os
import sys
import time

from sandrun import messages
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from sandrun.backends.protocol import Container
    from sandrun.model import Outcome, Process
    from sandrun.types import Leftovers, StopReason

    class Git(Protocol):
        """What `leftovers` needs of git."""

        def housekeepers(self, pids: "list[int]") -> "list[int]":
            """Those of the processes that are git's own housekeeping in the background."""

        def stop_fsmonitor(self, pid: int) -> None:
            """Have a file system monitor of git's end by git's own command."""

    class Supervisor(Protocol):
        """What `leftovers` needs of a supervisor."""

        container: Container
        leftovers: Leftovers
        reason: StopReason
        decided: bool
        killed: bool
        git: "Git | None"
        kill_at: float | None

        def wait(self, until: "float | None") -> None: ...
        def stop(self, reason: StopReason) -> None: ...
        def outcome(self) -> Outcome: ...


_SETTLE = 0.1
"""Seconds for processes that are exiting already, before they count as left behind."""

_SESSION = 1.0
"""Seconds for processes in the command's session: a daemon has its own, but helpers stay there that
exit after the command (multiprocessing's and joblib's trackers: 0.8 s on a busy machine)."""

_PODMAN_SECONDS = 10.0
"""Seconds for podman to clean up (it needs 0.2 to 2)."""

_SILENT_SECONDS = 2.0
"""Seconds until the wait for git's background maintenance is reported."""


def settle(run: "Supervisor", outcome: "Outcome") -> "Outcome":
    """End, await or release the processes left behind; return the outcome, which may have
    changed."""
    if not _lasts(run, _SETTLE):
        return outcome
    if run.leftovers == "kill" and not (
        _outlasts_session(run) and _outlasts_podman(run) and _outlasts_git(run)
    ):
        return outcome
    from sandrun.supervise import daemons

    left = [p for p in map(daemons.describe, run.container.live_pids()) if p]
    if run.leftovers == "wait":
        while not run.reason and _lasts(run, 60.0):
            pass
        outcome = run.outcome()
    run.decided = True
    outcome.leftovers = left
    if run.leftovers != "leave":
        _stop_monitors(run, left)
    if run.leftovers == "leave" and not run.reason:
        run.container.release_processes()
        return outcome
    if not run.kill_at and run.container.live_pids():
        run.stop("leftovers")
    while not run.killed and _lasts(run, 60.0):
        pass
    return outcome


def _stop_monitors(run: "Supervisor", left: "list[Process]") -> None:
    from sandrun.supervise import daemons

    for process in left:
        if run.git and process.daemon == daemons.FSMONITOR:
            run.git.stop_fsmonitor(process.pid)


def _outlasts_session(run: "Supervisor") -> bool:
    """Wait for processes in the command's session; whether any process still lives."""
    deadline = time.monotonic() + _SESSION - _SETTLE
    while time.monotonic() < deadline and any(map(_is_in_session, run.container.live_pids())):
        if not _lasts(run, 0.05):
            return False
        if run.reason or run.killed:
            break
    return True


def _is_in_session(pid: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        return os.getsid(pid) == os.getsid(0)
    except OSError:  # it is gone
        return False


def _outlasts_podman(run: "Supervisor") -> bool:
    """Wait for podman to clean up after a container, or `--rm` would not remove it; whether any
    process still lives."""
    from sandrun.supervise import daemons

    deadline = time.monotonic() + _PODMAN_SECONDS
    while time.monotonic() < deadline and daemons.cleaning(run.container.live_pids()):
        if not _lasts(run, 0.05):
            return False
        if run.reason or run.killed:
            break
    return True


def _outlasts_git(run: "Supervisor") -> bool:
    """Wait for git's background maintenance (`gc --auto`), within the run's limits: if every run
    ended it, it would never finish. Whether processes of the run still live then."""
    report_at = time.monotonic() + _SILENT_SECONDS
    while not (run.reason or run.killed):
        pids = run.git.housekeepers(run.container.live_pids()) if run.git else []
        if not pids:
            break
        if time.monotonic() >= report_at and (found := processes.describe(pids[0])):
            messages.status(
                f"waiting for {found.command} (pid {found.pid}), git's background maintenance"
            )
            report_at = float("inf")
        if not _lasts(run, 0.1):
            return False
    return bool(run.container.live_pids())


def _lasts(run: "Supervisor", seconds: float) -> bool:
    """Whether processes of the run still live after `seconds`; returns earlier when none does, when
    there is a new reason to end them, or when they were killed."""
    deadline = time.monotonic() + seconds
    reason = run.reason
    pause = 0.001
    while run.container.live_pids():
        now = time.monotonic()
        if now >= deadline or run.reason != reason or run.killed:
            return True
        run.wait(min(deadline, now + pause))
        pause = min(pause * 2, 0.05)
    return False
