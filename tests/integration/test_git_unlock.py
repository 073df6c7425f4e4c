"""Stale locks: what is left alone, what is moved aside, what comes back."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun import kernel
from sandrun.gitguard import processes, repository, stale
from sandrun.model import SandrunError
from tests.gitbox import GIT, GitBox, wait_for


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    made = GitBox(tmp_path)
    yield made
    made.close()


def _repo(box: GitBox) -> repository.Repository:
    found = repository.find(str(box.repo), {})
    assert found
    return found


THERE = {"GIT_DIR": "repo/.git", "GIT_WORK_TREE": "repo"}
BY_OPTION = ["--git-dir=../.git", "--work-tree=..", "commit", "-a"]
LIVE: "dict[str, tuple[str, list[str], dict[str, str]]]" = {
    "in the repository": ("repo", ["commit", "-a"], {}),
    "in a folder": ("repo/deep", ["commit", "-a"], {}),
    "from elsewhere": (".", ["-C", "repo", "commit", "-a"], {}),
    "git dir by option": (".", ["--git-dir=repo/.git", "--work-tree=repo", "commit", "-a"], {}),
    "git dir by variable": (".", ["commit", "-a"], THERE),
    "an alias": ("repo", ["-c", "alias.ci=commit -a", "ci"], {}),
    "without PWD": ("repo/deep", BY_OPTION, {"PWD": ""}),
    "one file": ("repo", ["commit", "a"], {}),
    "a shell alias": ("repo", ["-c", "alias.ci=!git commit -a", "ci"], {}),
}


@pytest.mark.parametrize("how", LIVE)
def test_a_commit_in_its_editor_is_never_robbed(box: GitBox, how: str) -> None:
    """Nobody has index.lock open then: neither that nor its age proves anything."""
    where, args, env = LIVE[how]
    (box.repo / "deep").mkdir()
    (box.repo / "a").write_text("two\n")
    editor = box.editor("one")
    cwd = box.root / where
    commit = box.start(GIT, *args, cwd=cwd, GIT_EDITOR=editor, **{"PWD": str(cwd), **env})
    box.reached("one")
    lock = box.repo / ".git/index.lock"
    assert lock.exists()
    assert processes.openers(str(lock)) == [], "else this shows nothing"
    for options in ([], ["--force"], ["--dry-run"]):
        code, said = box.git("unlock", *options)
        assert code == 1
        assert " may belong to " in said
        assert "commit" in said.split(" may belong to ")[1]
        assert "left alone" in said
    assert lock.exists()
    box.let("one")
    code, said = box.end(commit)
    assert code == 0, said
    assert box.bare("show", "HEAD:a") == "two\n"
    box.bare("fsck", "--strict")


def test_a_stale_lock_is_moved_aside_and_can_come_back(box: GitBox) -> None:
    lock = box.repo / ".git/index.lock"
    lock.write_text("precious")
    code, said = box.git("unlock", "--dry-run")
    assert (code, lock.exists()) == (1, True)
    code, said = box.git("unlock")
    assert code == 0, said
    assert not lock.exists()
    assert f"sandrun: {lock} (8 bytes, " in said
    assert box.git("add", "a") == (0, "")
    stamp = said.split("--restore ")[1].strip()
    lock.write_text("a new one")
    code, said = box.git("unlock", "--restore", stamp)
    assert code == 1
    assert "there is a new one" in said
    assert lock.read_text() == "a new one"
    lock.unlink()
    assert box.git("unlock", "--restore")[0] == 0
    assert lock.read_text() == "precious"
    assert box.git("unlock", "--restore", stamp)[0] == 1


def test_every_kind_of_lock(box: GitBox) -> None:
    names = "HEAD.lock config.lock index.lock objects/info/x.lock packed-refs.lock"
    git_dir = box.repo / ".git"
    locks = [git_dir / name for name in [*names.split(), "refs/heads/main.lock", "shallow.lock"]]
    for lock in locks:
        lock.touch()
    kept = git_dir / "sandrun.lock"  # the run lock of sandrun itself
    kept.touch()
    assert box.git("unlock")[0] == 0
    assert [lock for lock in locks if lock.exists()] == []
    assert kept.exists()
    assert box.git("commit", "-q", "--allow-empty", "-m", "x") == (0, "")
    box.bare("fsck", "--strict")


def test_a_linked_worktree(box: GitBox) -> None:
    other = box.root / "other"
    box.bare("worktree", "add", "-q", other, "-b", "side")
    lock = box.repo / ".git/worktrees/other/index.lock"
    lock.touch()
    assert box.git("unlock")[0] == 0
    assert lock.exists(), "that of another worktree is not looked at"
    assert box.git("unlock", cwd=other)[0] == 0
    assert not lock.exists()
    assert box.git("unlock", "--restore", cwd=other)[0] == 0
    assert lock.exists()


def test_an_open_file_is_an_owner(box: GitBox) -> None:
    """JGit and libgit2 are no git processes."""
    lock = box.repo / ".git/index.lock"
    with open(lock, "w"):
        code, said = box.git("unlock")
        assert code == 1
        assert f"(pid {os.getpid()}, for" in said
    assert box.git("unlock")[0] == 0


def test_a_guarded_git_is_an_owner(box: GitBox) -> None:
    commit = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    (box.repo / ".git/config.lock").touch()
    assert box.git("unlock")[0] == 1
    box.let("one")
    assert box.end(commit)[0] == 0
    assert box.git("unlock")[0] == 0


def test_gits_elsewhere_and_readers_own_nothing(box: GitBox) -> None:
    other = box.make(box.root / "other")
    (other / "a").write_text("two\n")
    box.start(GIT, "commit", "-a", cwd=other, GIT_EDITOR=box.editor("one"))
    box.reached("one")
    reader = subprocess.Popen(
        [GIT, "cat-file", "--batch"],
        cwd=box.repo,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=box.env,
    )
    try:
        (box.repo / ".git/index.lock").touch()
        assert box.git("unlock")[0] == 0
    finally:
        reader.communicate()
    assert (other / ".git/index.lock").exists()


def test_inside_of_a_commit(box: GitBox) -> None:
    (box.repo / "a").write_text("two\n")
    box.hook("pre-commit", f"! {box.sandrun_text()} git unlock")
    code, said = box.git("commit", "-q", "-a", "-m", "x")
    assert code == 0, said
    assert "left alone" in said


@pytest.mark.parametrize("line", ["unlock", "unlock x", "unlock --force=1", "unlock --restore a b"])
def test_wrong_uses(box: GitBox, line: str) -> None:
    empty = box.root / "empty"
    empty.mkdir()
    code, said = box.git(*line.split(), cwd=empty)
    assert code == 125
    assert said.startswith("sandrun: git unlock: ")


def test_nothing_to_do(box: GitBox) -> None:
    assert box.git("unlock") == (0, f"sandrun: {box.repo}: no lock files\n")
    assert box.git("unlock", "--restore")[0] == 1


# The race between looking and moving


@pytest.mark.parametrize("how", ["replaced", "owned"])
def test_a_lock_that_comes_alive_goes_straight_back(
    box: GitBox, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    lock = box.repo / ".git/index.lock"
    lock.write_text("old")
    rename = os.rename

    def late(source: str, target: str) -> None:
        if how == "replaced":
            other = lock.with_suffix(".new")
            other.write_text("new")
            rename(other, lock)
        else:
            monkeypatch.setattr(processes, "at_work", lambda repo: [1])
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(SandrunError, match="came alive"):
        stale.move_aside(_repo(box), str(lock))
    assert lock.read_text() == ("new" if how == "replaced" else "old")
    assert stale.asides(_repo(box)) == []


# What cannot be seen


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ("nfs4 server:/x rw", "another machine may share this file system (nfs4)"),
        ("9p share rw", "another machine may share this file system (9p)"),
        ("ext4 /dev/x rw", ""),
    ],
)
def test_other_machines_cannot_be_seen(
    box: GitBox, monkeypatch: pytest.MonkeyPatch, mount: str, reason: str
) -> None:
    lock = box.repo / ".git/index.lock"
    lock.touch()
    read = kernel.read
    row = f"1 1 0:1 / / rw - ext4 /dev/y rw\n2 1 0:2 / {box.root} rw shared:1 - {mount}\n"
    monkeypatch.setattr(
        kernel, "read", lambda p: row.encode() if p.endswith("mountinfo") else read(p)
    )
    blind = [why for why in stale.blind_spots(str(lock)) if "container" not in why]
    assert blind == ([reason] if reason else [])


@pytest.mark.parametrize("worktree", ["main", "linked"])
def test_a_commit_inside_of_a_container_is_never_robbed(box: GitBox, worktree: str) -> None:
    """It has the repository at another path, and we are outside."""
    unshare = shutil.which("unshare")
    if os.geteuid() or not unshare:
        pytest.skip("needs root and unshare(1) to make a mount namespace")
    place = box.repo
    if worktree == "linked":
        place = box.root / "linked"
        box.bare("worktree", "add", "-q", place, "-b", "side")
    for repo in (place, box.make(box.root / "other")):
        (repo / "a").write_text("two\n")
    inside = box.root / "inside"
    inside.mkdir()
    script = f"mount --bind {place} {inside} && cd {inside} && {GIT} commit -a"
    box.start(unshare, "--mount", "sh", "-c", script, GIT_EDITOR=box.editor("one"))
    box.reached("one")
    lock = Path(box.bare("rev-parse", "--absolute-git-dir", cwd=place).strip()) / "index.lock"
    assert lock.exists()
    code, said = box.git("unlock", "--force", cwd=place)
    assert (code, lock.exists()) == (1, True), said
    if worktree == "main":  # a linked worktree cannot be told from others: doubt leaves all alone
        other = box.root / "other/.git/index.lock"
        other.touch()
        assert box.git("unlock", cwd=box.root / "other")[0] == 0


def test_in_a_container_only_by_force(box: GitBox) -> None:
    unshare = shutil.which("unshare")
    if os.geteuid() or not unshare:
        pytest.skip("needs root and unshare(1) to make a pid namespace")
    lock = box.repo / ".git/index.lock"
    lock.touch()
    argv = [unshare, "--pid", "--fork", "--mount-proc", sys.executable, "-m", "sandrun", "git"]
    code, said = box.end(box.start(*argv, "unlock"))
    assert code == 1, said
    assert "processes outside this container cannot be seen" in said
    assert lock.exists()
    code, said = box.end(box.start(*argv, "unlock", "--force"))
    assert code == 0, said
    assert not lock.exists()


# Healing without being asked


def _booted_later(box: GitBox, *args: str) -> tuple[int, str]:
    """Run `sandrun ARGS` on a machine that booted after everything in the box was made: in a
    time namespace, whose boot the kernel itself puts there."""
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


def test_older_than_this_boot(box: GitBox) -> None:
    """Healed, unless a git is there after all: then the clock or the boot time is wrong, as
    after the restore of a virtual machine."""
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
        if owner == "younger":  # the pid was given to somebody else since
            os.utime(beside, (time.time() - 3600, time.time() - 3600))
        code, said = box.git("add", "a", SANDRUN_GIT_WAIT="0.5")
    finally:
        sleeper.kill()
        sleeper.wait()
    assert (code == 0, not lock.exists()) == (healed, healed), said


def test_a_lock_left_by_an_ended_run(box: GitBox) -> None:
    """A run dies in the middle of `git commit -a`; nobody needs to clean up after it."""
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


def test_a_lock_left_by_a_lost_run(box: GitBox) -> None:
    """The supervisor is killed, and with it everything of the run, in the middle of a commit."""
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


def test_a_lock_of_somebody_else_s_during_a_run(box: GitBox) -> None:
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


def test_a_killed_git_s_lock_is_no_proof(box: GitBox) -> None:
    """Outside of a run nobody can tell a dead git's lock from a hidden one's: the user decides."""
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
