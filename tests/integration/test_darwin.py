"""What is special on macOS. Elsewhere than on a Mac, tests/harness/portable simulates macOS, which
tests the code and not the system.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.model import DARWIN
from sandrun.platform import processes
from tests.harness import SCALE, Box, alive, launcher, pretending, wait_for

MIB = 1 << 20
# A daemon whose parent exits after argv[2] seconds, so that pid 1 adopts it; argv[1] gets its pid.
DAEMON = """
import os, sys, time
parent = os.getpid()
if os.fork(): time.sleep(float(sys.argv[2])); os._exit(0)
os.setsid()
while os.getppid() == parent: time.sleep(0.005)
with open(sys.argv[1] + ".new", "w") as file: file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
time.sleep(1000)
"""


@pytest.fixture
def mac(make_box: "Callable[[str], Box]") -> Box:
    """A box whose sandrun runs on macOS, real or simulated."""
    box = make_box("rlimit")
    if not DARWIN:
        box.env = pretending(box.env, "darwin")
    return box


def daemon(file: Path, stay: float) -> "list[str]":
    return [sys.executable, "-c", DAEMON, str(file), str(stay)]


def gone(pid: int, seconds: float = 3) -> None:
    wait_for(lambda: not alive(pid), seconds, f"{pid} is dead")


def pid_in(file: Path) -> int:
    wait_for(file.exists, 20, f"{file} is written")
    return int(file.read_text())


def test_a_fast_double_fork_is_known_by_its_environment(mac: Box) -> None:
    file = mac.root / "pid"
    done = mac.run("--grace", "0.3", "--", *daemon(file, 0))
    assert done.returncode == 0
    assert "left behind" in done.stderr
    assert f"(pid {pid_in(file)})" in done.stderr
    gone(pid_in(file))


def test_one_that_was_seen_is_remembered_whatever_it_becomes(mac: Box) -> None:
    """A process in a session of its own, without environment, adopted by pid 1, is known by its pid
    and start; it is named and killed."""
    file = mac.root / "pid"
    script = f'env -i "$@" & while [ ! -e {file} ]; do sleep 0.05; done'
    done = mac.run("--grace", "0.3", "--", "sh", "-c", script, "sh", *daemon(file, 2 * SCALE))
    assert done.returncode == 0
    assert f"(pid {pid_in(file)})" in done.stderr
    gone(pid_in(file))


def test_the_keeper_knows_whom_the_supervisor_remembered(mac: Box) -> None:
    file = mac.root / "pid"
    script = 'env -i "$@" & sleep 1000'
    run = mac.start("--", "sh", "-c", script, "sh", *daemon(file, 2 * SCALE))
    pid = pid_in(file)
    run.kill()
    gone(pid)
    assert mac.run("--", "true").returncode == 0


def test_the_next_owner_of_a_pid_is_never_ended(mac: Box) -> None:
    stranger = subprocess.Popen(["sleep", "1000"])
    script = f"""
import sys
from sandrun.cli import main  # for the profile: started as sandrun is
from sandrun.backends import rlimit_macos
from sandrun.model import Limits
container = rlimit_macos.DarwinContainer("0badc0de", Limits(1 << 30))
container.known = {{{stranger.pid}: 12345}}
container.orphans = set()
print(container.live_pids())
container.kill()
"""
    done = mac.run("-c", script, argv=[sys.executable])
    assert done.stdout == "[]\n", done.stderr
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_ctrl_c_elsewhere_and_in_the_background_is_passed_on(mac: Box) -> None:
    """Without a terminal an interrupt is meant for sandrun, and so for the command."""
    said = mac.root / "said"
    script = f'trap "echo int >>{said}; exit 3" INT; echo up >{said}; while :; do sleep 0.05; done'
    run = mac.start("--", "sh", "-c", script, new_session=True)
    wait_for(lambda: said.exists() and said.read_text(), 20, "the command is up")
    os.kill(run.pid, signal.SIGINT)
    assert mac.finish(run).returncode == 3
    assert said.read_text() == "up\nint\n"


def test_a_waiter_is_woken_and_a_killed_one_leaves_nothing(mac: Box) -> None:
    first = mac.hold("one")
    second = mac.queue_up("two")
    third = mac.queue_up("three")
    helpers = wait_for(lambda: processes.children(second.pid), 10, "a child that waits")
    second.kill()
    for pid in helpers:
        gone(pid, 8)
    mac.let("one")
    mac.let("three")
    assert [mac.finish(run).returncode for run in (first, third)] == [0, 0]


def test_a_cancelled_waiter_leaves(mac: Box) -> None:
    first = mac.hold("one")
    second = mac.queue_up("two")
    mac.run("queue", "cancel", mac.ids()["two"])
    assert mac.finish(second, 8).returncode == 75  # by the ring: it looks around each 15 s
    mac.let("one")
    assert mac.finish(first).returncode == 0


def test_the_death_of_who_started_sandrun_ends_the_run(mac: Box) -> None:
    file = mac.root / "pid"
    words = ["sh", "-c", f"echo $$ >{file}; exec sleep 1000"]
    parent = mac.start("-c", '"$@"; :', "sh", *launcher(), "--", *words, argv=["sh"])
    pid = wait_for(lambda: file.exists() and int(file.read_text() or 0), 20, "it is up")
    parent.kill()
    gone(pid, 8)


def test_the_footprint_is_the_limit(mac: Box) -> None:
    hog = "import time; b = bytearray(b'x') * (100 << 20); time.sleep(20)"
    done = mac.run("-v", "-m", "64M", "--grace", "0.2", "--", sys.executable, "-c", hog)
    assert done.returncode == 137
    assert "enforced by polling, rlimit" in done.stderr
    record = mac.records()[-1]
    assert isinstance(record["peak"], int)
    assert record["peak"] > 64 * MIB
