"""SIGKILL of the supervisor at every system call that it makes in a run, on each backend.

What a run does is listed by running it once; a point is a call of a C function in a function of
sandrun's. By default one point of each name is tried; SANDRUN_TEST_FULL=1 tries every call, and
SANDRUN_TEST_EVERY=N (the laboratory, where a start takes half a second) every Nth point. At each:
nothing of the run lives a second later (three on the polling fallback), the next run of the queue
starts by itself, and no run is in the history twice.
"""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable

import pytest

from sandrun.platform import processes
from tests.harness import INJECT, SCALE, Box, wait_for

FULL = bool(os.environ.get("SANDRUN_TEST_FULL"))
EVERY = int(os.environ.get("SANDRUN_TEST_EVERY") or "1")
# The command leaves a daemon that ignores the first signal, so that every kind of end is walked.
SCRIPT = """
echo begin >>"$1"
setsid sh -c 'trap "" TERM; echo daemon >>"$0"; while :; do sleep 0.05; done' "$1" &
while ! grep -q daemon "$1"; do sleep 0.01; done
"""
OPTIONS = ("--grace", "0.05")
# A release that was begun tells nobody of the run any more, and what is recorded is over.
ENDED = (
    "posix_run_lock.py",
    "history.py",
    "posix_queue.py",
    "queue.py",
    "admission.py",
    "memory_pool.py",
)


def start(box: Box, **env: str) -> "subprocess.Popen[str]":
    path = f"{INJECT}:{box.env.get('PYTHONPATH', '')}"
    return box.start(
        *OPTIONS, "--", "sh", "-c", SCRIPT, "sh", box.log, env={"PYTHONPATH": path, **env}
    )


def points(box: Box) -> list[str]:
    """The points of one run, in order; `+N`: its Nth call after the first."""
    file = box.root / "points"
    file.unlink(missing_ok=True)  # of an earlier run
    done = box.finish(start(box, SANDRUN_TEST_POINTS=str(file)))
    assert done.returncode == 0, done.stderr
    seen: Counter[str] = Counter()
    found = []
    for name in file.read_text().splitlines():
        if not seen[name]:
            found.append(name)
        elif FULL and seen[name] < 4:
            found.append(f"{name}+{seen[name]}")
        seen[name] += 1
    return found


def check(box: Box, point: str, seconds: float) -> "str | None":
    """Kill a run at the point; why that broke a promise, or None. '' if it was not reached."""
    box.log.write_text("")
    before = len(box.records())
    run = start(box, SANDRUN_TEST_KILL=point)
    box.finish(run)
    if run.returncode != -signal.SIGKILL:
        return ""
    try:
        wait_for(lambda: not box.leftovers(), seconds, point)
    except AssertionError:
        names = [str(processes.describe(pid) and processes.describe(pid).command)  # type: ignore[union-attr]
                 for pid in box.leftovers()]  # fmt: skip
        return f"{point}: lives on: {names}"
    done = box.run("-q", "--", "true", seconds=10)
    if done.returncode != 0:
        return f"{point}: the next run: {done.returncode}: {done.stderr}"
    began = "begin" in box.log.read_text()
    records = box.records()[before:]
    if len(records) > 2 or (began and len(records) < 2 and not point.startswith(ENDED)):
        return f"{point}: the history says {[record['reason'] for record in records]}"
    return None


@pytest.mark.parametrize("backend", ["rlimit", "auto"])
def test_sigkill_at_every_point(make_box: "Callable[[str], Box]", backend: str) -> None:
    def fresh() -> Box:
        box = make_box(backend)
        box.env["SANDRUN_BACKEND"] = backend
        return box

    box = fresh()
    wanted = points(box)[::EVERY]
    steady = set(points(box))  # the others are what only a first run does
    kernels = box.last_record()["backend"] != "rlimit"
    seconds = 1 if kernels else 3
    answers: dict[str, str | None] = {}
    for point in wanted:
        for _ in range(3 if point in steady else 1):  # a wait is not reached every time
            answers[point] = check(box if point in steady else fresh(), point, seconds)
            if answers[point] != "":
                break
    missed = [point for point, answer in answers.items() if answer == ""]
    assert not [answer for answer in answers.values() if answer]
    assert len(steady.intersection(missed)) <= len(wanted) // 10, missed
    phases = (
        "posix_spawn.py",
        "posix_supervisor.py",
        "posix_keeper.py",
        "history.py",
        "posix_run_lock.py",
    )
    hit = [point for point in wanted if point not in missed]
    if EVERY == 1:
        assert all(any(point.startswith(phase) for point in hit) for phase in phases)
    print(f"{len(hit)} points hit on {box.records()[-1]['backend']}, missed {missed}")


@pytest.mark.parametrize(
    "point",
    [
        "posix_supervisor.py:_block:sigtimedwait+1",
        "linux_processes.py:kill_process:pidfd_send_signal",
        "history.py:append:write",
    ],
)
def test_keeper_and_supervisor_killed_the_next_run_cleans_up(
    make_box: "Callable[[str], Box]", point: str
) -> None:
    """The keeper dies while the supervisor is stopped, so that it is not replaced before."""
    box = make_box("rlimit")
    run = start(box, SANDRUN_TEST_STOP=point)
    wait_for(lambda: processes.Stat(run.pid).state == "T", 10, point)
    os.kill(_keeper(run), signal.SIGKILL)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait(30 * SCALE) == -signal.SIGKILL  # what it left may hold the pipe
    assert box.run("-q", "--", "true", seconds=15).returncode == 0
    wait_for(lambda: not box.leftovers(), 3, "nothing lives")


def _keeper(run: "subprocess.Popen[str]") -> int:
    for pid in processes.children(run.pid):
        try:
            if "keeper" in processes.Stat(pid).name:
                return pid
        except OSError:
            continue
    return 0
