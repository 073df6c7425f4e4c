"""The recorder's arithmetic, on a container whose usage is scripted, and its files, which are real.

The real thing: tests/integration/test_insight_samples.py.
"""

import itertools
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from sandrun.insight import samples
from sandrun.model import Usage
from sandrun.supervise import recorder, sample_files
from sandrun.types import Record

WEEK = 7 * 86400.0
MIB = 1 << 20


class _Container:
    """Uses `memory` bytes now; its kernel knows the highest ever."""

    def __init__(self) -> None:
        self.memory = self.peak = 0
        self.cpu = 0.0
        self.escaped: dict[int, object] = {}

    @property
    def current(self) -> int:
        return self.memory

    def use(self, memory: int) -> None:
        self.memory = memory
        self.peak = max(self.peak, memory)

    def sample(self) -> Usage:
        usage = self.usage()
        usage.tasks = 3
        return usage

    def usage(self) -> Usage:
        self.cpu += 1000.0  # more than one part in a hundred of any interval
        return Usage(self.memory, self.peak, self.cpu)


class Run:
    """A recorded run; `began` is its start on the monotonic clock."""

    def __init__(self, run_id: str = "0123abcd", limit: int = 1000 * MIB) -> None:
        self.began = time.monotonic()
        self.container = _Container()
        as_protocol: Any = self.container
        record: Record = {
            "id": run_id,
            "command": ["make"],
            "project": "/p",
            "limit": limit,
            "since": time.time(),
            "wait": 0.0,
        }
        self.recorder = recorder.Recorder(as_protocol, record, self.began, (0.0, 0))

    def read(self) -> samples.Samples:
        found = samples.read(self.recorder.record["id"])
        assert found
        return found


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_a_week_takes_at_most_600_points_and_keeps_its_peaks() -> None:
    run = Run()
    spikes = {3600.0: 500 * MIB, 86400.0: 600 * MIB, 6 * 86400.0: 650 * MIB}
    now, wakeups, seen = 0.0, 0, []
    while now < WEEK:
        for at in [at for at in spikes if at <= now]:
            run.container.peak = spikes.pop(at)  # between two samples
            seen.append(run.container.peak)
        run.container.use(100 * MIB)
        run.recorder.sample(run.began + now)
        wakeups += 1
        assert run.recorder.due
        now = run.recorder.due - run.began
    found = run.read()
    assert 300 <= len(found.points) <= recorder.POINTS
    memory = [point.memory for point in found.points]
    assert [size for size in memory if size > 100 * MIB] == seen
    times = [point.t for point in found.points]
    assert times == sorted(times)
    assert max(b - a for a, b in itertools.pairwise(times)) <= 2 * run.recorder.interval
    assert wakeups < 10 * recorder.POINTS
    size = os.path.getsize(Path(sample_files.directory(), "0123abcd.jsonl"))
    assert size < 64_000


def test_memory_that_changes_all_the_time_stays_within_the_bound() -> None:
    run = Run()
    random.seed(7)
    for poll in range(20_000):
        run.container.use(random.randrange(900 * MIB))
        run.recorder.polled(run.began + poll * 0.05)
    found = run.read()
    assert len(found.points) <= recorder.POINTS
    run.recorder.finish(run.container.usage(), {})
    assert max(point.memory for point in run.read().points) == run.container.peak


def test_a_sample_above_the_final_peak_is_corrected() -> None:
    """The first samples may count page cache that later ones tell apart."""
    run = Run()
    run.container.use(500 * MIB)
    run.recorder.sample(run.began)
    run.recorder.finish(Usage(10 * MIB, 300 * MIB, 1.0), {})
    assert [point.memory for point in run.read().points] == [300 * MIB, 10 * MIB]


def test_an_idle_time_is_two_points_at_each_end() -> None:
    run = Run()
    levels = [100 * MIB] * 20 + [300 * MIB] * 2 + [300 * MIB + 4096] * 20
    for second, memory in enumerate(levels):
        run.container.use(memory)
        if second not in (0, 20):
            run.container.cpu -= 1000.0
        run.recorder.sample(run.began + second)
    assert [point.t for point in run.read().points] == [0, 1, 19, 20, 21]
    run.recorder.finish(run.container.usage(), {})
    assert max(point.memory for point in run.read().points) == run.container.peak


def test_an_expensive_sample_is_taken_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    clock = iter([0.0, 0.1])
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))
    run.recorder.sample(run.began + 1)
    assert run.recorder.due == run.began + 1 + 0.1 * 200
    run.container.use(900 * MIB)
    run.recorder.polled(run.began + 2)  # otherwise StopIteration
    assert len(run.read().points) == 1


def test_events_are_bounded() -> None:
    run = Run()
    for number in range(500):
        run.recorder.note("stopped", {"signal": number}, run.began + number)
    run.recorder.note("limit", {"whose": "own"}, run.began + 500)
    found = run.read()
    assert len(found.events) == 101
    assert found.events[-1].kind == "limit"


@pytest.mark.parametrize("step", ["create", "write", "replace"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_sigkill_while_the_file_is_replaced(
    monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    monkeypatch.setattr(recorder, "POINTS", 10)
    pid = os.fork()
    if pid == 0:
        try:
            run = Run()
            of = sample_files.SampleFile if step == "write" else sample_files.Folder
            name = f"_{step}" if step == "write" else step
            real = getattr(of, name)
            for number in range(1, 11):
                run.container.use(number * MIB)
                run.recorder.sample(run.began + number)

            def dies(*args: Any) -> None:
                if when == "after":
                    real(*args)
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(of, name, dies)
            run.recorder.sample(run.began + 11)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    found = samples.read("0123abcd")
    assert found
    assert max(point.memory for point in found.points) == 10 * MIB
    assert [point.t for point in found.points][-1] == pytest.approx(
        11 if (step, when) == ("replace", "after") else 10, abs=0.01
    )
    assert samples.prune(time.time() + 1000 * 86400, 86400.0, 0)[0] >= 1
    assert os.listdir(sample_files.directory()) == []


def test_the_start_is_that_of_the_record() -> None:
    """Between the turn and the command's start a run may wait for git."""
    began = time.monotonic()
    record: Record = {"id": "0123abcd", "since": time.time() - 5, "limit": 0}
    container: Any = _Container()
    made = recorder.Recorder(container, record, began, (0.0, 0))
    made.note("timeout", {}, began)
    found = samples.read("0123abcd")
    assert found
    assert found.events[0].t == pytest.approx(5, abs=0.5)


def test_a_run_inside_another_held_nothing(tmp_path: Path) -> None:
    """Nested runs of a queue are in the history too."""
    from sandrun import history

    rows: list[Record] = [
        {"id": "aaaaaaaa", "project": "/p", "since": 100.0, "wall": 50.0, "command": ["make"]},
        {"id": "bbbbbbbb", "project": "/p", "since": 130.0, "wall": 5.0, "command": ["cc"]},
        {"id": "cccccccc", "project": "/q", "since": 100.0, "wall": 50.0, "command": ["cc"]},
        {"id": "dddddddd", "project": "/p", "since": 151.0, "wall": 9.0, "command": ["m\x1bx"]},
        {"id": "eeeeeeee", "project": "/p", "since": 10.0, "wall": 20.0, "command": ["old"]},
    ]
    for row in rows:
        history.append(row, str(tmp_path))
    assert recorder.holders("/p", 120.0, 160.0) == [
        {"id": "aaaaaaaa", "command": "make", "seconds": 30.0},
        {"id": "dddddddd", "command": "$'m\\x1bx'", "seconds": 9.0},
    ]


def test_without_a_home_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "nowhere")
    if sys.platform != "win32":
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    run = Run()
    run.recorder.sample(run.began + 1)
    run.recorder.note("limit", {}, run.began + 1)
    run.recorder.finish(run.container.usage(), {})
    assert run.recorder.due is None
