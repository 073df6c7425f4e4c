"""The cases of util-linux's own test of flock(1) (tests/ts/misc/flock), against sandrun.

There a background process holds the lock for three seconds, and one process each tries it in some
mode. Here the holder is gated, so no case depends on seconds.

Not applicable, and why:
- shared: a run is exclusive; what comes nearest is `--slots`, whose case is below.
- no-fork: sandrun must outlive the command to contain it, so it never execs in place.
- conflict-exit-code: the code is always 75 (EX_TEMPFAIL), so that scripts need no option for it.
"""

import pytest

from tests.harness import Box, wait_for


@pytest.mark.parametrize("options", [["--no-wait"], ["-n"], ["--wait-timeout", "0.1"]])
def test_non_block_and_exclusive(box: Box, options: "list[str]") -> None:
    """The command never runs, and its absence is told by the exit code."""
    box.hold("general")
    done = box.run(*options, "--", "echo", "You will never see this!")
    assert (done.returncode, done.stdout) == (75, "")


def test_shared_by_slots(box: Box) -> None:
    box.hold("general", "--slots", "2")
    done = box.run("--slots", "2", "--no-wait", "--", "echo", "Have shared lock")
    assert (done.returncode, done.stdout) == (0, "Have shared lock\n")


def test_timeout_is_long_enough(box: Box) -> None:
    """Within the time the lock is released: the command runs, and after the holder's."""
    holder = box.hold("general")
    waiter = box.start("--wait-timeout", "60", "--", "sh", "-c", f"echo begin late 0 >>{box.log}")
    wait_for(lambda: len(box.view()) == 2, 20)
    box.let("general")
    assert box.finish(waiter).returncode == 0
    assert box.finish(holder).returncode == 0
    assert box.events() == [("begin", "general"), ("end", "general"), ("begin", "late")]
