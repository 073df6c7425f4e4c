"""Many processes at once: a fork bomb is killed and not told, and the dead are reaped."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.backends import cgroup_common
from sandrun.model import TOO_LARGE_TO_SIGNAL
from sandrun.platform import processes
from tests.harness import SCALE, Box, wait_for

CROWD = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range({TOO_LARGE_TO_SIGNAL + 100}):
    if not os.fork():
        time.sleep(1000)
print(flush=True)
"""


@pytest.fixture(params=["rlimit", "auto"])
def place(make_box: "Callable[[str], Box]", request: pytest.FixtureRequest) -> Box:
    return make_box(request.param)


@pytest.mark.parametrize("stay", ["time.sleep(1000)", "os._exit(0)"])
def test_a_crowd_is_killed_without_a_grace(place: Box, stay: str) -> None:
    """Telling each takes longer than it lasts when all of them want to run."""
    options = ("--idle-timeout", "3", "--grace", "600")
    run = place.start(*options, "--", sys.executable, "-c", CROWD + stay)
    assert run.stdout
    assert run.stdout.readline() == "\n"
    began = time.monotonic()
    assert place.finish(run, 120).returncode in (0, 124)
    assert time.monotonic() - began < 100 * SCALE
    assert not place.leftovers()


def test_a_crowd_of_somebody_elses_costs_nobody_the_grace(make_box: "Callable[[str], Box]") -> None:
    place = make_box("rlimit")
    script = "trap 'echo told; exit' TERM; echo; while :; do sleep 1000 & wait; done"
    run = place.start("-t", "4", "--", "sh", "-c", script)
    assert run.stdout
    run.stdout.readline()
    before = processes.thread_count()
    threads = f"""
import threading
threading.stack_size(1 << 17)
for _ in range({TOO_LARGE_TO_SIGNAL + 100}):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
threading.Event().wait()
"""
    others = subprocess.Popen([sys.executable, "-c", threads], stdout=subprocess.PIPE)
    try:
        assert others.stdout
        others.stdout.readline()
        assert processes.thread_count() - before > TOO_LARGE_TO_SIGNAL
        assert run.poll() is None
        assert place.finish(run).stdout == "told\n"
    finally:
        others.kill()
        others.wait()


def test_what_was_adopted_and_killed_is_reaped(make_box: "Callable[[str], Box]") -> None:
    """Left to whoever is next, the dead count against the user's limit on processes."""
    place = make_box("rlimit")
    deaf = "trap '' TERM; while :; do sleep 1000; done"
    script = f'for i in 1 2 3 4 5 6 7 8; do setsid sh -c "{deaf}" & done; sleep 0.3'
    assert place.run("--grace", "0.1", "--", "sh", "-c", script).returncode == 0
    adopted = set(processes.children(os.getpid())) - place.before
    assert [pid for pid in adopted if processes.has_exited(pid)] == []


def test_a_group_of_dead_processes_is_seen_to_be_empty_at_once(tmp_path: Path) -> None:
    """v1 lists zombies for as long as nobody reaps them. (The file is a fake, they are real.)"""
    dead = [subprocess.Popen(["true"]) for _ in range(5)]
    wait_for(lambda: all(processes.has_exited(process.pid) for process in dead), 10, "all are dead")
    (tmp_path / "cgroup.procs").write_text("".join(f"{process.pid}\n" for process in dead))
    looks: list[str] = []

    def note(event: str, args: "tuple[object, ...]") -> None:
        if event == "open" and str(args[0]).startswith(str(tmp_path)):
            looks.append(str(args[0]))

    sys.addaudithook(note)
    assert cgroup_common.live_pids(str(tmp_path)) == []
    assert len(looks) == 2
    for process in dead:
        process.wait()
