"""Unused state directories are removed, and nothing else is.

Removals at once with runs: a removing process is stopped or killed before each of its system calls,
or races with real runs, with and without the second file of the run lock.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.platform import processes
from tests.harness import INJECT, SCALE, Box, launcher, wait_for

DAYS = 2 * 86400
REMOVER = """
import sys
from sandrun.queue import unused_states
unused_states.IDLE = float(sys.argv[2])
unused_states.remove_some(sys.argv[1])
"""


def age(state: Path) -> None:
    """Make it look as if its last run had ended two days ago."""
    then = time.time() - DAYS
    for path in (*state.iterdir(), state):
        os.utime(path, (then, then), follow_symlinks=False)


def used(box: Box, name: str = "old") -> Path:
    """The state directory of another project, which had a run two days ago."""
    before = set(box.directories())
    where = box.root / name
    where.mkdir()
    assert box.run("--", "true", cwd=where).returncode == 0
    (state,) = set(box.directories()) - before
    age(state)
    return state


def second(box: Box, state: Path) -> Path:
    """The second lock file of a queue without a checkout."""
    return box.state / f"sandrun-locks-{os.geteuid()}" / f"{state.name}.lock"


def test_it_goes_after_the_first_run_of_a_project(box: Box) -> None:
    """With its second lock file; a later run of a known project searches for nothing."""
    assert box.run("--", "true").returncode == 0
    state = used(box)
    assert second(box, state).exists()
    assert box.run("--", "true").returncode == 0
    assert state.exists()
    other = used(box, "new")
    assert not state.exists() and not second(box, state).exists()
    assert other.exists() and second(box, other).exists()
    done = box.run("--", "true", cwd=box.root / "old")
    assert (done.returncode, done.stderr) == (0, "")


def nothing_since_a_day(box: Box, state: Path) -> None:
    os.utime(state / "executor.lock")


def a_pause(box: Box, state: Path) -> None:
    assert box.run("pause", cwd=box.root / "old").returncode == 0


def a_run(box: Box, state: Path) -> None:
    box.start("--", *box.job("one"), cwd=box.root / "old")
    box.begun("one")


def a_waiter(box: Box, state: Path) -> None:
    a_pause(box, state)
    waiter = box.start("--", "true", cwd=box.root / "old")
    wait_for(lambda: "waiting" in box.heard(waiter), 20)
    (state / "paused").unlink()


def what_a_killed_run_left(box: Box, state: Path) -> None:
    run = box.start("--", *box.job("one"), cwd=box.root / "old")
    box.begun("one")
    run.kill()
    run.wait()
    assert box.status("--project", str(box.root / "old")) == []  # removes the dead ticket
    (state / "executor.lock").write_bytes(b"")


def a_killed_run_that_nobody_cleaned_up_after(box: Box, state: Path) -> None:
    (state / "executor.lock").write_bytes(b'{"id": "0badcafe"}\n')


def a_run_whose_state_was_removed(box: Box, state: Path) -> None:
    a_run(box, state)
    shutil.rmtree(state)
    state.mkdir(0o700)


def a_kept_place(box: Box, state: Path) -> None:
    a_pause(box, state)
    done = box.run("--wait-timeout", "0.1", "--", "true", cwd=box.root / "old")
    assert done.returncode == 75
    (state / "paused").unlink()


def a_record(box: Box, state: Path) -> None:
    (state / "history.jsonl").touch()


def a_lock_of_another_kind(box: Box, state: Path) -> None:
    (state / "executor.lock").unlink()
    (state / "executor.lock").mkdir()


def a_ticket_of_another_version(box: Box, state: Path) -> None:
    (state / "v2.10000000000000000000.0badcafe").touch()


@pytest.mark.parametrize(
    "keeps",
    [
        nothing_since_a_day,
        a_pause,
        a_run,
        a_waiter,
        what_a_killed_run_left,
        a_killed_run_that_nobody_cleaned_up_after,
        a_run_whose_state_was_removed,
        a_kept_place,
        a_record,
        a_lock_of_another_kind,
        a_ticket_of_another_version,
    ],
)
def test_it_stays_as_long_as_it_is_of_use(box: Box, keeps: "Callable[[Box, Path], None]") -> None:
    state = used(box)
    keeps(box, state)
    if keeps is not nothing_since_a_day:
        age(state)
    there = {path.name for path in state.iterdir()}
    used(box, "new")
    assert {path.name for path in state.iterdir()} >= there
    assert second(box, state).exists()


@pytest.mark.parametrize(
    "name", ["seq-exec-0badcafe", "seq-exec-not8hexd-{}", "seq-exec-0badcafe-1-{}", "other-{}"]
)
def test_what_has_another_name_is_not_ours(box: Box, name: str) -> None:
    path = box.state / name.format(os.geteuid())
    path.mkdir()
    age(path)
    used(box)
    assert path.exists()


def test_a_link_is_not_followed(box: Box) -> None:
    outside = box.root / "outside"
    outside.mkdir()
    (outside / "executor.lock").touch()
    link = box.state / f"seq-exec-0badcafe-{os.geteuid()}"
    link.symlink_to(outside)
    age(link)
    used(box)
    assert link.is_symlink() and (outside / "executor.lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_another_users_is_left_to_him(open_box: Box) -> None:
    box = open_box
    state = used(box)
    other = box.state / f"seq-exec-0badcafe-{os.geteuid()}"
    os.chown(state.rename(other), 65534, 65534)
    used(box, "new")
    assert other.exists()


def test_second_lock_files_without_a_directory_are_removed_too(box: Box) -> None:
    state = used(box)
    shutil.rmtree(state)
    extra = second(box, state).with_name(f"{state.name}.2.lock")
    extra.touch()
    used(box, "new")
    used(box, "newer")
    assert not state.exists() and not second(box, state).exists() and not extra.exists()


def test_all_slots_are_checked(box: Box) -> None:
    """A run in the second slot keeps the directory; an unused one goes with all its slots."""
    where = box.root / "old"
    state = used(box)
    runs = []
    for name in ("one", "two"):
        runs.append(box.start("--slots", "2", "--", *box.job(name), cwd=where))
        box.begun(name)
    box.let("one")
    box.finish(runs[0])
    age(state)
    used(box, "new")
    assert (state / "executor.2.lock").exists()
    box.let("two")
    box.finish(runs[1])
    os.utime(state / "executor.lock", (0, 0))
    used(box, "newest")
    assert (state / "executor.2.lock").exists(), "its last run ended just now"
    age(state)
    used(box, "newer")
    assert not state.exists()
    assert not list(second(box, state).parent.glob(f"{state.name}*"))


def test_one_run_checks_only_a_few_and_hides_no_name(box: Box) -> None:
    state = used(box)
    for number in range(40):
        copy = state.with_name(f"seq-exec-{number:08x}-{os.geteuid()}")
        shutil.copytree(state, copy)
        age(copy)
    for number in range(100, 140):  # what cannot be removed
        (state.with_name(f"seq-exec-{number:08x}-{os.geteuid()}")).touch()
    count = len(box.directories())
    used(box, "new")
    left = len(box.directories()) - 1
    assert count - 4 <= left <= count
    for _ in range(60):
        if not [path for path in box.directories() if path.is_dir() and _is_old(path)]:
            return
        assert box.finish(remover(box, 86400)).returncode == 0
    raise AssertionError(box.directories())


def _is_old(state: Path) -> bool:
    return time.time() - state.stat().st_mtime > 86400


def remover(box: Box, idle: float = -1e9, **env: str) -> "subprocess.Popen[str]":
    """A process that removes what is unused, by default since ever so short."""
    path = f"{INJECT}:{box.env.get('PYTHONPATH', '')}"
    words = ("-c", REMOVER, box.state, str(idle))
    return box.start(*words, argv=[sys.executable], env={"PYTHONPATH": path, **env})


def points(box: Box) -> "list[str]":
    """The system calls of one removal from its first lock on, in order; `+N`: its Nth call after
    the first."""
    file = box.root / "points"
    assert box.finish(remover(box, SANDRUN_TEST_POINTS=str(file))).returncode == 0
    names = file.read_text().splitlines()
    file.unlink()
    found = [f"{name}+{names[:at].count(name)}" for at, name in enumerate(names)]
    return found[names.index("posix_run_lock.py:try_lock:flock") - 2 :]


def without_second_home(box: Box) -> None:
    """Exclusion depends on the state directory alone."""
    (box.state / f"sandrun-locks-{os.geteuid()}").touch()


HOMES = pytest.mark.parametrize("alone", [False, True], ids=["two homes", "one home"])


def stopped(process: "subprocess.Popen[str]", point: str) -> None:
    """Wait until it has stopped itself at the point."""
    wait_for(lambda: processes.Stat(process.pid).state == "T", 20, point)


def seen(box: Box, name: str) -> None:
    """Wait until a job has begun, or its run waits and says so."""

    def is_seen() -> bool:
        waits = any("waiting" in box.heard(p) for p in box.started if name in map(str, p.args))  # type: ignore[arg-type]
        return waits or ("begin", name) in box.events()

    wait_for(is_seen, 20, name)


@HOMES
def test_a_removal_that_is_stopped_anywhere(box: Box, alone: bool) -> None:
    """Two runs come meanwhile and afterwards: one at a time, and no error is reported."""
    if alone:
        without_second_home(box)
    assert box.run("--", "true").returncode == 0
    todo = points(box)
    assert any(":_remove:unlink" in point for point in todo)
    assert not box.directories()
    for at, point in enumerate(todo):
        names = [f"{name}{at}" for name in ("one", "two")]
        assert box.run("--", "true").returncode == 0
        removing = remover(box, SANDRUN_TEST_STOP=point)
        stopped(removing, point)
        runs = [box.start("--", *box.job(names[0]))]
        seen(box, names[0])
        status = box.run("status")
        assert (status.returncode, status.stderr) == (0, ""), point
        removing.send_signal(signal.SIGCONT)
        assert box.finish(removing).returncode == 0, point
        box.begun(names[0])
        runs.append(box.start("--", *box.job(names[1])))
        seen(box, names[1])
        assert ("begin", names[1]) not in box.events(), f"{point}: two at once"
        assert box.let_all(names) == names, point
        for run in runs:
            done = box.finish(run)
            assert done.returncode == 0 and "error" not in done.stderr, (point, done.stderr)


def late_locker(
    box: Box,
    first: "list[str]",
    second: "list[str]",
    point: str = "posix_run_lock.py:try_lock:flock+0",
) -> None:
    """A run opens the run lock; before it locks, all is removed, its ticket by a cleaner of /tmp,
    and another run begins."""
    path = f"{INJECT}:{box.env.get('PYTHONPATH', '')}"
    env = {"PYTHONPATH": path, "SANDRUN_TEST_STOP": point}
    assert box.run("--", "true").returncode == 0
    late = box.start("--", *box.job("late"), argv=first, env=env)
    stopped(late, point)
    (state,) = box.directories()
    for ticket in state.glob("[wr]*"):
        ticket.unlink()
    assert box.finish(remover(box)).returncode == 0
    assert not state.exists()
    early = box.start("--", *box.job("early"), argv=second)
    box.begun("early")
    late.send_signal(signal.SIGCONT)
    seen(box, "late")
    assert ("begin", "late") not in box.events(), "two at once"
    assert box.let_all(["early", "late"]) == ["early", "late"]
    assert box.finish(early).returncode == box.finish(late).returncode == 0


@HOMES
def test_a_run_that_locks_a_removed_file_starts_over(box: Box, alone: bool) -> None:
    if alone:
        without_second_home(box)
    late_locker(box, launcher(), launcher())


@pytest.mark.parametrize(
    ("words", "point", "said"),
    [
        ("status", "posix_queue.py:listing:listdir", "empty"),
        ("status", "posix_run_lock.py:open:open", "empty"),
        ("kill", "posix_run_lock.py:open:open", ""),
        ("pause", "posix_queue.py:write_file:open", "paused\n"),
        ("resume", "posix_queue.py:unlink:unlink", "not paused\n"),
    ],
)
def test_a_removal_during_another_subcommand(box: Box, words: str, point: str, said: str) -> None:
    """The subcommand does its work, and no error is reported."""
    assert box.run("--", "true").returncode == 0
    path = f"{INJECT}:{box.env.get('PYTHONPATH', '')}"
    looking = box.start(words, env={"PYTHONPATH": path, "SANDRUN_TEST_STOP": point})
    stopped(looking, point)
    assert box.finish(remover(box)).returncode == 0
    assert not box.directories()
    looking.send_signal(signal.SIGCONT)
    done = box.finish(looking)
    assert "internal error" not in done.stderr
    assert said in done.stdout
    assert words != "pause" or list(box.state.glob("seq-exec-*/paused"))


def test_a_removal_that_is_killed_anywhere(box: Box) -> None:
    """The next run starts, and the next removal removes the rest."""
    assert box.run("--", "true").returncode == 0
    todo = points(box)
    for point in todo:
        assert box.run("--", "true").returncode == 0
        removing = remover(box, SANDRUN_TEST_KILL=point)
        assert box.finish(removing).returncode == -signal.SIGKILL, point
        done = box.run("--no-wait", "--", "true")
        assert (done.returncode, done.stderr) == (0, ""), point
    assert box.finish(remover(box)).returncode == 0
    assert not box.directories()
    assert not list((box.state / f"sandrun-locks-{os.geteuid()}").iterdir())


RACER = """
import sys, time
from sandrun.queue import unused_states
unused_states.IDLE = -1e9
unlink, gone = unused_states.os.rmdir, 0
def count(path):
    global gone
    unlink(path)
    gone += 1
unused_states.os.rmdir = count
end = time.monotonic() + 120
print("racing", flush=True)
while time.monotonic() < end and not unused_states.os.path.exists(sys.argv[2]):
    unused_states.remove_some(sys.argv[1])
print(gone)
"""
WITNESS = 'mkdir "$0" && sleep 0.02 && rmdir "$0" || echo twice >>"$0.log"'


def race(box: Box, commands: "list[list[str] | None]", rounds: int) -> int:
    """Start runs with each of the commands in turns while their state is removed again and again;
    how often it was."""
    stop, witness = box.root / "stop", str(box.root / "witness")
    racing = box.start("-c", RACER, box.state, stop, argv=[sys.executable])
    assert racing.stdout and racing.stdout.readline() == "racing\n"
    for _ in range(rounds):
        runs = [box.start("--", "sh", "-c", WITNESS, witness, argv=argv) for argv in commands]
        for run in runs:
            done = box.finish(run, 60)
            assert done.returncode == 0, done.stderr
        assert not Path(f"{witness}.log").exists(), "two at once"
    stop.touch()
    return int(box.finish(racing).stdout)


@HOMES
def test_runs_race_with_removals(box: Box, alone: bool) -> None:
    if alone:
        without_second_home(box)
    assert race(box, [None] * 3, int(10 * SCALE)) > 3
