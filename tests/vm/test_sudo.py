"""Processes that root leaves in a plain user's run: sudo closes the run lock that it inherits.

Runs in the laboratory as a plain user: vagrant/lab run --user -- pytest -m vm tests/vm/test_sudo.py
"""

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from sandrun.platform import processes
from tests.harness import Box, wait_for

LAB = os.environ.get("SANDRUN_LAB", "")
pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab"),
    pytest.mark.skipif(os.geteuid() == 0, reason="about a plain user who has sudo"),
]
LEAVE = "sudo -n sh -c 'sleep 600 >/dev/null 2>&1 & echo $!'"


@pytest.fixture
def ends() -> "Iterator[list[int]]":
    """Pids of root's processes to kill after the test."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        if not processes.has_exited(pid):
            subprocess.call(["sudo", "-n", "kill", "-9", str(pid)])


def test_a_process_left_by_root_does_not_overlap_the_next_run(
    make_box: "Callable[[str], Box]", ends: "list[int]"
) -> None:
    """The fallback may not kill it; the keeper holds the lock as long as it lives."""
    box = make_box("rlimit")
    done = box.run("--grace", "1", "--", "sh", "-c", LEAVE, seconds=60)
    assert done.returncode == 0, done.stderr
    pid = int(done.stdout)
    ends.append(pid)
    assert f"sleep 600 (pid {pid})" in done.stderr
    assert not processes.has_exited(pid)
    refused = box.run("--no-wait", "--", "true")
    assert refused.returncode == 75, refused.stderr
    waiting = box.start("--", "true")
    wait_for(lambda: str(pid) in box.heard(waiting), 10, "it says for whom it waits")
    subprocess.check_call(["sudo", "-n", "kill", str(pid)])
    assert box.finish(waiting).returncode == 0


@pytest.mark.skipif(LAB != "v2", reason="about cgroup v2")
def test_the_kernel_kills_a_process_left_by_root(
    make_box: "Callable[[str], Box]", ends: "list[int]"
) -> None:
    box = make_box("auto")
    done = box.run("--require", "kernel", "--grace", "1", "--", "sh", "-c", LEAVE, seconds=60)
    assert done.returncode == 0, done.stderr
    ends.append(int(done.stdout))
    assert f"left behind: sleep 600 (pid {ends[0]})" in done.stderr
    assert processes.has_exited(ends[0])
    assert box.run("--no-wait", "--", "true").returncode == 0
