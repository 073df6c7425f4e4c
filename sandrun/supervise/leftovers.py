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

        def poll(self) -> None: ...
        def wait(self, until: "float | None") -> None: ...
        def stop(self, reason: StopReason) -> None: ...
        def outcome(self) -> Outcome: ...
        def note(self, event: str, **details: object) -> None: ...


_SETTLE = 0.1
"""Seconds for processes that are exiting already, before they count as left behind."""

_SESSION = 1.0
"""Seconds for processes in the command's session: a daemon has its own, but helpers stay there that
exit after the command (multiprocessing's and joblib's trackers: 0.8 s on a busy machine)."""

_PODMAN_SECONDS = 10.0
"""Seconds for podman to clean up (it needs 0.2 to 2)."""

_SILENT_SECONDS = 2.0
"""Seconds until the wait for git's background maintenance is reported."""


class LeftoverProcesses:
    """The processes that the command of `run` left behind."""

    def __init__(self, run: "Supervisor") -> None:
        self.run = run
        self.container = run.container

    def settle(self, outcome: "Outcome") -> "Outcome":
        """End, await or release the processes left behind; return the outcome, which may have
        changed."""
        if not self._lasts(_SETTLE):
            return outcome
        if self.run.leftovers == "kill" and not (
            self._outlasts_session() and self._outlasts_podman() and self._outlasts_git()
        ):
            return outcome
        from sandrun.supervise import daemons

        left = [p for p in map(daemons.describe, self.container.live_pids()) if p]
        if self.run.leftovers == "wait":
            while not self.run.reason and self._lasts(60.0):
                pass
            self.run.poll()  # whose limit was hit is final now
            outcome = self.run.outcome()
        self.run.decided = True
        outcome.leftovers = left
        if left:
            from sandrun.supervise import recorder

            self.run.note("leftovers", **recorder.leftover_details(left, self.run.leftovers))
        if self.run.leftovers != "leave":
            self._stop_monitors(left)
        if self.run.leftovers == "leave" and not self.run.reason:
            self.container.release_processes()
            return outcome
        if not self.run.kill_at and self.container.live_pids():
            self.run.stop("leftovers")
        while not self.run.killed and self._lasts(60.0):
            pass
        return outcome

    def _stop_monitors(self, left: "list[Process]") -> None:
        from sandrun.supervise import daemons

        for process in left:
            if self.run.git and process.daemon == daemons.FSMONITOR:
                self.run.git.stop_fsmonitor(process.pid)

    def _outlasts_session(self) -> bool:
        """Wait for processes in the command's session; whether any process still lives."""
        deadline = time.monotonic() + _SESSION - _SETTLE
        while time.monotonic() < deadline and any(map(_is_in_session, self.container.live_pids())):
            if not self._lasts(0.05):
                return False
            if self.run.reason or self.run.killed:
                break
        return True

    def _outlasts_podman(self) -> bool:
        """Wait for podman to clean up after a container, or `--rm` would not remove it; whether any
        process still lives."""
        from sandrun.supervise import daemons

        deadline = time.monotonic() + _PODMAN_SECONDS
        while time.monotonic() < deadline and daemons.cleaning(self.container.live_pids()):
            if not self._lasts(0.05):
                return False
            if self.run.reason or self.run.killed:
                break
        return True

    def _outlasts_git(self) -> bool:
        """Wait for git's background maintenance (`gc --auto`), within the run's limits: if every
        run ended it, it would never finish. Whether processes of the run still live then."""
        report_at = time.monotonic() + _SILENT_SECONDS
        while not (self.run.reason or self.run.killed):
            pids = self.run.git.housekeepers(self.container.live_pids()) if self.run.git else []
            if not pids:
                break
            if time.monotonic() >= report_at and (found := processes.describe(pids[0])):
                messages.status(
                    f"waiting for {found.command} (pid {found.pid}), git's background maintenance"
                )
                report_at = float("inf")
            if not self._lasts(0.1):
                return False
        return bool(self.container.live_pids())

    def _lasts(self, seconds: float) -> bool:
        """Whether processes of the run still live after `seconds`; returns earlier when none does,
        when there is a new reason to end them, or when they were killed."""
        deadline = time.monotonic() + seconds
        reason = self.run.reason
        pause = 0.001
        while self.container.live_pids():
            now = time.monotonic()
            if now >= deadline or self.run.reason != reason or self.run.killed:
                return True
            self.run.wait(min(deadline, now + pause))
            pause = min(pause * 2, 0.05)
        return False


def _is_in_session(pid: int) -> bool:
    if sys.platform == "win32":
        return False
    try:
        return os.getsid(pid) == os.getsid(0)
    except OSError:  # it is gone
        return False
