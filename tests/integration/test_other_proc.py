"""A /proc that shows another pid namespace than ours: no process is counted, named or hit by it.

Every namespace of these tests is made inside one of their own, so that what goes wrong hits nobody
else: the strangers in it have the numbers that the run's processes have further in.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.harness import Box, launcher, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="not on macOS: no /proc")
USER = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
APART = ["unshare", *USER, "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c"]
INSIDE = {
    "outer": 'unshare --pid --fork --kill-child "$@"',
    # What `nsenter --mount` alone does: the numbers are further out than what /proc shows.
    "inner": "unshare --pid --fork --mount-proc sh -c 'echo >up; exec sleep 1000' & "
    'while [ ! -s up ]; do sleep 0.01; done; nsenter --target "$(pgrep -P $!)" --mount '
    '--wd="$PWD" "$@"',
}
STRANGERS = "for n in 1 2 3 4 5 6 7 8 9; do sh -c 'sleep 1000 & wait' & all=\"$all $!\"; done; "
COUNTED = '; code=$?; for pid in $all; do kill -0 "$pid" || echo hit; done; exit $code'

RUNNING_LEFTOVER = "flock held sleep 1000 >/dev/null 2>&1 & while flock -n held true; do :; done"


@pytest.fixture(params=INSIDE)
def inside(request: pytest.FixtureRequest) -> "list[str]":
    """The beginning of a command that is started where /proc shows others."""
    if not shutil.which("unshare") or subprocess.call([*APART, INSIDE["outer"], "sh", "true"]):
        pytest.skip("needs namespaces")
    return [*APART, STRANGERS + INSIDE[request.param] + COUNTED, "sh"]


def test_nothing_starts_that_only_that_proc_could_find(
    make_box: "Callable[[str], Box]", inside: "list[str]"
) -> None:
    place = make_box("rlimit")
    done = place.run(*launcher(), "-t", "1", "--", "touch", "ran", argv=inside)
    assert (done.returncode, done.stdout) == (125, ""), done.stderr
    assert "/proc shows another pid namespace than ours" in done.stderr
    assert "hint: mount -t proc proc /proc" in done.stderr
    assert not (place.project / "ran").exists()


def test_a_kernels_container_does_without(
    make_box: "Callable[[str], Box]", inside: "list[str]"
) -> None:
    """What is left behind is found, told and ended all the same; only its name is not known."""
    place = make_box("auto")
    done = place.run(*launcher(), "--", "sh", "-c", RUNNING_LEFTOVER, argv=inside)
    if done.returncode == 125:  # no kernel's container is to be had, or none without /proc/self
        assert "rlimit: /proc shows another" in done.stderr
        return
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "left behind: [not shown by /proc] (pid " in done.stderr
    assert not subprocess.call(["flock", "-n", place.project / "held", "true"])


def test_kill_hits_nobody_and_says_why(box: Box, inside: "list[str]") -> None:
    """Who holds a lock is told by a number of another namespace."""
    words = " ".join(launcher())
    # By the time of the kill the holder's outer number is that of a process further in.
    crowd = "n=0; while [ $n -lt 60 ]; do sleep 1000 & n=$((n + 1)); done"
    run = f"{words} -- sh -c 'echo >begun; read _ <gate; echo went on' & run=$!"
    wait = "while [ ! -s begun ]; do sleep 0.01; done"
    os.mkfifo(box.project / "gate")
    ended = f"{words} kill --grace 1; echo killed: $?; echo >gate; wait $run; echo code: $?"
    script = f"{crowd}; {run}; {wait}; {ended}"
    place = box.start("sh", "-c", script, argv=inside)
    done = box.finish(place, 60)
    assert "no /proc of our pid namespace shows its holder" in done.stdout + done.stderr
    assert "went on\n" in done.stdout and "code: 0" in done.stdout, done.stderr
    assert "killed: 0" not in done.stdout
    assert "hit" not in done.stdout


def test_nobody_is_looked_at(box: Box, inside: "list[str]") -> None:
    """Neither the numbers there are, nor what is known of any: but whether one lives is known."""
    ask = (
        "import json, os, subprocess, sys; from sandrun.platform import processes; "
        "from sandrun.git import git_processes; "
        "child = subprocess.Popen(['sleep', '1000']); every = range(1, 200); "
        "seen = [p for p in every if processes.start(p) or processes.children(p)]; "
        "named = [p for p in every if (d := processes.describe(p)) and d.command[0] != '[']; "
        "lives = processes.has_exited(child.pid); child.kill(); "
        "os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT); "
        "dead = processes.has_exited(child.pid); child.wait(); "
        "print(json.dumps([seen, named, processes.ancestors(os.getpid()), "
        "git_processes.possible_owners(None), git_processes.openers('/dev/null'), "
        "lives, dead, processes.has_exited(child.pid)]))"
    )
    done = box.run(sys.executable, "-c", ask, argv=inside)
    assert json.loads(done.stdout) == [[], [], [], [], [], False, True, True], done.stderr


def test_doctor_says_so(make_box: "Callable[[str], Box]", inside: "list[str]") -> None:
    place = make_box("auto")
    done = place.run(*launcher(), "doctor", argv=inside, seconds=90)
    said = [line for line in done.stdout.splitlines() if "of our pid namespace" in line]
    assert [line.split()[:2] for line in said] == [["CAUTION", "proc"]], done.stdout
    assert "hit" not in done.stdout.splitlines()


def test_an_own_proc_further_in_is_ours(
    make_box: "Callable[[str], Box]", inside: "list[str]"
) -> None:
    """The cure that the hint names."""
    place = make_box("rlimit")
    cured = 'mount -t proc proc /proc && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", cured, "sh", *launcher()]
    done = place.run(*words, "--", "sh", "-c", RUNNING_LEFTOVER, argv=inside)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "left behind: flock held sleep 1000" in done.stderr
    wait_for(lambda: not subprocess.call(["flock", "-n", place.project / "held", "true"]), 5)
