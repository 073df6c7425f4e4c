"""When a waiter wakes up to report: often enough, and never in a busy loop."""

import os
from pathlib import Path

import pytest

from sandrun.queue import Queue, Ticket, progress


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.mark.parametrize("state", ["behind", "behind a waiter", "paused", "elsewhere", "orphans"])
def test_after_a_message_there_is_always_a_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], state: str
) -> None:
    """Over an hour in one state: a line each HEARTBEAT and the hint, and no spinning between."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    queue = Queue(str(tmp_path / "state"))
    head = queue.enqueue("0" * 8, ["head"])
    if state == "behind":
        queue.mark(head, running=True)
    reported = progress.Progress(queue, queue.enqueue("1" * 8, ["me"]), "/project", "", str)
    wakeups = 0
    while clock.now < 4600:
        match state:
            case "paused":
                reported.report_pause()
            case "elsewhere":
                reported.report_outside_holder("/lock", os.getpid())
            case "orphans":
                reported.report_orphans([])
            case _:
                reported.report_position([Ticket(head.name)])
        clock.now += max(0.001, reported.seconds_to_next(15.0))
        wakeups += 1
    assert 200 < wakeups < 400
    lines = capfd.readouterr().err.splitlines()
    assert 115 < len(lines) < 125
    assert sum("hint:" in line for line in lines) == (state == "behind")
