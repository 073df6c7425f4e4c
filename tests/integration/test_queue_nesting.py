"""Runs inside runs: at once in the same queue, with proof; deadlocks across queues are named."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from sandrun.platform import processes
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


_NEEDED = ("PATH", "PYTHONPATH", "SANDRUN_BACKEND", "XDG_STATE_HOME", "SANDRUN_TEST_PROFILE",
           "SANDRUN_TEST_REAPER")  # fmt: skip


def cleared(box: Box, **env: object) -> str:
    """`env -i`, and what a test cannot do without."""
    kept = {name: box.env[name] for name in _NEEDED if name in box.env}
    words = {"HOME": box.home, "SANDRUN_STATE_DIR": box.state, **kept, **env}
    return " ".join(["env -i", *(f"{name}={value}" for name, value in words.items()), INNER])


def test_a_cleared_environment_does_not_make_a_run_wait_for_itself(box: Box) -> None:
    done = box.run("--", "sh", "-c", f"{cleared(box)} --wait-timeout 20 -- echo inner")
    assert (done.returncode, done.stdout) == (0, "inner\n")


@pytest.mark.parametrize("backend", ["auto", "rlimit"])
@pytest.mark.parametrize("how", ["child", "three deep", "daemon", "behind a waiter"])
def test_a_cleared_environment_does_not_make_a_run_wait_for_the_memory_of_its_own_run(
    make_box: "Callable[[str], Box]", backend: str, how: str
) -> None:
    """The enclosing run has its reservation in the pool, and we are charged to that."""
    box = make_box(backend)
    box.env["SANDRUN_POOL"] = "300M"
    inner = f"{cleared(box, SANDRUN_POOL='300M')} -m 200M --wait-timeout 30"
    script = f"{inner} --queue q -- echo inner"
    if how == "three deep":
        script = f"{inner} --queue q -- {inner} --queue r -- echo inner"
    elif how == "daemon":  # in a session of its own, whose parent is gone
        said = box.root / "said"
        os.mkfifo(said)
        script = f"(setsid {inner} --queue q -- echo inner >{said} 2>/dev/null &); cat {said}"
    elif how == "behind a waiter":  # that came first, and waits for us
        gate = box.root / "gate-go"
        os.mkfifo(gate)
        script = f"echo begin outer $$ >>{box.log}; read _ <{gate}; {script}"
    outer = box.start("-m", "300M", "--", "sh", "-c", script)
    if how == "behind a waiter":
        box.begun("outer")
        waiter = box.start("-m", "100M", "--queue", "s", "--", "true")
        wait_for(lambda: "waiting for memory" in box.heard(waiter), 20)
        box.let("go")
    done = box.finish(outer)
    assert (done.returncode, done.stdout) == (0, "inner\n")
    assert "waiting" not in done.stderr


def test_a_cleared_environment_three_deep_where_all_slots_are_taken(box: Box) -> None:
    """A queue, another one, and the first one again, whose two slots have runs of both kinds."""
    box.hold("other", "--slots", "2")
    inner = f"{cleared(box)} --wait-timeout 30"
    script = f"{inner} --queue q --slots 2 -- {inner} --slots 2 -- {inner} --queue q -- echo inner"
    done = box.run("--slots", "2", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "inner\n", "")


def test_a_run_in_a_run_without_a_reservation_waits_for_memory(
    make_box: "Callable[[str], Box]",
) -> None:
    """No reservation covers its memory, so the pool treats it like any other run."""
    box = make_box("rlimit")
    box.env["SANDRUN_POOL"] = "300M"
    holder = box.hold("one", "-m", "300M", "--queue", "other")
    inner = f"{cleared(box, SANDRUN_POOL='300M')} -m 200M --queue q -- echo inner"
    outer = box.start("--pool", "off", "--", "sh", "-c", inner)
    wait_for(lambda: "waiting for memory" in box.heard(outer), 20)
    box.let("one")
    assert box.finish(holder).returncode == 0
    assert box.finish(outer).stdout == "inner\n"


USER = [] if os.geteuid() == 0 else ["--map-current-user"]
SANDBOXES = {
    "unshare": ["unshare", *USER, "--pid", "--fork", "--mount-proc", "--cgroup"],
    "bwrap": ["bwrap", "--unshare-all", "--bind", "/", "/", "--proc", "/proc", "--die-with-parent"],
}
"""Namespaces in which neither our ancestors nor our cgroup can be seen."""


CLOSING = "import subprocess, sys; sys.exit(subprocess.run(sys.argv[1:]).returncode)"


@pytest.fixture(params=SANDBOXES)
def sandbox(request: pytest.FixtureRequest) -> str:
    words = SANDBOXES[request.param]
    if not shutil.which(words[0]):
        pytest.skip(f"{words[0]} is not installed")
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs namespaces")
    return " ".join(words)


@pytest.mark.parametrize("where", ["kept", "cleared", "private /tmp", "other queue", "closed"])
@pytest.mark.parametrize("backend", ["auto", "none"])
def test_a_sandbox_inside_a_run_does_not_wait_for_it(
    make_box: "Callable[[str], Box]", sandbox: str, backend: str, where: str
) -> None:
    """The open file of the run lock, which the command inherits, proves it; it is enough that an
    ancestor in the sandbox has it."""
    box = make_box(backend)
    box.env["SANDRUN_POOL"] = "300M"
    subprocess.run(["git", "init", "-q", str(box.project)], check=True)
    (box.root / "private").mkdir()
    inner = {
        "kept": INNER,
        "cleared": cleared(box, SANDRUN_POOL="300M"),
        "private /tmp": cleared(box, SANDRUN_STATE_DIR=box.root / "private"),
        "other queue": f"{cleared(box, SANDRUN_POOL='300M')} --queue other",
        "closed": f"{sys.executable} -c '{CLOSING}' {cleared(box, SANDRUN_POOL='300M')}",
    }[where]
    script = f"{sandbox} {inner} -m 200M --wait-timeout 30 -- echo inner"
    done = box.run("-m", "300M", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (0, "inner\n")
    assert "waiting" not in done.stderr


def test_a_leaked_environment_lets_nothing_bypass_the_queue(box: Box) -> None:
    """A process outside of the run that has its environment waits like any other."""
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
    """A process that a run left behind, on request, is not inside a run any more."""
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


def circle(
    box: Box, queues: "list[str]", sandrun: str = INNER, states: "tuple[str, ...]" = ()
) -> "list[tuple[int, str, float]]":
    """Each queue's run waits inside for the next queue, by `sandrun`; code, stderr and seconds of
    each run. `states`: each queue's state directory."""
    runs = []
    for number, queue in enumerate(queues):
        os.mkfifo(box.root / f"gate-{queue}")
        following = (number + 1) % len(queues)
        inner = f"{sandrun} --queue {queues[following]} -- sh -c : inside-{queue}"
        env = {}
        if states:
            env["SANDRUN_STATE_DIR"] = states[number]
            inner = inner.replace(str(box.state), states[following])
        script = f"echo begin {queue} $$ >>{box.log}; read _ <{box.root}/gate-{queue}; {inner}"
        runs.append(box.start("--queue", queue, "--", "sh", "-c", script, env=env))
        box.begun(queue)
    began = time.monotonic()
    for queue in queues:
        box.let(queue)
    ends = []
    for run in runs:
        done = box.finish(run)
        ends.append((done.returncode, done.stderr, time.monotonic() - began))
    return ends


@pytest.mark.parametrize(
    ("count", "environment"),
    [(2, "kept"), (3, "kept"), (2, "cleared"), (3, "cleared"), (2, "cleared, elsewhere")],
)
def test_a_deadlock_ends_with_125_and_names_both(box: Box, count: int, environment: str) -> None:
    """The run that closes it fails; the others then run. Two may close it at once.

    Elsewhere: each queue has a state directory that the environment inside does not name.
    """
    states: tuple[str, ...] = ()
    if environment == "cleared, elsewhere":
        states = (str(box.state), str(box.root / "elsewhere"))
        os.mkdir(states[1])
    sandrun = INNER if environment == "kept" else cleared(box)
    ends = circle(box, ["a", "b", "c"][:count], sandrun, states)
    refused = [(err, seconds) for code, err, seconds in ends if code == 125]
    assert 1 <= len(refused) <= count
    assert all(code in (0, 125) for code, _, _ in ends)
    for err, seconds in refused:
        (line,) = [line for line in err.splitlines() if "deadlock:" in line]
        assert line.count("inside-") == 2, "both waiters are named"
        assert line.count("(run ") >= 3 and line.count("pid ") >= 3
        assert "hint:" in err
        assert seconds < 10 * SCALE  # the second of the promise is measured below


def test_a_deadlock_is_seen_within_a_second(box: Box) -> None:
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
def test_no_deadlock_is_seen_where_another_slot_will_be_free(box: Box, last: str) -> None:
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


def test_a_killed_waiter_of_a_deadlock_leaves_no_trace(box: Box) -> None:
    """Its note ends with its ticket: the queue works, and no deadlock is seen in it."""
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


@pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces: runs as root")
def test_a_run_with_hidden_ancestors_is_not_inside_a_hidden_run(box: Box) -> None:
    """As `docker exec` has it: the parent of the first process there has the number 0, and so has,
    for us, whoever holds a lock from outside."""
    init = box.start(*("--pid", "--fork", "--mount-proc", "sleep", "1000"), argv=["unshare"])
    (child,) = wait_for(lambda: processes.children(init.pid), 20)
    enter = ["nsenter", "-t", str(child), "-p", "-m", "-w", *launcher()]
    box.hold("one")
    late = box.start("--", *box.job("late"), argv=enter)
    wait_for(lambda: "waiting, position 2 of 2" in box.heard(late), 20)
    box.let("one")
    box.let("late")
    assert box.finish(late).returncode == 0
