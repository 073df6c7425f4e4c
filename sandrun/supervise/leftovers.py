"""The end of a run whose command left processes behind: end them, wait for them, or leave them.

Imported by no other run. Returns only when none is left, or when the user wants them left, or when
they were killed.
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
        """What is asked of git's room."""

        def housekeepers(self, pids: "list[int]") -> "list[int]":
            """Those of the processes that are git's own housekeeping in the background."""

        def stop_fsmonitor(self, pid: int) -> None:
            """Have a file system monitor of git's end by git's own command."""

    class Supervisor(Protocol):
        """What is asked of a supervisor, here or on Windows."""

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
"""Seconds that processes already on their way out get before they count as left behind."""

_SESSION = 1.0
"""Seconds for what has stayed in the command's session: no daemon does, but helpers that end when
they see the command gone (multiprocessing's and joblib's trackers: 0.8 s on a busy machine)."""

_CLEANS = 10.0
"""Seconds for podman to clean up (0.2 to 2)."""

_PATIENCE = 2.0
"""Seconds of housekeeping that are nobody's business."""


def settle(run: "Supervisor", outcome: "Outcome") -> "Outcome":
    """Deal with what the command left behind; the outcome, which may be another one now."""
    if not _lasts(run, _SETTLE):
        return outcome
    if run.leftovers == "kill" and not (
        _outlasts_session(run) and _outlasts_podman(run) and _keep_house(run)
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
    """Give what is in the command's session its time; whether anything lives still."""
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
    """Give podman the time to clean up after a container, or `--rm` would not remove it; whether
    anything lives still."""
    from sandrun.supervise import daemons

    deadline = time.monotonic() + _CLEANS
    while time.monotonic() < deadline and daemons.cleaning(run.container.live_pids()):
        if not _lasts(run, 0.05):
            return False
        if run.reason or run.killed:
            break
    return True


def _keep_house(run: "Supervisor") -> bool:
    """Wait for what git does in the background (`gc --auto`), within the run's limits: ended each
    time, it would never be done. Whether processes of the run still live then."""
    say_at = time.monotonic() + _PATIENCE
    while not (run.reason or run.killed):
        pids = run.git.housekeepers(run.container.live_pids()) if run.git else []
        if not pids:
            break
        if time.monotonic() >= say_at and (found := processes.describe(pids[0])):
            messages.status(
                f"waiting for {found.command} (pid {found.pid}), git's background maintenance"
            )
            say_at = float("inf")
        if not _lasts(run, 0.1):
            return False
    return bool(run.container.live_pids())


def _lasts(run: "Supervisor", seconds: float) -> bool:
    """Whether processes of the run still live after `seconds`; returns as soon as none does,
    or when there is a reason to end them, or when they were killed."""
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
