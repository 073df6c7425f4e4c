"""The samples and events of a run: what its file holds, and that nothing about it fails the run."""

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandrun.insight import samples
from tests.harness import ON_MACOS, Box, launcher, wait_for

KERNEL_AND_POLLING = ["rlimit"] if ON_MACOS else ["auto", "rlimit"]
GROWS = """
import time
held = []
for _ in range(12):
    held.append(bytearray(4 << 20))
    time.sleep(0.2)
"""
ALLOCATES = "held = [bytearray(1 << 20) for _ in range(200)]"
"""... more than the limit of these tests."""


@pytest.fixture(autouse=True)
def _reads_the_boxs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reader, in this process, finds what runs in the first box of the test wrote."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "box0/home/state"))


def records(box: Box) -> "list[dict[str, Any]]":
    file = box.home / "state/sandrun/history.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def run_files(box: Box) -> "list[Path]":
    return sorted((box.home / "state/sandrun/runs").glob("*"))


def only(box: Box) -> samples.Samples:
    """The samples of the only run that has any."""
    [file] = run_files(box)
    found = samples.read(file.name.partition(".")[0])
    assert found
    return found


def kinds(found: samples.Samples) -> "list[str]":
    return [event.kind for event in found.events]


@pytest.mark.parametrize("backend", KERNEL_AND_POLLING)
def test_the_curve_of_a_run(make_box: "Callable[[str], Box]", backend: str) -> None:
    box = make_box(backend)
    done = box.run("-m", "600M", "--", sys.executable, "-c", GROWS)
    assert done.returncode == 0, done.stderr
    [record], found = records(box), only(box)
    for key in ("id", "pid", "project", "cwd", "command", "backend", "limit"):
        assert getattr(found, key) == record[key], key
    assert abs(found.since - record["since"]) < 0.001
    curve = [point.memory for point in found.points]
    assert len(curve) >= 3, found
    assert max(curve) == record["peak"] >= 30 << 20
    assert curve[0] < curve[-2] or curve[0] < curve[-1], "it grows"
    times = [point.t for point in found.points]
    assert times == sorted(times)
    assert times[0] >= 0.9
    assert times[-1] <= record["wall"] + 0.5
    cpu = [point.cpu for point in found.points if point.cpu is not None]
    assert cpu == sorted(cpu)
    assert abs(cpu[-1] - record["cpu"]) < 0.05
    assert all(point.processes for point in found.points if point.t < record["wall"] - 0.5)
    assert record["processes"] >= max(point.processes or 0 for point in found.points)


def test_the_file_is_private(box: Box) -> None:
    assert box.run("--", "sleep", "1.2").returncode == 0
    [file] = run_files(box)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert file.name == records(box)[0]["id"] + ".jsonl"


@pytest.mark.parametrize("backend", ["none", *KERNEL_AND_POLLING])
def test_a_short_run_leaves_no_file(make_box: "Callable[[str], Box]", backend: str) -> None:
    box = make_box(backend)
    assert box.run("--", "sleep", "0.3").returncode == 0
    assert not run_files(box)


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: nothing counts the wakeups of a process")
def test_without_a_container_nothing_wakes_up(box: Box) -> None:
    def wakeups() -> str:
        status = Path(f"/proc/{run.pid}/status").read_text()
        return status.partition("\nvoluntary_ctxt_switches:")[2].split("\n")[0]

    run = box.start("--", "sleep", "60")
    wait_for(lambda: run_files(box) and samples.read(run_files(box)[0].name[:8]), 20, "a header")
    time.sleep(0.3)
    before = wakeups()
    time.sleep(2.5)
    assert wakeups() == before
    run.terminate()
    assert run.wait(20) == 128 + signal.SIGTERM
    assert only(box).points == []


@pytest.mark.parametrize("backend", KERNEL_AND_POLLING)
def test_a_live_run_is_read_and_a_killed_one_is_kept(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    box = make_box(backend)
    run = box.start("--", "sleep", "60")
    seen = wait_for(lambda: run_files(box) and only(box).points, 20, "a point of the live run")
    run.kill()
    run.wait()
    wait_for(lambda: records(box), 20, "the keeper has recorded the lost run")
    assert records(box)[0]["reason"] == "lost"
    assert only(box).points[: len(seen)] == seen


@pytest.mark.parametrize("backend", KERNEL_AND_POLLING)
def test_a_limit_that_is_hit(make_box: "Callable[[str], Box]", backend: str) -> None:
    box = make_box(backend)
    done = box.run("-m", "64M", "--", sys.executable, "-c", ALLOCATES)
    assert done.returncode == 137, done.stderr
    found, [record] = only(box), records(box)
    [event] = [event for event in found.events if event.kind == "limit"]
    assert event.details["whose"] == "own"
    assert event.t <= record["wall"] + 0.5
    assert max(point.memory for point in found.points) == record["peak"]
    if record["backend"] == "rlimit":
        assert event.details["counters"] == {}
    else:
        assert event.details["counters"]["oom_kill"] >= 1


def test_stopping_and_continuing_the_command(box: Box) -> None:
    run = box.start("--", "sh", "-c", "echo $$; exec sleep 60")
    assert run.stdout
    pid = int(run.stdout.readline())
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: run_files(box) and kinds(only(box)) == ["stopped"], 20, "the stop is recorded")
    os.kill(pid, signal.SIGCONT)
    wait_for(lambda: kinds(only(box)) == ["stopped", "continued"], 20, "and its end")
    run.terminate()
    assert run.wait(20) == 128 + signal.SIGTERM


def test_a_limit_on_time(box: Box) -> None:
    assert box.run("-t", "0.2", "--", "sleep", "60").returncode == 124
    [event] = only(box).events
    assert (event.kind, event.details) == ("timeout", {"reason": "timeout"})


@pytest.mark.parametrize("backend", KERNEL_AND_POLLING)
def test_processes_that_are_left_behind(make_box: "Callable[[str], Box]", backend: str) -> None:
    box = make_box(backend)
    assert box.run("--", "sh", "-c", "setsid sleep 60 & exit 3").returncode == 3
    [event] = [event for event in only(box).events if event.kind == "leftovers"]
    assert event.details["action"] == "kill"
    assert [process["command"] for process in event.details["top"]] == ["sleep 60"]


def test_who_held_the_queue(box: Box) -> None:
    first = box.hold("first")
    second = box.queue_up("second")
    third = box.queue_up("third")
    time.sleep(1.2)  # a shorter wait is not recorded
    for name in ("first", "second", "third"):
        box.let(name)
    for run in (first, second, third):
        assert run.wait(20) == 0
    one, two, three = records(box)
    assert "waited_for" not in one
    [held] = two["waited_for"]
    assert held["id"] == one["id"]
    assert held["command"].startswith("sh -c ")
    assert len(held["command"]) <= 80
    assert 1 <= held["seconds"] <= two["wait"] + 0.1
    assert three["waited_for"][0]["id"] == one["id"]


def test_a_longer_run_names_each_of_those_it_waited_for(box: Box) -> None:
    """... by the history, because a waiter is not woken up when the run at the head changes."""
    runs = [box.start("--", "sleep", "1.1")]
    wait_for(lambda: len(box.view()) == 1, 20, "the first runs")
    runs.append(box.start("--", "sleep", "1.3"))
    wait_for(lambda: len(box.view()) == 2, 20, "the second waits")
    runs.append(box.start("--", "sleep", "1.3"))
    wait_for(lambda: len(box.view()) == 3, 20, "the third waits")
    for run in runs:
        assert run.wait(30) == 0
    one, two, three = records(box)
    assert {run["id"] for run in three["waited_for"]} == {one["id"], two["id"]}
    found = samples.read(three["id"])
    assert found
    assert found.waited_for == three["waited_for"]
    total = sum(run["seconds"] for run in three["waited_for"])
    assert abs(total - three["wait"]) < 0.5


def test_a_supervisor_that_was_stopped(box: Box) -> None:
    """... samples once when it continues, and does not make up for what it missed."""
    words = ["sh", "-c", "while :; do sleep 0.05; done"]
    run = box.start("--backend", "rlimit", "--", *words)
    wait_for(lambda: run_files(box) and only(box).points, 20, "a point")
    before = only(box).points
    run.send_signal(signal.SIGSTOP)
    time.sleep(3)
    assert len(only(box).points) <= len(before) + 1
    run.send_signal(signal.SIGCONT)
    after = wait_for(lambda: [p for p in only(box).points if p.t > before[-1].t + 2.5], 20)
    run.terminate()
    assert run.wait(20) == 128 + signal.SIGTERM
    assert len(after) <= 2


@pytest.mark.parametrize("backend", KERNEL_AND_POLLING)
def test_a_run_inside_a_run_has_a_file_of_its_own(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    box = make_box(backend)
    done = box.run("--", *launcher(), "--", "sleep", "1.3")
    assert done.returncode == 0, done.stderr
    inner, outer = records(box)
    found = [samples.read(record["id"]) for record in (inner, outer)]
    assert [run and run.command for run in found] == [inner["command"], outer["command"]]
    for run, record in zip(found, (inner, outer), strict=True):
        assert run
        assert max(point.memory for point in run.points) == record["peak"]


@pytest.mark.parametrize("backend", KERNEL_AND_POLLING)
def test_the_samples_of_a_run_inside_are_no_activity(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    box = make_box(backend)
    words = ["--idle-timeout", "4", "--", *launcher(), "--", "sleep", "60"]
    assert box.run(*words, seconds=50).returncode == 124
    assert [event.details["reason"] for event in outer(box).events if event.kind == "timeout"] == [
        "idle"
    ]


def outer(box: Box) -> samples.Samples:
    """The samples of the run that ended last."""
    found = samples.read(records(box)[-1]["id"])
    assert found
    return found


def test_two_runs_at_once(box: Box) -> None:
    runs = [box.start("--queue", name, "--", "sleep", "1.3") for name in ("one", "two")]
    assert [run.wait(20) for run in runs] == [0, 0]
    assert {file.name for file in run_files(box)} == {r["id"] + ".jsonl" for r in records(box)}
    assert len(run_files(box)) == 2


def test_waiting_for_the_pool_names_a_run_of_another_project(
    make_box: "Callable[[str], Box]",
) -> None:
    box = make_box("rlimit")
    first = box.start("--pool", "1G", "-m", "600M", "--queue", "one", "--", *box.job("first"))
    box.begun("first")
    second = box.start("--pool", "1G", "-m", "600M", "--queue", "two", "--", "sleep", "1.2")
    wait_for(lambda: "waiting for memory" in box.heard(second), 20, "the second waits for the pool")
    time.sleep(1.2)  # a shorter wait is not recorded
    box.let("first")
    assert [run.wait(20) for run in (first, second)] == [0, 0]
    one, two = records(box)
    assert [run["id"] for run in two["waited_for"]] == [one["id"]]
    found = samples.read(two["id"])
    assert found
    assert found.waited_for == two["waited_for"]


def test_no_home_and_no_right_to_write_are_no_failure(box: Box) -> None:
    blocked = box.home / "blocked"
    blocked.write_text("")
    for state in (str(blocked), "/proc/nowhere"):
        done = box.run("--", "sleep", "1.2", env={"XDG_STATE_HOME": state})
        assert (done.returncode, done.stderr) == (0, "")
    done = box.run("-v", "--", "sleep", "1.2", env={"XDG_STATE_HOME": str(blocked)})
    assert done.returncode == 0
    assert "no more samples of this run are written" in done.stderr


def test_a_full_disk_ends_the_sampling_and_not_the_run(make_box: "Callable[[str], Box]") -> None:
    """As with a limit on the size of files, which cuts a write in the same way."""
    box = make_box("rlimit")
    argv = ["sh", "-c", 'ulimit -f 1; exec "$@"', "sh"]
    words = ["--", "sh", "-c", f"sleep 1.5; exit 7; : {'x' * 900}"]
    done = box.run(argv=[*argv, *launcher(), *words])
    assert done.returncode == 7
    assert run_files(box)[0].stat().st_size <= 1024


def test_on_a_full_disk_there_are_no_samples(box: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a small tmpfs")
    full = box.root / "full"
    full.mkdir()
    script = f"""
        mount -t tmpfs -o size=64k none {full} || exit 99
        "$@" -v -- sh -c 'cat /dev/zero >{full}/fills 2>/dev/null; sleep 2; exit 7'
        code=$?
        ls {full}/sandrun/runs
        exit $code
    """
    argv = ["unshare", "-m", "sh", "-c", script, "sh", *launcher()]
    done = box.run(argv=argv, env={"XDG_STATE_HOME": str(full)})
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip().endswith(".jsonl")
    assert "no more samples of this run are written" in done.stderr


def test_root_follows_no_link_of_a_user(open_box: Box) -> None:
    """Root with a user's HOME: that user must not choose where root writes."""
    user = 54321
    open_box.home.chmod(0o755)
    state = open_box.home / "state/sandrun"
    state.mkdir(parents=True)
    for path in (open_box.home, state.parent, state):
        os.chown(path, user, user)
    target = open_box.root / "target"
    target.mkdir()
    (state / "runs").symlink_to(target)
    done = open_box.run("--", "sleep", "1.2")
    assert done.returncode == 0
    assert not list(target.iterdir())
    (state / "runs").unlink()
    assert open_box.run("--", "sleep", "1.2").returncode == 0
    [file] = run_files(open_box)
    assert (file.parent.stat().st_uid, file.stat().st_uid) == (user, user)


def test_samples_survive_garbage(box: Box) -> None:
    assert box.run("--", "sleep", "1.2").returncode == 0
    [file] = run_files(box)
    run_id = file.name.partition(".")[0]
    with file.open("ab") as out:
        out.write(b'\xff\x00[1,2\n[3.0,5,null,null,null]\n{"t": 4, "event": "new"}\n[[[\n{"t": ')
    found = samples.read(run_id)
    assert found
    assert found.points[-1] == samples.Point(3.0, 5, None, None, None)
    assert kinds(found) == ["new"]
    assert samples.read("../../etc") is None
    file.unlink()
    os.mkfifo(file)
    assert samples.read(run_id) is None
    assert samples.read("00000000") is None
