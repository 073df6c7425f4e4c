"""Runs inside runs: at once in the same queue, with proof; circles across queues are named."""

import os
import signal
import time
from collections.abc import Callable

import pytest

from tests.harness import SCALE, Box, launcher, wait_for

INNER = " ".join(launcher())


@pytest.mark.parametrize("backend", ["none", "auto", "rlimit"])
def test_a_nested_run_starts_at_once(make_box: "Callable[[str], Box]", backend: str) -> None:
    """Also while others wait, and three deep."""
    box = make_box(backend)
    gate = box.root / "gate-go"
    os.mkfifo(gate)
    script = f"read _ <{gate}; {INNER} -- {INNER} -- echo inner"
    outer = box.start("--", "sh", "-c", script)
    wait_for(box.view, 20)
    waiter = box.start("--", "true")
    wait_for(lambda: len(box.view()) == 2, 20)
    box.let("go")
    done = box.finish(outer)
    assert (done.returncode, done.stdout) == (0, "inner\n")
    assert box.finish(waiter).returncode == 0


def test_a_cleared_environment_does_not_make_a_run_wait_for_itself(box: Box) -> None:
    kept = f"PATH={box.env['PATH']} PYTHONPATH={box.env.get('PYTHONPATH', '')} HOME={box.home}"
    kept += f" SANDRUN_STATE_DIR={box.state} SANDRUN_BACKEND=none XDG_STATE_HOME={box.home}"
    done = box.run("--", "sh", "-c", f"env -i {kept} {INNER} --wait-timeout 20 -- echo inner")
    assert (done.returncode, done.stdout) == (0, "inner\n")


def test_a_leaked_environment_lets_nothing_bypass_the_queue(box: Box) -> None:
    """A process outside of the run that has its environment waits like everybody."""
    box.start("--", "sh", "-c", f'echo "$SANDRUN_RUNS" >{box.root}/runs; exec cat {box.root}/fifo')
    os.mkfifo(box.root / "fifo")
    leaked = wait_for(
        lambda: (box.root / "runs").exists() and (box.root / "runs").read_text().strip(), 20
    )
    assert str(leaked).startswith(f"{box.directories()[0]}/")
    daemon = box.start("--", *box.job("daemon"), env={"SANDRUN_RUNS": str(leaked)})
    wait_for(lambda: "waiting, position 2 of 2" in box.heard(daemon), 20)
    assert box.events() == []


def test_the_daemon_of_an_ended_run_waits(make_box: "Callable[[str], Box]") -> None:
    """What a run left behind, on request, is inside no run any more."""
    box = make_box("none")
    gate = box.root / "gate-go"
    os.mkfifo(gate)
    script = (
        f"(read _ <{gate}; {INNER} -- sh -c 'echo begin daemon 0 >>{box.log}') >/dev/null 2>&1 &"
    )
    assert box.run("--leftovers", "leave", "--", "sh", "-c", script).returncode == 0
    box.hold("one")
    box.let("go")
    wait_for(lambda: len(box.view()) == 2, 20)
    box.let("one")
    wait_for(lambda: box.events()[-1] == ("begin", "daemon"), 20)
    assert box.events() == [("begin", "one"), ("end", "one"), ("begin", "daemon")]


def test_a_nested_run_in_another_queue_queues_there(box: Box) -> None:
    holder = box.hold("one", "--queue", "device")
    outer = box.start("--", "sh", "-c", f"{INNER} --queue device -- echo inner")
    wait_for(lambda: len(box.status("--queue", "device")) == 2, 20)
    box.let("one")
    assert box.finish(holder).returncode == 0
    done = box.finish(outer)
    assert (done.returncode, done.stdout) == (0, "inner\n")


def circle(box: Box, queues: "list[str]") -> "list[tuple[int, str, float]]":
    """Each queue's run waits inside for the next queue; code, stderr and seconds of each run."""
    runs = []
    for number, queue in enumerate(queues):
        os.mkfifo(box.root / f"gate-{queue}")
        following = queues[(number + 1) % len(queues)]
        inner = f"{INNER} --queue {following} -- sh -c : inside-{queue}"
        script = f"echo begin {queue} $$ >>{box.log}; read _ <{box.root}/gate-{queue}; {inner}"
        runs.append(box.start("--queue", queue, "--", "sh", "-c", script))
        box.begun(queue)
    began = time.monotonic()
    for queue in queues:
        box.let(queue)
    ends = []
    for run in runs:
        done = box.finish(run)
        ends.append((done.returncode, done.stderr, time.monotonic() - began))
    return ends


@pytest.mark.parametrize("count", [2, 3])
def test_a_circle_of_waits_ends_with_125_and_both_named(box: Box, count: int) -> None:
    """Who closes it fails; the others then have their turn. Two may close it at once."""
    ends = circle(box, ["a", "b", "c"][:count])
    refused = [(err, seconds) for code, err, seconds in ends if code == 125]
    assert 1 <= len(refused) <= count
    assert all(code in (0, 125) for code, _, _ in ends)
    for err, seconds in refused:
        (line,) = [line for line in err.splitlines() if "deadlock:" in line]
        assert line.count("inside-") == 2, "both waiters are named"
        assert line.count("(run ") >= 3 and line.count("pid ") >= 3
        assert "hint:" in err
        assert seconds < 10 * SCALE  # the second of the promise is measured below


def test_a_circle_is_seen_within_a_second(box: Box) -> None:
    """From the start of the wait that closes it to its end, less the start of an interpreter."""
    os.mkfifo(box.root / "gate-a")
    inner = f"{INNER} --queue b -- true"
    script = f"echo begin a $$ >>{box.log}; read _ <{box.root}/gate-a; {inner}"
    first = box.start("--queue", "a", "--", "sh", "-c", script)
    box.begun("a")
    timed = (
        f"date +%s.%N; {INNER} --queue a -- true; code=$?; date +%s.%N; "
        f"{INNER} --version >/dev/null; date +%s.%N; exit $code"
    )
    os.mkfifo(box.root / "gate-b")
    second = box.start(
        *("--queue", "b", "--", "sh", "-c"),
        f"echo begin b $$ >>{box.log}; read _ <{box.root}/gate-b; {timed}",
    )
    box.begun("b")
    box.let("a")
    wait_for(lambda: len(box.status("--queue", "b")) == 2, 20)
    box.let("b")
    done = box.finish(second)
    assert done.returncode == 125
    start, end, bare = map(float, done.stdout.split())
    assert (end - start) - (bare - end) < 1.0 * SCALE
    assert box.finish(first).returncode == 0


@pytest.mark.parametrize("last", ["a", "b"])
def test_no_circle_is_seen_where_another_slot_will_be_free(box: Box, last: str) -> None:
    """A waits inside for B, a run of B waits inside for A, but B's other run just works."""
    runs = []
    for queue, other, slots in (("a", "b", "1"), ("b", "a", "2")):
        os.mkfifo(box.root / f"gate-{queue}")
        inner = f"{INNER} --slots {3 - int(slots)} --queue {other} -- true"
        script = f"echo begin {queue} $$ >>{box.log}; read _ <{box.root}/gate-{queue}; {inner}"
        runs.append(box.start("--queue", queue, "--slots", slots, "--", "sh", "-c", script))
        box.begun(queue)
    worker = box.hold("worker", "--queue", "b", "--slots", "2")
    first, second = ("b", "a") if last == "a" else ("a", "b")
    box.let(first)
    behind = {"a": "b", "b": "a"}  # in which queue the inner run of each waits
    full = {"a": 1, "b": 2}
    wait_for(lambda: len(box.status("--queue", behind[first])) > full[behind[first]], 20)
    box.let(second)
    wait_for(lambda: len(box.status("--queue", behind[second])) > full[behind[second]], 20)
    box.let("worker")
    assert [box.finish(run).returncode for run in (*runs, worker)] == [0, 0, 0]


def test_a_killed_waiter_of_a_circle_leaves_no_trace(box: Box) -> None:
    """Its link is dead with its ticket: the queue works, and no deadlock is seen in it."""
    os.mkfifo(box.root / "gate-a")
    script = f"echo begin a $$ >>{box.log}; read _ <{box.root}/gate-a; {INNER} --queue b -- true"
    outer = box.start("--queue", "a", "--", "sh", "-c", script)
    box.begun("a")
    holder = box.hold("one", "--queue", "b")
    box.let("a")
    rows = wait_for(
        lambda: [r for r in box.status("--queue", "b") if not r["running"]], 20, "inner waits"
    )
    os.kill(int(str(rows[0]["pid"])), signal.SIGKILL)
    assert box.finish(outer).returncode == 137
    box.let("one")
    assert box.finish(holder).returncode == 0
    assert box.run("--queue", "b", "--", "true").returncode == 0
    box.run("--queue", "b", "status")
    left = [p.name for d in box.directories() for p in d.iterdir()]
    assert not [name for name in left if name.startswith(("around.", "w", "r"))]
