"""The main job on a real Make project: turns, the limit at full size, nothing left behind."""

import itertools
import os
import re
import shutil
import signal
from collections.abc import Callable

import pytest

from tests.harness import ROOT, Box, alive, wait_for


@pytest.fixture
def demo(make_box: "Callable[[str], Box]") -> "Callable[[str], Box]":
    """Makes a box with a copy of the demo project in it."""

    def make(backend: str = "auto") -> Box:
        box = make_box(backend)
        ignored = shutil.ignore_patterns("build")
        shutil.copytree(ROOT / "tests/demo", box.project, dirs_exist_ok=True, ignore=ignored)
        return box

    return make


def test_five_makes_at_once_run_one_at_a_time(demo: "Callable[[str], Box]") -> None:
    """Unqueued they would build into the same folder at once; here the first builds, the others
    find it built."""
    box = demo("auto")
    runs = [box.start("--", "make", "test") for _ in range(5)]
    done = [box.finish(run, 120) for run in runs]
    assert [run.returncode for run in done] == [0] * 5
    assert sum("-o build/wordcount" in run.stdout for run in done) == 1
    ends = [(float(str(r["since"])), float(str(r["wall"]))) for r in box.records()]
    for (since, wall), (later, _) in itertools.pairwise(ends):
        assert later >= since + wall - 0.05


@pytest.mark.parametrize("backend", ["auto", "rlimit"])
def test_a_hog_of_3_gib_is_stopped_at_2_gib(demo: "Callable[[str], Box]", backend: str) -> None:
    """The default limit, on the best backend that this machine has and on the fallback."""
    box = demo(backend)
    done = box.run("--", "make", "hog", seconds=120)
    assert done.returncode == 137, done.stderr
    assert "memory limit of 2.0 GiB reached" in done.stderr
    assert re.search(r"[12]\.\d GiB +pid \d+ +build/hog 3072", done.stderr)
    assert "--memory 4096M" in done.stderr
    box.last_record()
    wait_for(lambda: not box.leftovers(), 5)


def test_make_is_killed_with_its_sandrun_and_the_next_starts(
    demo: "Callable[[str], Box]",
) -> None:
    box = demo("auto")
    assert box.run("--", "make", "all", seconds=120).returncode == 0
    run = box.start("--", "make", "hog", "HOG_MB=1000", "HOG_RATE=20")
    wait_for(lambda: any("hog 1000" in command(p) for p in box.leftovers()), 60, "the hog runs")
    tree = [pid for pid in box.leftovers() if pid != run.pid and "sandrun" not in command(pid)]
    os.kill(run.pid, signal.SIGKILL)
    assert box.run("--", "make", "test", seconds=120).returncode == 0
    assert tree
    assert not any(map(alive, tree))


def command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return ""


def test_make_kill_all_ends_everything(demo: "Callable[[str], Box]") -> None:
    from tests.harness import launcher

    box = demo("auto")
    box.hold("one")
    box.queue_up("two")
    words = "SANDRUN=" + " ".join(launcher())
    done = box.run("-s", "kill-all", words, argv=["make"])
    assert done.returncode == 0, done.stderr
    assert "ended run" in done.stdout
    assert "ended waiter" in done.stdout
    wait_for(lambda: not box.leftovers(), 10)
