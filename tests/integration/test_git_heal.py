"""Stale locks that are moved aside automatically: only with proof and without contrary evidence."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun.git import stale
from tests.gitbox import GIT, GitBox, wait_for, whole_host


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    made = GitBox(tmp_path)
    yield made
    made.close()


def _booted_later(box: GitBox, *args: str) -> tuple[int, str]:
    """Run `sandrun ARGS` on a machine that booted after everything in the box was made: in a
    time namespace with a later boot time."""
    unshare = shutil.which("unshare")
    if os.geteuid() or not unshare:
        pytest.skip("needs root and unshare(1) to make a time namespace")
    with open("/proc/uptime") as file:
        uptime = int(float(file.read().split()[0]))
    argv = [unshare, "--time", "--fork", "--boottime", str(1 - uptime)]
    probe = subprocess.run(
        [*argv, "cat", "/proc/stat"], capture_output=True, text=True, check=False
    )
    if (
        "btime" not in probe.stdout
        or int(probe.stdout.split("btime ")[1].split()[0]) < time.time() - 60
    ):
        pytest.skip("needs time namespaces (CONFIG_TIME_NS)")
    return box.end(box.start(*argv, sys.executable, "-m", "sandrun", *args))


def _old(lock: Path) -> None:
    """Wait until the lock is older than the clock's margin; its ctime cannot be set."""
    seconds = stale._CLOCK_MARGIN + 4
    wait_for(lambda: time.time() - lock.stat().st_ctime > seconds, "the lock is old", 30)


@whole_host
def test_older_than_this_boot(box: GitBox) -> None:
    """It is moved, unless a git is active: then the clock or the boot time is wrong, as after the
    restore of a virtual machine."""
    lock = box.repo / ".git/index.lock"
    (box.repo / "a").write_text("two\n")
    commit = box.start(GIT, "commit", "-a", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    other = box.make(box.root / "other")
    stale_lock = other / ".git/index.lock"
    stale_lock.write_text("precious")
    _old(lock)
    _old(stale_lock)
    code, said = _booted_later(box, "git", "-C", str(other), "add", "a")
    assert code == 0, said
    assert said.startswith(f"sandrun: stale lock (older than this boot): moved {stale_lock} to ")
    assert Path(said.split(" to ")[-1].strip()).read_text() == "precious"
    box.env["SANDRUN_GIT_WAIT"] = "0.5"
    code, said = _booted_later(box, "git", "add", "a")
    assert (code, lock.exists()) == (128, True), said
    box.let("one")
    assert box.end(commit)[0] == 0


def test_not_older_than_this_boot(box: GitBox) -> None:
    lock = box.repo / ".git/index.lock"
    lock.touch()
    assert box.git("add", "a", SANDRUN_GIT_WAIT="0.5")[0] == 128
    assert lock.exists()


def _dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@whole_host
@pytest.mark.parametrize(
    ("owner", "healed"), [("dead", True), ("alive", False), ("garbage", False), ("younger", True)]
)
def test_core_lockfile_pid(box: GitBox, owner: str, healed: bool) -> None:
    """The file that git 2.54 writes beside its lock; made by hand, as the git here may be older."""
    lock = box.repo / ".git/index.lock"
    lock.touch()
    beside = box.repo / ".git/index~pid.lock"
    sleeper = subprocess.Popen(["sleep", "600"])
    try:
        pid = {"dead": _dead_pid(), "garbage": 0}.get(owner, sleeper.pid)
        beside.write_text(f"pid {pid}\n" if pid else "?\n")
        if owner == "younger":  # the pid was reused since
            os.utime(beside, (time.time() - 3600, time.time() - 3600))
        code, said = box.git("add", "a", SANDRUN_GIT_WAIT="0.5")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert (code == 0, not lock.exists()) == (healed, healed), said


@whole_host
def test_a_lock_left_by_a_run_that_was_ended(box: GitBox) -> None:
    """A run is ended during `git commit -a`; its lock needs no manual clean-up."""
    (box.repo / "a").write_text("two\n")
    lock = box.repo / ".git/index.lock"
    box.env["SANDRUN_BACKEND"] = "auto"  # whatever contains a run here
    box.env["GIT_EDITOR"] = "kill -9 $PPID #"
    crash = f"{GIT} commit -a; test -e {lock} && kill -9 $$"
    code, said = box.end(box.sandrun("--", "sh", "-c", crash))
    assert code == 137, said
    assert "stale lock (left by run" in said
    assert not lock.exists()
    assert box.git("commit", "-qam", "x") == (0, "")


@whole_host
def test_every_kind_of_lock_left_by_a_run_that_was_ended(box: GitBox) -> None:
    """For example, with objects/maintenance.lock git skips its maintenance and exits with 0."""
    other = box.root / "other"
    box.bare("worktree", "add", "-q", other, "-b", "side")
    box.bare("submodule", "--quiet", "add", box.make(box.root / "library"), "sub")
    names = """
    index.lock objects/maintenance.lock info/sparse-checkout.lock logs/refs/heads/main.lock
    objects/pack/multi-pack-index.lock modules/sub/index.lock worktrees/other/index.lock
    ../../gitconfig.lock
    """
    locks = [Path(os.path.normpath(box.repo / ".git" / name)) for name in names.split()]
    mine = box.repo / "yarn.lock"
    for lock in locks:
        lock.parent.mkdir(exist_ok=True)
    box.env["SANDRUN_BACKEND"] = "auto"  # whatever contains a run here
    script = f"touch {' '.join(map(str, [mine, *locks]))}; kill -9 $$"
    code, said = box.end(box.sandrun("--", "sh", "-c", script))
    assert code == 137, said
    assert [lock for lock in locks if lock.exists()] == []
    assert mine.exists()


@whole_host
def test_a_lock_left_by_a_lost_run(box: GitBox) -> None:
    """The supervisor is killed during a commit, and the run with it."""
    (box.repo / "a").write_text("two\n")
    lock = box.repo / ".git/index.lock"
    box.env["SANDRUN_BACKEND"] = "auto"
    run = box.sandrun("--", GIT, "commit", "-a", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    assert lock.exists()
    run.kill()
    box.sandrun("--", "true")
    wait_for(lambda: not lock.exists(), "the lock is moved aside")
    assert box.git("commit", "-qam", "x") == (0, "")


def test_a_lock_of_another_process_during_a_run(box: GitBox) -> None:
    (box.repo / "a").write_text("two\n")
    lock = box.repo / ".git/index.lock"
    gate = box.gate("run")
    box.env["SANDRUN_BACKEND"] = "auto"
    run = box.sandrun("--timeout", "2", "--grace", "0", "--", "sh", "-c", gate)
    box.reached("run")
    commit = box.start(GIT, "commit", "-a", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    code, said = box.end(run)
    assert code == 124
    assert lock.exists(), said
    box.let("one")
    assert box.end(commit)[0] == 0


@whole_host
def test_a_killed_git_s_lock_is_no_proof(box: GitBox) -> None:
    """Outside a run the owner could be a git that we cannot see, so the user decides."""
    (box.repo / "a").write_text("two\n")
    lock = box.repo / ".git/index.lock"
    commit = box.guarded("commit", "-a", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    os.killpg(commit.pid, signal.SIGKILL)
    commit.wait()
    assert box.git("add", "a", SANDRUN_GIT_WAIT="0.5")[0] == 128
    assert lock.exists()
    assert box.git("unlock")[0] == 0
    assert box.git("add", "a") == (0, "")
