"""From one run to the next: what the next one waits for, and what it does not."""

import os
import signal
from collections.abc import Callable

import pytest

from sandrun.platform import processes
from tests.harness import INJECT, ON_MACOS, Box, wait_for

pytestmark = pytest.mark.skipif(ON_MACOS, reason="about cgroups")


def groups(run_id: object) -> list[str]:
    """The cgroups of a run."""
    return [path for path, _, _ in os.walk("/sys/fs/cgroup") if path.endswith(f"/sandrun-{run_id}")]


@pytest.fixture
def kernel_box(make_box: "Callable[[str], Box]") -> Box:
    """A box whose runs get cgroups."""
    box = make_box("auto")
    assert box.run("--", "true").returncode == 0
    if box.last_record()["backend"] == "rlimit":
        pytest.skip("cgroup1 is not to be had here: nor another kernel backend")
    return box


def injected(box: Box, **points: str) -> dict[str, str]:
    """The environment of a run that is killed or stopped at a system call (`tests.harness`)."""
    return {"PYTHONPATH": f"{INJECT}:{box.env.get('PYTHONPATH', '')}", **points}


def test_the_next_run_does_not_wait_until_the_groups_are_removed(kernel_box: Box) -> None:
    box = kernel_box
    env = injected(box, SANDRUN_TEST_STOP="cgroup_common.py:remove:rmdir")
    first = box.start("--", "true", env=env)
    wait_for(lambda: processes.Stat(first.pid).state == "T", 20, "it removes its groups")
    left = box.last_record()["id"]
    assert groups(left)
    assert box.run("--wait-timeout", "20", "--", "true").returncode == 0
    # Killed there, it leaves empty groups, which the next run removes, and one record.
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert box.run("--", "true").returncode == 0
    assert not groups(left)
    assert [record["reason"] for record in box.records()] == ["exit"] * 4
