"""The keeper of a run's first 5 ms, a shell: it ends the run as the later ones do.

The supervisor is stopped (SIGSTOP) when it begins to supervise, so it stays in that first instant.
"""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.platform import processes
from tests.harness import INJECT, ON_MACOS, Box, alive, wait_for

pytestmark = pytest.mark.skipif(ON_MACOS, reason="not on macOS: its keeper is forked at once")

SCRIPT = 'echo begun first $$ >>"$0"; exec sleep 1000'
FIRST_WAIT = "posix_supervisor.py:_block:sigtimedwait"


def named(run: "subprocess.Popen[str]", name: str) -> "list[int]":
    """The children of the supervisor that have this name."""
    found = []
    for pid in processes.children(run.pid):
        try:
            found += [pid] if processes.Stat(pid).name == name else []
        except OSError:
            continue  # it is gone
    return found


def begun(box: Box, point: str = FIRST_WAIT) -> "subprocess.Popen[str]":
    """A run whose command has begun, and whose supervisor is stopped."""
    path = f"{INJECT}:{box.env.get('PYTHONPATH', '')}"
    env = {"PYTHONPATH": path, "SANDRUN_TEST_STOP": point}
    run = box.start("--grace", "0.05", "--", "sh", "-c", SCRIPT, str(box.log), env=env)
    wait_for(lambda: processes.Stat(run.pid).state == "T", 10, "the supervisor is stopped")
    wait_for(lambda: box.log.exists() and "begun" in box.log.read_text(), 10, "the command begins")
    return run


@pytest.mark.parametrize("backend", ["rlimit", "auto"])
def test_it_ends_and_records_the_run_of_a_killed_supervisor(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    box = make_box(backend)
    run = begun(box)
    (shell,) = wait_for(lambda: named(run, "early-keeper"), what="a shell is the keeper")
    assert not named(run, "run-keeper")
    command = Path(f"/proc/{shell}/cmdline").read_bytes()
    assert b"sandrun" not in command  # `pkill -f sandrun` is meant for the supervisor
    assert os.getsid(shell) == shell
    os.kill(run.pid, signal.SIGKILL)
    run.wait(10)
    wait_for(lambda: not box.leftovers(), 3, "nothing of the run lives")
    wait_for(
        lambda: [record["reason"] for record in box.records()] == ["lost"], 5, "it is recorded"
    )
    done = box.run("--", "true", seconds=10)
    assert done.returncode == 0
    assert "cleaning up" not in done.stderr  # nothing is left to do
    assert [record["reason"] for record in box.records()] == ["lost", "exit"]


def test_the_run_lock_is_held_until_it_has_ended_the_run(make_box: "Callable[[str], Box]") -> None:
    box = make_box("auto")
    run = begun(box)
    (shell,) = wait_for(lambda: named(run, "early-keeper"), what="a shell is the keeper")
    (command,) = set(processes.children(run.pid)) - {shell}
    os.kill(shell, signal.SIGSTOP)
    os.kill(run.pid, signal.SIGKILL)
    run.wait(10)
    os.kill(command, signal.SIGKILL)  # it had inherited the lock, too
    wait_for(lambda: not alive(command), 10, "only the shell is left")
    done = box.run("--no-wait", "--", "true")
    assert done.returncode == 75, done.stderr
    os.kill(shell, signal.SIGCONT)
    wait_for(lambda: not box.leftovers(), 3, "nothing of the run lives")


def test_one_that_is_killed_is_replaced(make_box: "Callable[[str], Box]") -> None:
    box = make_box("auto")
    run = begun(box)
    (shell,) = wait_for(lambda: named(run, "early-keeper"), what="a shell is the keeper")
    os.kill(shell, signal.SIGKILL)
    os.kill(run.pid, signal.SIGCONT)
    wait_for(lambda: named(run, "run-keeper"), 10, "a keeper")
    os.kill(run.pid, signal.SIGKILL)
    run.wait(10)
    wait_for(lambda: not box.leftovers(), 3, "nothing of the run lives")


@pytest.mark.parametrize("backend", ["rlimit", "auto"])
def test_it_does_not_end_the_next_run(make_box: "Callable[[str], Box]", backend: str) -> None:
    """The supervisor dies when it has started the next keeper, and has not dismissed the shell."""
    box = make_box(backend)
    run = begun(box, point="posix_keeper.py:_dismiss:write")
    wait_for(lambda: len(named(run, "early-keeper")) == 2, 10, "both are there")
    early = named(run, "early-keeper")
    [shell] = [pid for pid in early if Path(f"/proc/{pid}/cmdline").read_bytes()[:3] == b"sh\0"]
    os.kill(shell, signal.SIGSTOP)
    second = box.queue_up("two")
    os.kill(run.pid, signal.SIGKILL)
    run.wait(10)
    box.begun("two")  # the other keeper has ended the first run
    os.kill(shell, signal.SIGCONT)
    wait_for(lambda: not alive(shell), 20, "the shell's interpreter has ended")
    box.let("two")
    assert box.finish(second).returncode == 0
    assert [record["reason"] for record in box.records()] == ["lost", "exit"]


def test_the_next_keeper_takes_its_name_when_the_shell_has_exited(
    make_box: "Callable[[str], Box]",
) -> None:
    """So there are never three processes with the name of the two keepers."""
    box = make_box("auto")
    run = begun(box)
    (shell,) = wait_for(lambda: named(run, "early-keeper"), what="a shell is the keeper")
    os.kill(shell, signal.SIGSTOP)
    os.kill(run.pid, signal.SIGCONT)
    wait_for(
        lambda: any(
            "poll" in Path(f"/proc/{pid}/wchan").read_text() and pid != shell
            for pid in (*named(run, "early-keeper"), *named(run, "run-keeper"))
        ),
        10,
        "the next keeper waits",
    )
    assert not named(run, "run-keeper")
    os.kill(shell, signal.SIGCONT)
    wait_for(lambda: named(run, "run-keeper"), 10, "the shell has exited")
    run.terminate()
    assert run.wait(10) == 143


def test_it_goes_when_the_run_lasts(make_box: "Callable[[str], Box]") -> None:
    box = make_box("auto")
    run = begun(box)
    (shell,) = wait_for(lambda: named(run, "early-keeper"), what="a shell is the keeper")
    os.kill(run.pid, signal.SIGCONT)
    wait_for(lambda: named(run, "run-keeper"), 10, "a keeper")
    wait_for(lambda: not os.path.exists(f"/proc/{shell}"), 10, "the shell exits and is reaped")
    run.terminate()
    assert run.wait(10) == 143
    assert not box.leftovers()
