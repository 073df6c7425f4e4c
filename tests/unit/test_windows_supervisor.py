"""The end of a run on Windows, on a FAKE kernel32: who is asked to end, and who is ended at once.

The real thing: tests/windows/test_run.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest

from sandrun.platform import windows_api, windows_console, windows_files, windows_spawn
from sandrun.supervise import windows_supervisor
from sandrun.types import StopReason
from tests.windows.fake_kernel32 import Fake

RUN = {1, 1000, 1004}
"""Sandrun itself and two processes of its run."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    kernel = Fake()
    monkeypatch.setattr(windows_console, "calls", kernel.calls)
    return kernel


@pytest.mark.parametrize(
    ("attached", "asked"),
    [
        ([1, 1000], True),
        ([1, 1000, 1004], True),
        ([1, 1000, 4], False),  # a shell
        ([1], False),  # the command has another console, or none
        ([1, *range(2000, 2300)], False),
        (None, False),
    ],
    ids=["alone", "the whole run", "a stranger", "nobody else", "a crowd", "no console"],
)
def test_only_a_console_that_is_the_runs_alone_gets_a_break(
    fake: Fake, attached: "list[int] | None", asked: bool
) -> None:
    fake.console = attached
    assert windows_console.break_all(RUN) == asked
    assert fake.pressed == ([windows_api.CTRL_BREAK_EVENT] if asked else [])
    assert not fake.broken


class _Container:
    """One whose processes the kernel finds at the end of their CPU time, and does not end yet."""

    limit_hit = "cpu-time"
    events = (-1, 0)

    def __init__(self) -> None:
        self.kills = 0

    def poll(self) -> None:
        return None

    def kill(self) -> None:
        self.kills += 1


@pytest.mark.parametrize("reason", ["", "timeout"])
def test_a_tree_whose_cpu_time_is_over_is_ended_at_once(
    monkeypatch: pytest.MonkeyPatch, reason: "StopReason"
) -> None:
    monkeypatch.setattr(windows_spawn, "open_process", lambda pid: 0x100)
    monkeypatch.setattr(windows_spawn, "terminate", lambda pid: None)
    monkeypatch.setattr(windows_spawn, "exit_code", lambda process: 137)
    monkeypatch.setattr(windows_files, "wait_any", lambda handles, seconds: 0)
    settings: Any = SimpleNamespace(
        grace=5.0,
        leftovers="kill",
        memory=0,
        timeout=0.0,
        cpu_time=0.0,
        idle_timeout=0.0,
        require="",
    )
    container: Any = _Container()
    run = windows_supervisor.Supervisor(1000, container, settings, True, None)
    run.reason = reason  # whoever came first has begun to end it, and gives it the grace
    run.poll()
    assert (container.kills, run.killed) == ((0, False) if reason else (1, True))
    assert run.reason == (reason or "cpu-time")
