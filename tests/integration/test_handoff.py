"""From one run to the next: what the next one waits for, and what it does not."""

import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.platform import processes
from sandrun.queue.queue import NEXT
from tests.harness import INJECT, ON_MACOS, SCALE, Box, wait_for

pytestmark = pytest.mark.skipif(ON_MACOS, reason="not on macOS: cgroups")


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


@pytest.fixture
def ready_box(kernel_box: Box) -> Box:
    """A box whose next waiters open their groups before their turn."""
    if kernel_box.last_record()["backend"] == "systemd":  # which would show its scope as running
        pytest.skip("cgroup2 is not to be had here: systemd makes the groups")
    return kernel_box


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


def has_groups(box: Box, name: str) -> bool:
    return bool(groups(box.ids()[name]))


def test_the_next_waiters_have_their_groups_and_no_others(ready_box: Box) -> None:
    """They are neither shown as running nor counted by the pool, and have no keeper."""
    box = ready_box
    names = ["b", "c", "d", "e", "f"]
    running = [box.hold("a"), *(box.queue_up(name) for name in names)]
    ready = names[: NEXT + 1]
    wait_for(lambda: all(has_groups(box, name) for name in ready), 20, "the next are ready")
    assert [name for name in names if has_groups(box, name)] == ready
    assert [row["running"] for row in box.status()] == [True] + [False] * 5
    assert len(list(box.state.glob("sandrun-pool*/[rw]1*"))) == 1
    assert all(not processes.children(waiter.pid) for waiter in running[1:])
    box.let("a")
    wait_for(lambda: has_groups(box, "e"), 20, "another one has become one of the next")
    assert not has_groups(box, "f")
    assert box.let_all(names) == names
    assert [box.finish(run).returncode for run in running] == [0] * 6
    assert not any(groups(record["id"]) for record in box.records())


@pytest.mark.parametrize("end", ["cancel", "timeout", "SIGTERM", "SIGKILL"])
def test_a_ready_waiter_that_never_runs_leaves_nothing(ready_box: Box, end: str) -> None:
    box = ready_box
    box.hold("a")
    waiter = box.queue_up("b", *(["--wait-timeout", "3"] if end == "timeout" else []))
    run_id = box.ids()["b"]
    wait_for(lambda: groups(run_id), 20, "it is ready")
    if end == "cancel":
        assert box.run("queue", "cancel", run_id).returncode == 0
    elif end != "timeout":
        waiter.send_signal(getattr(signal, end))
    code = box.finish(waiter).returncode
    assert code == {"cancel": 75, "timeout": 75, "SIGTERM": 143, "SIGKILL": -9}[end]
    assert bool(groups(run_id)) == (end == "SIGKILL")
    box.let("a")
    assert box.run("--", "true").returncode == 0  # it removes the groups of a killed one
    assert not groups(run_id)
    assert len(box.records()) == 3


def test_ready_waiters_keep_the_order_when_it_changes(ready_box: Box) -> None:
    box = ready_box
    running = [box.hold("a"), *(box.queue_up(name) for name in ("b", "c", "d", "e"))]
    wait_for(lambda: has_groups(box, "b"), 20, "b is ready")
    assert box.run("queue", "move", box.ids()["b"], "--priority", "low").returncode == 0
    running.append(box.queue_up("f", "--priority", "high"))
    wait_for(lambda: has_groups(box, "f"), 20, "f is ready")
    assert box.run("pause").returncode == 0
    box.let("a")
    assert box.run("resume").returncode == 0
    order = box.let_all(["b", "c", "d", "e", "f"])
    assert order == ["f", "c", "d", "e", "b"]
    assert [box.finish(run).returncode for run in running] == [0] * 6


def test_ready_waiters_of_two_slots_run_two_at_a_time(ready_box: Box) -> None:
    box = ready_box
    option = ("--slots", "2", "--pool", "off")
    running = [box.hold("a", *option), box.hold("b", *option)]
    running += [box.queue_up(name, *option) for name in ("c", "d", "e")]
    wait_for(lambda: has_groups(box, "d"), 20, "d is ready")
    box.let("a")
    box.begun("c")
    assert ("begin", "d") not in box.events()
    box.let("b")
    assert sorted(box.let_all(["c", "d", "e"])) == ["c", "d", "e"]
    assert [box.finish(run).returncode for run in running] == [0] * 5


def test_a_ready_waiter_whose_group_was_removed_makes_another(ready_box: Box) -> None:
    box = ready_box
    box.hold("a")
    waiter = box.queue_up("b")
    run_id = box.ids()["b"]
    wait_for(lambda: groups(run_id), 20, "it is ready")
    wait_for(lambda: "poll" in Path(f"/proc/{waiter.pid}/wchan").read_text(), 20, "it waits")
    ready = groups(run_id)[0]
    for path, _, _ in os.walk(ready, topdown=False):
        os.rmdir(path)
    box.let("a")
    box.begun("b")
    assert os.path.isdir(ready)
    box.let("b")
    assert box.finish(waiter).returncode == 0
    assert not groups(run_id)


def test_a_ready_waiter_that_was_moved_makes_its_groups_there(ready_box: Box) -> None:
    """Otherwise the run would escape the limits of the group that it was moved to."""
    box = ready_box
    box.hold("a")
    waiter = box.queue_up("b")
    run_id = box.ids()["b"]
    wait_for(lambda: groups(run_id), 20, "it is ready")
    wait_for(lambda: "poll" in Path(f"/proc/{waiter.pid}/wchan").read_text(), 20, "it waits")
    memory = [path for path in groups(run_id) if path.startswith("/sys/fs/cgroup/memory/")]
    if not memory:
        pytest.skip("cgroup1 is not to be had here: no memory controller")
    place = Path(memory[0]).with_name(f"moved-{os.getpid()}")
    place.mkdir()
    try:
        (place / "cgroup.procs").write_text(str(waiter.pid))
        box.let("a")
        box.begun("b")
        assert (place / f"sandrun-{run_id}").is_dir()
        assert not os.path.isdir(memory[0])
        box.let("b")
        assert box.finish(waiter).returncode == 0
    finally:
        wait_for(lambda: not (place / "cgroup.procs").read_text(), 20, "nobody is there")
        place.rmdir()
    assert not groups(run_id)


def unlocked(parents: "set[str]") -> list[str]:
    """The groups of dead runs, which nobody has locked."""
    found = []
    for path in (f"{parent}/{name}" for parent in parents for name in os.listdir(parent)):
        if not os.path.basename(path).startswith("sandrun-"):
            continue
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            found.append(path)
        except OSError:
            pass
        os.close(fd)
    return found


def test_sigkill_of_a_waiter_while_it_gets_ready(ready_box: Box) -> None:
    """What it had prepared is gone with the next run, and nobody else's is."""
    box = ready_box
    box.hold("a")
    other = box.queue_up("b")
    wait_for(lambda: has_groups(box, "b"), 20, "b is ready")
    parents = set(map(os.path.dirname, groups(box.ids()["b"])))
    file = box.root / "points"
    job = box.job("c")
    first = box.start("--", *job, env=injected(box, SANDRUN_TEST_POINTS=str(file)))
    wait_for(lambda: "c" in box.ids() and has_groups(box, "c"), 20, "c is ready")
    first.kill()
    first.wait()
    points = list(dict.fromkeys(file.read_text().splitlines()))
    made = next(number for number, point in enumerate(points) if ":make_locked:" in point)
    for point in points[made:]:
        waiter = box.start("--", *job, env=injected(box, SANDRUN_TEST_KILL=point))
        assert waiter.wait(30 * SCALE) == -signal.SIGKILL, point
        assert has_groups(box, "b"), point
    box.let("a")
    box.let("b")
    assert box.finish(other).returncode == 0
    assert box.run("--", "true").returncode == 0
    assert [record["reason"] for record in box.records()] == ["exit"] * 4
    wait_for(lambda: not unlocked(parents), 5, "no group of a dead run is left")


def test_a_waiter_searches_once_for_runs_that_enclose_it(box: Box) -> None:
    """In its own queue: two files that the holder may have locked, and one that we inherited."""
    box.hold("a")
    file = box.root / "points"
    box.start("--", *box.job("b"), env=injected(box, SANDRUN_TEST_POINTS=str(file)))
    wait_for(lambda: file.exists() and "posix_waiter.py:__enter__:" in file.read_text(), 20)
    points = file.read_text().splitlines()
    assert points.count("linux_locks.py:_has_locked:listdir") == 3
