"""The queue on Windows: order, exclusion, and processes in it that are killed."""

import hashlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.windows.box import SCALE, Box, alive, wait_for

if sys.platform != "win32":
    pytest.skip("about Windows: runs inside vagrant/wine-lab", allow_module_level=True)


def test_five_at_once_run_one_at_a_time_in_order(box: Box) -> None:
    first = box.hold("0")
    others = [box.queue_up(str(number)) for number in range(1, 5)]
    view = (box.state() / "queue.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(":")[0] for line in view] == [str(p.pid) for p in (first, *others)]
    for number in range(5):
        box.begun(str(number))
        box.let(str(number))
    assert [box.finish(p).returncode for p in (first, *others)] == [0] * 5
    noted = [(what, name) for what, name, _ in box.events()]
    assert noted == [(what, str(n)) for n in range(5) for what in ("begin", "end")]
    assert box.tickets() == []


def test_the_witness_sees_two_at_once(box: Box) -> None:
    both = [box.hold(name, "--slots", "2") for name in ("a", "b")]
    for name in ("a", "b"):
        box.let(name)
    for process in both:
        box.finish(process)
    assert "overlap" in [what for what, _, _ in box.events()]


def test_a_killed_holder_makes_room(box: Box) -> None:
    holder = box.hold("holder")
    waiter = box.queue_up("next")
    holder.kill()
    box.begun("next")
    box.let("next")
    assert box.finish(waiter).returncode == 0


def test_a_killed_holder_takes_its_tree_along(box: Box) -> None:
    holder = box.hold("holder")
    command = box.begun("holder")
    waiter = box.queue_up("next")
    holder.kill()
    wait_for(lambda: not alive(command), 5, "the tree is dead")
    box.witness.unlink(missing_ok=True)
    box.begun("next")
    box.let("next")
    done = box.finish(waiter)
    assert done.returncode == 0
    assert "cleaning up after run" in done.stderr
    assert [record["reason"] for record in box.records()] == ["lost", "exit"]


def test_the_next_one_begins_when_the_tree_of_the_last_is_dead(box: Box) -> None:
    box.hold("holder")
    command = box.begun("holder")
    seen = f"import psutil; print(psutil.pid_exists({command}))"
    waiter = box.start("--", sys.executable, "-c", seen)
    wait_for(lambda: "waiting" in box.heard(waiter), 30, "it waits")
    box.started[0].kill()
    assert box.finish(waiter).stdout == "False\n"


def test_the_run_lock_excludes_when_the_tickets_are_gone(box: Box) -> None:
    holder = box.hold("holder")
    for name in box.tickets():  # to remove one that is open would leave its name
        (box.state() / name).rename(box.state() / f"lost-{name}")
    done = box.run("--no-wait", "--", "cmd", "/c", "echo ran")
    assert (done.returncode, done.stdout) == (75, "")
    box.let("holder")
    assert box.finish(holder).returncode == 0


def test_a_killed_waiter_is_skipped(box: Box) -> None:
    holder = box.hold("holder")
    middle = box.queue_up("middle")
    last = box.queue_up("last")
    middle.kill()
    middle.wait()
    assert [row["pid"] for row in box.status()] == [holder.pid, last.pid]
    box.let("holder")
    box.begun("last")
    box.let("last")
    assert box.finish(last).returncode == 0
    assert box.tickets() == []


def test_an_exit_wakes_the_waiter_and_not_its_own_recheck(box: Box) -> None:
    from sandrun.platform import windows_console
    from sandrun.queue import Queue, waiter

    folder = str(box.root / "queue")
    code = f"from sandrun.queue import Queue; Queue({folder!r}).enqueue('aaaaaaaa', ['x'])"
    holder = box.start("-c", f"{code}; print('up', flush=True); input()",
                       argv=[sys.executable], stdin=subprocess.PIPE)  # fmt: skip
    assert holder.stdout and holder.stdout.readline() == "up\n"
    queue = Queue(folder)
    ours = queue.enqueue("bbbbbbbb", ["y"])
    (ahead,) = queue.ahead(ours)
    try:
        seconds = waiter.RECHECK_SECONDS * 10 * SCALE
        with waiter.Blocker(set(), []) as blocker:
            threading.Timer(0.3, holder.kill).start()
            began = time.monotonic()
            blocker.block_on_tickets([ahead], ours, seconds)
        assert time.monotonic() - began < seconds / 2
        assert queue.ahead(ours) == []
    finally:
        windows_console.restore()
        queue.leave(ours)


def test_a_killed_one_in_the_middle_does_not_start_those_behind(box: Box) -> None:
    holder = box.hold("holder")
    middle = box.queue_up("middle")
    last = box.queue_up("last")
    middle.kill()
    wait_for(lambda: "position 2 of 2" in box.heard(last), 10, "it looks again")
    assert [name for what, name, _ in box.events() if what == "begin"] == ["holder"]
    for name in ("holder", "last"):
        box.let(name)
        box.finish({"holder": holder, "last": last}[name])


def test_priority_goes_first(box: Box) -> None:
    holder = box.hold("holder")
    normal = box.queue_up("normal")
    urgent = box.queue_up("urgent", "--priority", "high")
    for name, process in (("holder", holder), ("urgent", urgent), ("normal", normal)):
        box.begun(name)
        box.let(name)
        assert box.finish(process).returncode == 0
    assert [name for what, name, _ in box.events() if what == "begin"] == [
        "holder",
        "urgent",
        "normal",
    ]


def test_gives_up(box: Box) -> None:
    holder = box.hold("holder")
    done = box.run("--no-wait", "--", "cmd", "/c", "echo ran")
    assert (done.returncode, done.stdout) == (75, "")
    done = box.run("--wait-timeout", "0.2", "--", "cmd", "/c", "echo ran")
    assert (done.returncode, done.stdout) == (75, "")
    assert "gave up after waiting" in done.stderr
    assert len(box.tickets()) == 1
    box.let("holder")
    box.finish(holder)


def test_a_run_inside_a_run_starts_at_once(box: Box) -> None:
    inner = [sys.executable, "-m", "sandrun", "-v", "--", "cmd", "/c", "echo inside"]
    done = box.run("--", *inner)
    assert (done.returncode, done.stdout) == (0, "inside\n")
    assert "inside a run of the same queue" in done.stderr


def test_the_job_is_the_proof_and_not_the_environment(box: Box) -> None:
    code = (
        "import os, subprocess, sys\n"
        "env = {k: v for k, v in os.environ.items() if not k.startswith('SANDRUN_R')}\n"
        "sys.exit(subprocess.call([sys.executable, '-m', 'sandrun', '--no-wait', '--',\n"
        "    'cmd', '/c', 'echo inside'], env=env))\n"
    )
    # --no-wait gives up before the look around that a cleared environment needs, so it may wait.
    done = box.run("--", sys.executable, "-c", code.replace("'--no-wait', ", ""))
    assert (done.returncode, done.stdout) == (0, "inside\n")
    holder = box.hold("holder")
    (row,) = box.status()
    leaked = {"SANDRUN_RUNS": f"{box.state()}/{row['id']}"}
    done = box.run("--no-wait", "--", "cmd", "/c", "echo ran", env=leaked)
    assert (done.returncode, done.stdout) == (75, "")
    box.let("holder")
    box.finish(holder)


def test_an_orphan_in_the_job_is_inside(box: Box) -> None:
    """Its parent is dead and its environment is cleared: the job alone proves it."""
    out = box.root / "out"
    inner = [sys.executable, "-m", "sandrun", "--detach", "--", "cmd", "/c", f"echo inside> {out}"]
    between = f"import subprocess; subprocess.Popen({inner!r})"
    code = (
        "import os, subprocess, sys, time\n"
        "env = {k: v for k, v in os.environ.items() if not k.startswith('SANDRUN_R')}\n"
        f"subprocess.run([sys.executable, '-c', {between!r}], env=env)\n"
        f"while not os.path.exists({str(out)!r}):\n"
        "    time.sleep(0.05)\n"
    )
    done = box.run("--timeout", "60", "--", sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert out.read_text() == "inside\n"


def test_status_reports_who_and_where(box: Box) -> None:
    holder = box.hold("holder")
    waiter = box.queue_up("waiter")
    first, second = box.status()
    assert (first["pid"], first["running"]) == (holder.pid, True)
    assert (second["pid"], second["running"]) == (waiter.pid, False)
    assert Path(str(first["cwd"])) == box.project
    assert str(first["command"]).startswith("'" + sys.executable)
    for name in ("holder", "waiter"):
        box.let(name)
    box.finish(holder)
    box.finish(waiter)
    assert box.status() == []


def test_pause_cancel_move(box: Box) -> None:
    holder = box.hold("holder")
    one, two, three = (box.queue_up(name) for name in ("one", "two", "three"))
    ids = [str(row["id"]) for row in box.status()]
    assert box.run("pause").stdout == "paused\n"
    assert box.run("queue", "move", ids[3], "--priority", "high").returncode == 0
    assert box.run("queue", "cancel", ids[1]).returncode == 0
    assert box.finish(one).returncode == 75
    box.let("holder")
    assert box.finish(holder).returncode == 0
    wait_for(lambda: "the queue is paused" in box.heard(three), 20, "it waits for the resume")
    assert box.run("resume").stdout == "resumed\n"
    for name, process in (("three", three), ("two", two)):
        box.begun(name)
        box.let(name)
        assert box.finish(process).returncode == 0


def test_kill_ends_waiter_and_run(box: Box) -> None:
    holder = box.hold("holder")
    waiter = box.queue_up("waiter")
    ids = [str(row["id"]) for row in box.status()]
    done = box.run("kill", ids[1])
    assert done.returncode == 0 and f"ended waiter {ids[1]}" in done.stdout
    assert box.finish(waiter).returncode == 128 + 15
    done = box.run("--grace", "1", "kill")
    assert done.returncode == 0 and f"ended run {ids[0]}" in done.stdout
    assert box.finish(holder).returncode == 128 + 15
    assert not alive(box.begun("holder"))
    assert box.run("kill", "--all").returncode == 1
    assert [(r["reason"], r["exit"]) for r in box.records()] == [("signal", 143)]


def test_a_dead_ticket_of_before_is_nothing(box: Box) -> None:
    box.run("--", "cmd", "/c", "exit 0")
    dead = f"r{1:020}.deadbeef.{os.getpid()}.1.0.make"
    (box.state() / dead).touch()
    done = box.run("--no-wait", "--", "cmd", "/c", "echo ran")
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert box.tickets() == []


def test_the_state_directory_is_the_users(box: Box) -> None:
    box.run("--", "cmd", "/c", "exit 0")
    real = os.path.realpath(box.project)
    digest = hashlib.sha1(os.fsencode(real) + b"\n").hexdigest()[:8]
    assert box.state().name == f"seq-exec-{digest}"
    other = box.root / "elsewhere"
    other.mkdir()
    box.run("--", "cmd", "/c", "exit 0", env={"SANDRUN_STATE_DIR": str(other)})
    assert f"seq-exec-{digest}" in [path.name for path in other.iterdir()]


def test_twenty_at_once_lose_no_record(box: Box) -> None:
    runs = [box.start("--queue", f"q{number}", "--", "cmd", "/c", "exit 0") for number in range(20)]
    assert [box.finish(run, 120).returncode for run in runs] == [0] * 20
    assert len(box.records()) == 20
