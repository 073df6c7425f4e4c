"""The queue with real processes: order, what waiters see, and what SIGKILL leaves behind."""

import os
import re
import signal
import time
from collections.abc import Callable

import pytest

from tests.harness import Box, alive, launcher, wait_for

LINE = re.compile(r"(\d+):(\d+):(.+)")


def test_concurrent_runs_take_turns_in_order(box: Box) -> None:
    """No run begins before the one ahead has ended, and the order is that of arrival."""
    names = ["one", "two", "three", "four", "five"]
    runs = [box.hold(names[0]), *(box.queue_up(name) for name in names[1:])]
    for name in names:
        box.let(name)
    assert [box.finish(run).returncode for run in runs] == [0] * 5
    assert box.events() == [(what, name) for name in names for what in ("begin", "end")]


def test_waiters_report_their_position_and_the_running_command(box: Box) -> None:
    first = box.hold("one")
    second, third = box.queue_up("two"), box.queue_up("three")
    for run in (second, third):
        wait_for(lambda r=run: "waiting" in box.heard(r), 20)  # type: ignore[misc]
    for name in ("one", "two", "three"):
        box.let(name)
    box.finish(first)
    said = [box.finish(run).stderr for run in (second, third)]
    assert re.search(r"waiting, position 2 of [23]; running for .* job one .*\(pid \d+", said[0])
    assert re.search(r"waiting, position 3 of 3; running for .* job one .*\(pid \d+", said[1])
    assert f"pid {first.pid}" in said[0]
    assert f"in {box.project}" in said[0]


def test_quiet_reports_no_waiting(box: Box) -> None:
    first, second = box.hold("one"), box.queue_up("two", "-q")
    for name in ("one", "two"):
        box.let(name)
    assert [box.finish(run).stderr for run in (first, second)] == ["", ""]


def test_queue_txt_lists_pid_time_and_command_head_first(box: Box) -> None:
    before = int(time.time())
    runs = [box.hold("one"), box.queue_up("two"), box.queue_up("three")]
    lines = [LINE.fullmatch(line) for line in box.view()]
    assert all(lines)
    assert [int(line[1]) for line in lines if line] == [run.pid for run in runs]
    assert all(before <= int(line[2]) <= time.time() for line in lines if line)
    assert [re.search(r" job (\w+)", line[3])[1] for line in lines if line] == [  # type: ignore[index]
        "one",
        "two",
        "three",
    ]


def test_after_the_last_run_queue_txt_is_empty_and_no_ticket_is_left(box: Box) -> None:
    assert box.run("--", "true").returncode == 0
    (state,) = box.directories()
    assert sorted(p.name for p in state.iterdir()) == ["executor.lock", "queue.txt"]
    assert box.view() == []
    assert (state / "executor.lock").read_bytes() == b""


def test_the_state_directory_is_the_one_of_the_design(box: Box) -> None:
    """`seq-exec-<hash>-<uid>`, where the hash is what `pwd | shasum | head -c 8` prints."""
    box.run("--", "true")
    digest = box.run("pwd | sha1sum | head -c 8", argv=["sh", "-c"]).stdout
    (state,) = box.directories()
    assert state.name == f"seq-exec-{digest}-{os.geteuid()}"
    assert state.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("backend", ["auto", "rlimit"])
def test_a_killed_supervisor_leaves_nothing_and_the_next_starts(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    """Its tree, a daemon included, is dead before the next run begins."""
    box = make_box(backend)
    daemon = box.root / "daemon"
    script = f"setsid sh -c 'echo $$ >{daemon}; exec sleep 1000' & echo $$ >{box.root}/pid; wait"
    first = box.start("--", "sh", "-c", script)
    pids = [
        int(wait_for(lambda f=file: f.exists() and f.read_text(), 20))  # type: ignore[misc]
        for file in (daemon, box.root / "pid")
    ]
    second = box.queue_up("two")
    first.kill()
    box.begun("two")
    assert not any(map(alive, pids))
    box.let("two")
    assert box.finish(second).returncode == 0
    assert [record["reason"] for record in box.records()] == ["lost", "exit"]


def test_without_containment_the_run_lock_lasts_as_long_as_the_tree(box: Box) -> None:
    """--backend none cannot end the tree, but nothing runs beside it."""
    first = box.hold("one")
    second = box.queue_up("two")
    first.kill()
    first.wait()
    wait_for(lambda: "processes that a terminated run left" in box.heard(second), 20)
    assert ("begin", "two") not in box.events()
    box.let("one")
    box.let("two")
    assert box.finish(second).returncode == 0
    assert box.events() == [("begin", "one"), ("end", "one"), ("begin", "two"), ("end", "two")]


def test_killed_waiters_vanish_from_the_queue(box: Box) -> None:
    first = box.hold("one")
    waiters = [box.queue_up(f"w{n}") for n in range(4)]
    for victim in (waiters[0], waiters[2]):
        victim.kill()
        victim.wait()
    assert [row["pid"] for row in box.status()] == [first.pid, waiters[1].pid, waiters[3].pid]
    for name in ("one", "w1", "w3"):
        box.let(name)
    for run in (first, waiters[1], waiters[3]):
        assert box.finish(run).returncode == 0
    assert [name for what, name in box.events() if what == "begin"] == ["one", "w1", "w3"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_waiter_at_once(box: Box, signum: signal.Signals) -> None:
    box.hold("one")
    waiter = box.queue_up("two")
    waiter.send_signal(signum)
    done = box.finish(waiter)
    assert done.returncode == 128 + signum
    assert "left the queue" in done.stderr
    assert [row["command"] for row in box.status() if "two" in str(row["command"])] == []


def test_a_waiter_keeps_ignoring_what_its_caller_ignored(box: Box) -> None:
    """`nohup sandrun` stays in the queue when the terminal goes."""
    box.hold("one")
    waiter = box.start("--", *box.job("two"), argv=["nohup", *launcher()])
    wait_for(lambda: len(box.view()) == 2, 20)
    waiter.send_signal(signal.SIGHUP)
    box.let("one")
    box.let("two")
    assert box.finish(waiter).returncode == 0


def test_a_stopped_waiter_does_not_stall_those_behind(box: Box) -> None:
    first = box.hold("one")
    stopped, third = box.queue_up("two"), box.queue_up("three")
    wait_for(lambda: "position 3" in box.heard(third), 20, "it sleeps behind the one to stop")
    stopped.send_signal(signal.SIGSTOP)
    box.let("one")
    box.finish(first)
    box.let("three", 10)  # less than waiting.LOOK: it is told, it does not find out
    assert box.finish(third).returncode == 0
    assert ("begin", "two") not in box.events()
    stopped.send_signal(signal.SIGCONT)
    box.let("two")
    assert box.finish(stopped).returncode == 0


def test_wait_timeout_gives_up_with_75(box: Box) -> None:
    box.hold("one")
    done = box.run("--wait-timeout", "0.3", "--", "true")
    assert done.returncode == 75
    assert "gave up after waiting" in done.stderr
    assert "hint:" in done.stderr


def test_a_run_inside_a_run_of_the_same_queue_starts_at_once(box: Box) -> None:
    inner = " ".join(launcher())
    done = box.run("--", "sh", "-c", f"{inner} -- sh -c 'echo inner'")
    assert (done.returncode, done.stdout) == (0, "inner\n")


def test_runs_of_different_projects_do_not_wait_for_each_other(box: Box) -> None:
    other = box.root / "other"
    other.mkdir()
    box.hold("one")
    assert box.run("--", "true", cwd=other).returncode == 0
