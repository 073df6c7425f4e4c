"""The promises of every backend (tests/contract) for Job Objects, on Windows or Wine.

The cases have the same names as there, so that they share the table of results; the cases missing
here are in ABSENT. A limit that Wine accepts and does not enforce is a strict xfail.
"""

import os
import re
import subprocess
import sys

import psutil
import pytest

from tests.windows.box import SCALE, Box, alive, wait_for
from tests.windows.terminal import Console
from tests.windows.test_job import IS_WINE, SPIN, exists, not_on_wine, tree, tree_pids

ABSENT = {
    "a_daemon_that_ignores_sigterm_is_killed": "no SIGTERM: TerminateJobObject cannot be ignored",
    "a_killed_second_keeper_is_replaced": "no keepers: a job ends with its last handle",
    "a_signal_to_each_process_of_our_cgroup_is_passed_on": "no cgroups",
    "a_process_without_its_first_thread_is_ended": "no first thread that ends alone",
    "after_sigkill_of_the_supervisor_no_thread_lives": "no first thread that ends alone",
    "after_sigkill_of_the_whole_process_group_nothing_lives": "no process groups",
    "at_the_limit_make_deletes_its_half_written_target": "a failed allocation is the program's",
    "at_the_limit_the_other_processes_get_the_grace_to_clean_up": "a job ends as a whole",
    "a_run_that_hit_its_limit_always_exits_with_137": "a failed allocation kills nobody",
    "no_other_user_can_hold_the_lock_of_a_runs_group": "a job has no directory to open",
    "shared_memory_counts_exactly_once": "a job counts what is committed",
    "supervisor_and_keeper_killed_together_nothing_lives": "no keepers",
    "supervisor_and_keepers_killed_together_the_next_run_cleans_up": "no keepers",
    "requested_swap_is_limited_or_refused": "swap is part of what is committed",
    "the_group_of_a_dead_run_is_ended_by_a_run_of_another_queue": "no group outlives its sandrun",
    "the_next_run_ends_a_process_without_its_first_thread": "no keepers",
    "the_processors_are_divided_between_the_run_and_its_supervisor": "one call ends a whole job",
    "the_supervisor_replaces_a_killed_keeper": "no keepers",
    "processes_protected_from_the_oom_killer_are_ended_at_the_limit": "no OOM killer",
    "a_run_that_hits_its_limit_again_is_killed_without_the_grace": "no SIGTERM and no grace",
    "the_kinds_of_memory_are_reported": "a job tells one figure",
}
"""The cases that have no meaning here, and why."""
MIB = 1 << 20
DETACHED = 0x8  # a flag of CreateProcess; subprocess has the name on Windows
PYTHON = [sys.executable, "-I", "-S", "-c"]
SANDRUN = [sys.executable, "-m", "sandrun"]
# Grows by 4 MiB a step and touches every page.
HOG = """
import sys, time
kept = []
for step in range(int(sys.argv[1]) // 4):
    kept.append(bytearray(b"x") * (4 << 20))
    time.sleep(0.005)
print("survived")
"""
pytestmark = pytest.mark.parametrize("backend", ["job-object"], indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(box: Box, backend: str) -> Box:
    assert box.env["SANDRUN_BACKEND"] == backend
    return box


def hog(mib: int) -> list[str]:
    return [*PYTHON, HOG, str(mib)]


def nothing_left(place: Box) -> None:
    """Wait until no process but the test's own names this box's folder."""

    def left() -> list[int]:
        found = []
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
            except psutil.Error:
                continue
            if str(place.root) in words and process.pid != os.getpid():
                found.append(process.pid)
        return found

    wait_for(lambda: not left(), 0.5, "nothing is left")


def test_the_exit_code_is_the_commands(place: Box) -> None:
    for code in (0, 3, 255, 0xC0000005):
        end = f"import ctypes; ctypes.WinDLL('kernel32').ExitProcess(ctypes.c_uint32({code}))"
        assert place.run("--", *PYTHON, end).returncode == code
    assert place.records()[-1]["backend"] == "job-object"


def test_the_first_instruction_already_runs_inside(place: Box) -> None:
    script = "import os; from sandrun.backends import job_object\n"
    script += "from sandrun.platform.windows_api import calls\n"
    script += "run = os.environ['SANDRUN_RUNS'].rpartition('/')[2]\n"
    script += "print(job_object.contains(run, calls.GetCurrentProcess()))"
    done = place.run("--", sys.executable, "-c", script)
    assert done.stdout.split() == ["True"], done.stderr


def test_arguments_environment_and_input_pass_through(place: Box) -> None:
    words = ["a b", "ü€ 漢", "", "'\"", "new\nline", "-x", "back\\", "%PATH%", "&"]
    script = "import os, sys; sys.stdout.reconfigure(encoding='utf-8', newline='')\n"
    script += "print(*sys.argv[1:], os.environ['VALUE'], sys.stdin.read(), sep='\\0', end='\\0')\n"
    script += "print(os.getcwd(), end='')"
    run = place.start("--", *PYTHON, script, *words, env={"VALUE": "ß"}, stdin=subprocess.PIPE)
    out, _ = run.communicate("in", timeout=60 * SCALE)
    assert out.split("\0") == [*words, "ß", "in", str(place.project)], place.heard(run)
    closed = "import os, subprocess, sys; os.close(0)\n"
    closed += "sys.exit(subprocess.run(sys.argv[1:], close_fds=False).returncode)"
    script = "import sys; print(sys.stdin is None or sys.stdin.read() == '')"
    done = place.run(closed, *SANDRUN, "--", *PYTHON, script, argv=PYTHON)
    assert done.stdout.split() == ["True"], done.stderr


@not_on_wine("memory limits of jobs")
def test_the_tree_dies_at_the_limit_and_is_named(place: Box) -> None:
    script = "import subprocess, sys; subprocess.run(sys.argv[1:]); print('went on')"
    done = place.run("-m", "64M", "--", *PYTHON, script, *hog(600))
    assert done.returncode == 137
    assert done.stdout == ""
    assert "memory limit of 64.0 MiB reached" in done.stderr
    assert re.search(r"MiB +pid \d+ ", done.stderr)
    record = place.records()[-1]
    assert record["reason"] == "memory"
    assert 32 * MIB < int(str(record["peak"])) <= 64 * MIB
    nothing_left(place)


@not_on_wine("memory limits of jobs")
def test_the_limit_applies_to_the_tree_and_not_to_each_process(place: Box) -> None:
    script = "import subprocess, sys\nfor p in [subprocess.Popen(sys.argv[1:]) for _ in '1234']:"
    done = place.run("-m", "96M", "--", *PYTHON, f"{script} p.wait()", *hog(40))
    assert done.returncode == 137, done.stderr


def test_a_daemon_is_ended_with_the_run_and_named(place: Box) -> None:
    script = "import os, subprocess, sys, time\nsubprocess.Popen(sys.argv[2:])\n"
    script += "while not os.path.exists(sys.argv[1]): time.sleep(0.01)"
    up = place.root / "pid-0"
    done = place.run("--grace", "1", "--", *PYTHON, script, up, *tree(place.root, 2))
    assert done.returncode == 0, done.stderr
    assert "left behind" in done.stderr
    nothing_left(place)


def test_after_the_timeout_the_tree_gets_sigterm_then_sigkill(place: Box) -> None:
    done = place.run("--timeout", "2", "--grace", "0.5", "--", *tree(place.root))
    assert done.returncode == 124
    assert "timeout: ended the run after 2.0 s" in done.stderr
    nothing_left(place)


def test_after_sigkill_of_the_supervisor_nothing_lives(place: Box) -> None:
    run = place.start("--", *tree(place.root))
    pids = tree_pids(place.root)
    run.kill()
    wait_for(lambda: not any(map(alive, pids)), 1, "the tree is dead")
    assert place.run("--", *PYTHON, "").returncode == 0
    assert [record["reason"] for record in place.records()] == ["lost", "exit"]
    nothing_left(place)


@not_on_wine("the number of processes in a job")
def test_a_fork_bomb_hits_the_pids_limit_and_is_gone(place: Box) -> None:
    # Bounded, for Wine would not stop it.
    script = "import subprocess, sys\nfor _ in range(8): subprocess.Popen(sys.argv[1:])"
    sleep = [*PYTHON, "import time; time.sleep(60)"]
    done = place.run("--pids", "4", "--grace", "0.2", "--", *PYTHON, script, *sleep)
    assert done.returncode == 1
    assert "OSError" in done.stderr
    nothing_left(place)


@not_on_wine("memory limits of jobs")
def test_a_nested_run_is_charged_to_the_outer_one(place: Box) -> None:
    done = place.run("-m", "96M", "--", *SANDRUN, "-m", "1G", "--", *hog(600))
    assert done.returncode == 137
    assert "memory limit of 96.0 MiB reached" in done.stderr


@not_on_wine("memory limits of jobs")
def test_a_nested_run_has_its_own_limit(place: Box) -> None:
    inner = [*SANDRUN, "-m", "48M", "--", *hog(600)]
    script = "import subprocess, sys; print('inner', subprocess.run(sys.argv[1:]).returncode)"
    done = place.run("-m", "1G", "--", *PYTHON, script, *inner)
    assert (done.returncode, done.stdout) == (0, "inner 137\n"), done.stderr
    assert "memory limit of 1.0 GiB reached" not in done.stderr


@not_on_wine("a share of the processors, nor counts their time")
def test_a_cpu_limit_is_enforced_and_cpu_time_is_measured(place: Box) -> None:
    assert place.run("--cpus", "0.3", "--", *PYTHON, SPIN).returncode == 0
    record = place.records()[-1]
    assert 0.2 < float(str(record["cpu"])) < 0.3 * float(str(record["wall"])) + 0.2


def test_groups_are_removed(place: Box) -> None:
    place.run("--", *PYTHON, "")
    run = place.start("--", *tree(place.root, 0))
    tree_pids(place.root, 0)
    (row,) = place.status()
    run.kill()
    run.wait()
    ids = [str(place.records()[0]["id"]), str(row["id"])]
    wait_for(lambda: not any(map(exists, ids)), 5, "the jobs are gone")


def test_require_kernel(place: Box) -> None:
    done = place.run("--require", "kernel", "--", *PYTHON, "print('ran')")
    if IS_WINE:
        assert (done.returncode, done.stdout) == (125, "")
        assert "the kernel does not enforce its limits" in done.stderr
    else:
        assert (done.returncode, done.stdout) == (0, "ran\n")


LISTENER = """
import signal, sys, time
log = open(sys.argv[1], "a", buffering=1)
signal.signal(signal.SIGINT, lambda *_: log.write("int\\n"))
log.write("up\\n")
while True:
    time.sleep(0.02)
"""


def test_ctrl_c_reaches_the_command_once(place: Box) -> None:
    """A second Ctrl-C, which the command ignores as well, ends the run."""
    said = place.root / "said"
    console = Console(place, "--timeout", "60", "--", *PYTHON, LISTENER, said)
    wait_for(lambda: said.exists() and said.read_text() == "up\n", 30, "the command is up")
    console.press()
    wait_for(lambda: "int" in said.read_text(), 10, "it gets the interrupt")
    # A second one, sent by us, would come within this.
    assert console.runs(0.2)
    assert said.read_text() == "up\nint\n"
    console.press()
    assert console.code() == 130
    assert place.records()[-1]["reason"] == "signal"
    nothing_left(place)


def test_without_a_console_nothing_is_missing(place: Box) -> None:
    run = place.start("--", *PYTHON, "print('ran')", flags=DETACHED)
    done = place.finish(run)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
