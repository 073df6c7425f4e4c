"""A run lock that several users share: in a checkout, also one that becomes shared later, and in
the directory that an administrator made for a named queue.
"""

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun.platform import processes
from sandrun.queue import state as state_names
from tests.harness import Box, launcher, wait_for

FIRST, SECOND, STRANGER, TEAM = 12345, 12346, 12347, 54321
HELD = "is held by a run that is not in this queue"
LOST = "runs of other users are not excluded"


def member(uid: int) -> list[str]:
    """What starts sandrun as a user in the group TEAM (the stranger: in none)."""
    groups = "--clear-groups" if uid == STRANGER else f"--groups={TEAM}"
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", groups, *launcher()]


def job(box: Box, name: str) -> list[str]:
    words = box.job(name)
    (box.root / f"gate-{name}").chmod(0o666)
    box.log.chmod(0o666)
    return words


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def lock(open_box: Box) -> Path:
    """The run lock in a checkout that is its owner's alone."""
    subprocess.run(["git", "init", "-q"], cwd=open_box.project, check=True)
    subprocess.run(["chown", "-R", f"{FIRST}:{FIRST}", open_box.project], check=True)
    open_box.project.chmod(0o755)
    path = open_box.project / ".git/sandrun.lock"
    assert open_box.run("--", "true", argv=member(FIRST)).returncode == 0
    assert mode(path) == 0o600
    return path


def share(lock: Path) -> None:
    """What an administrator does, with all that is there but files."""
    subprocess.run(["chgrp", "-R", str(TEAM), lock.parent], check=True)
    os.chown(lock, FIRST, FIRST)
    words = ["find", str(lock.parent), "-type", "d", "-exec", "chmod", "g+rwxs", "{}", "+"]
    subprocess.run(words, check=True)


def test_a_checkout_that_becomes_shared_later(open_box: Box, lock: Path) -> None:
    """Another user is told what is lost, and how it is mended; the owner's next run does that."""
    box = open_box
    share(lock)
    shut = box.run("--", "echo", "ran", argv=member(SECOND))
    assert (shut.returncode, shut.stdout) == (0, "ran\n")
    told, cure = shut.stderr.splitlines()
    assert f"{lock}: Permission denied: {LOST}" in told
    assert f"its owner (uid {FIRST})" in cure and f"chmod 660 {lock}" in cure
    stranger = box.run("--", "true", argv=member(STRANGER))
    assert (stranger.returncode, stranger.stderr) == (0, "")  # who may not write shares nothing
    first = box.start("--", *job(box, "one"), argv=member(FIRST))
    box.begun("one")
    assert (mode(lock), lock.stat().st_uid, lock.stat().st_gid) == (0o660, FIRST, TEAM)
    second = box.start("--", *job(box, "two"), argv=member(SECOND))
    wait_for(lambda: HELD in box.heard(second), 20)
    assert LOST not in box.heard(second)
    box.let("one")
    box.let("two")
    assert [box.finish(run).returncode for run in (first, second)] == [0, 0]


@pytest.mark.parametrize("uid", [FIRST, SECOND, 0])
def test_what_each_makes_in_a_shared_checkout_all_can_open(
    open_box: Box, lock: Path, uid: int
) -> None:
    share(lock)
    lock.unlink()
    words = member(uid) if uid else launcher()
    assert open_box.run("--", "true", argv=words).returncode == 0
    assert (mode(lock), lock.stat().st_gid) == (0o660, TEAM)
    for each in (FIRST, SECOND):
        done = open_box.run("--", "true", argv=member(each))
        assert (done.returncode, done.stderr) == (0, "")


def test_an_owner_outside_of_the_group_still_opens_it_to_those_who_may_write(
    open_box: Box, lock: Path
) -> None:
    os.chown(lock.parent, STRANGER, TEAM)
    lock.parent.chmod(0o777)
    lock.unlink()
    assert open_box.run("--", "true", argv=member(STRANGER)).returncode == 0
    assert mode(lock) == 0o666


def test_a_lock_that_all_could_hold_is_shut_again(open_box: Box, lock: Path) -> None:
    """Else whoever reads the repository could hold it, and with it all runs."""
    lock.chmod(0o666)
    open_box.run("--", "true", argv=member(FIRST))
    assert mode(lock) == 0o600


def test_what_root_made_becomes_the_users(open_box: Box, lock: Path) -> None:
    os.chown(lock, 0, 0)
    told = open_box.run("--", "true", argv=member(FIRST)).stderr
    assert LOST in told and "its owner (uid 0)" in told
    assert f"or: chown --reference={lock.parent} {lock}" in told
    assert open_box.run("--", "true").returncode == 0
    assert (lock.stat().st_uid, lock.stat().st_gid, mode(lock)) == (FIRST, FIRST, 0o600)


def test_a_second_name_of_another_file_gets_no_rights(open_box: Box, lock: Path) -> None:
    share(lock)
    precious = lock.parent / "precious"
    precious.touch(0o600)
    os.chown(precious, FIRST, FIRST)
    lock.unlink()
    os.link(precious, lock)
    assert open_box.run("--", "true", argv=member(FIRST)).returncode == 0
    assert mode(precious) == 0o600


@pytest.mark.parametrize("kind", ["link", "dangling", "directory", "fifo", "socket"])
def test_an_odd_thing_in_its_place_is_told_and_our_own_runs_stay_apart(
    open_box: Box, lock: Path, kind: str
) -> None:
    """Never followed and never waited for."""
    box = open_box
    lock.unlink()
    precious = box.root / "precious"
    match kind:
        case "link":
            precious.write_text("precious")
            precious.chmod(0o666)
            lock.symlink_to(precious)
        case "dangling":
            lock.symlink_to(precious)
        case "directory":
            lock.mkdir()
        case "fifo":
            os.mkfifo(lock)
        case "socket":
            os.mknod(lock, stat.S_IFSOCK | 0o600)
    first = box.start("--", *job(box, "one"), argv=member(FIRST))
    box.begun("one")
    told, cure = box.heard(first).splitlines()
    assert f"{lock}: " in told and LOST in told
    assert f"mv {lock} {lock}.odd" in cure
    for state in box.directories():
        shutil.rmtree(state)
    second = box.start("--", *job(box, "two"), argv=member(FIRST))
    wait_for(lambda: HELD in box.heard(second), 20)
    box.let("one")
    box.let("two")
    assert [box.finish(run).returncode for run in (first, second)] == [0, 0]
    if kind == "link":
        assert (precious.read_text(), mode(precious)) == ("precious", 0o666)
    assert precious.exists() == (kind == "link")


def locked(pids: "list[int]") -> "set[str]":
    """The files on which these processes hold an flock, by their own accounts (proc(5))."""
    found = set()
    for pid in pids:
        for account in Path(f"/proc/{pid}/fdinfo").iterdir():
            if "FLOCK" in account.read_text():
                found.add(os.readlink(f"/proc/{pid}/fd/{account.name}"))
    return found


@pytest.mark.parametrize("git", [False, True])
@pytest.mark.parametrize("backend", ["auto", "rlimit"])
def test_no_other_user_can_hold_a_lock_that_a_run_needs(
    open_box: Box, backend: str, git: bool
) -> None:
    """Whatever a run and a waiter have locked: another user cannot open it, hence not lock it."""
    box = open_box
    if git:
        subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    os.umask(0)
    try:
        run = box.start("--backend", backend, "--", *job(box, "one"))
        box.begun("one")
        waiter = box.start("--backend", backend, "--", *job(box, "two"))
        wait_for(lambda: "waiting, position 2" in box.heard(waiter), 20)
    finally:
        os.umask(0o022)
    pids = [pid for each in (run, waiter) for pid in (each.pid, *processes.descendants(each.pid))]
    found = locked(pids)
    assert len(found) >= 5, found  # two tickets, two homes of the run lock, a share of the pool
    for path in found:
        tried = box.run("-n", "-s", path, "true", argv=["flock"], user=STRANGER)
        assert "Permission denied" in tried.stderr, path
    box.let("one")
    box.let("two")
    assert [box.finish(each).returncode for each in (run, waiter)] == [0, 0]


@pytest.fixture
def shared_queue(open_box: Box) -> Iterator[str]:
    """A named queue that an administrator made for the group TEAM."""
    name = f"test-{os.getpid()}"
    path = Path(state_names.SHARED_QUEUES) / name
    above = [d for d in (path.parent, path.parent.parent) if not d.exists()]
    path.mkdir(parents=True)
    os.chown(path, 0, TEAM)
    path.chmod(0o2770)
    open_box.project.chmod(0o755)
    yield name
    shutil.rmtree(path)
    for directory in above:
        directory.rmdir()


def test_a_named_queue_that_the_administrator_made_spans_users(
    open_box: Box, shared_queue: str
) -> None:
    """Its group's members exclude each other, from whatever directory; others are told."""
    box = open_box
    words = ["--queue", shared_queue, "--"]
    first = box.start(*words, *job(box, "one"), argv=member(FIRST))
    box.begun("one")
    second = box.start(*words, *job(box, "two"), argv=member(SECOND), cwd=box.home)
    wait_for(lambda: HELD in box.heard(second), 20)
    stranger = box.run(*words, "echo", "ran", argv=member(STRANGER))
    assert (stranger.returncode, stranger.stdout) == (0, "ran\n")
    assert "Permission denied" in stranger.stderr and LOST in stranger.stderr
    other = box.run("--queue", f"{shared_queue}-other", "--", "true", argv=member(SECOND))
    assert (other.returncode, other.stderr) == (0, "")
    box.let("one")
    box.let("two")
    assert [box.finish(run).returncode for run in (first, second)] == [0, 0]
    # A root of the machine is a user like them.
    third = box.start(*words, *job(box, "three"))
    box.begun("three")
    fourth = box.start(*words, "true", argv=member(FIRST))
    wait_for(lambda: HELD in box.heard(fourth), 20)
    box.let("three")
    assert [box.finish(run).returncode for run in (third, fourth)] == [0, 0]


def test_doctor_tells_whose_a_named_queue_is(open_box: Box, shared_queue: str) -> None:
    def line(queue: str, uid: int) -> str:
        done = open_box.run("--queue", queue, "doctor", argv=member(uid), seconds=90)
        found = [x for x in done.stdout.splitlines() if "  queue  " in x]
        return found[0] if found else done.stdout + done.stderr

    path = f"{state_names.SHARED_QUEUES}/{shared_queue}"
    shared = line(shared_queue, FIRST)
    assert shared.startswith("PASS") and f"shared, by {path}/sandrun.lock" in shared
    mine = line("mine", FIRST)
    assert mine.startswith("CAUTION") and "excludes your own runs only" in mine
    stranger = line(shared_queue, STRANGER)
    assert stranger.startswith("CAUTION") and "Permission denied" in stranger


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../etc", "/etc"])
def test_no_name_leads_out_of_the_shared_queues(box: Box, name: str) -> None:
    assert state_names.shared_queue(name) == ""
    assert box.run("--queue", name, "--", "true").returncode == 0
