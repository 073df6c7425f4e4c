"""Looking for daemons outside, beside a limit that is to be watched."""

import os

import pytest

from sandrun.platform import processes
from sandrun.supervise.outside import Outside


def test_a_host_full_of_processes_is_looked_at_a_little_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two million of them take minutes, and whoever looks has a limit to watch."""
    asked: list[int] = []

    def start(pid: int) -> int:
        asked.append(pid)
        return 0

    monkeypatch.setattr(processes, "start", start)
    found = Outside(os.getpid(), "/", {})
    found._pids = list(range(2_000_000))
    asked.clear()
    assert found.search(), "there are more"
    assert asked
    assert len(asked) + len(found._pids) == 2_000_000, "it goes on where it was"
    found._pids = [os.getpid()]
    assert not found.search()
