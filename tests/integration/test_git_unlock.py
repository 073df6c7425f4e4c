"""Stale locks: what is left alone, what is moved aside, what comes back."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun import kernel
from sandrun.gitguard import processes, repository, stale
from sandrun.model import SandrunError
from tests.gitbox import GIT, GitBox, whole_host


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


@whole_host
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


@whole_host
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


@whole_host
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


@whole_host
def test_an_open_file_is_an_owner(box: GitBox) -> None:
    """JGit and libgit2 are no git processes."""
    lock = box.repo / ".git/index.lock"
    with open(lock, "w"):
        code, said = box.git("unlock")
        assert code == 1
        assert f"(pid {os.getpid()}, for" in said
    assert box.git("unlock")[0] == 0


@whole_host
def test_a_guarded_git_is_an_owner(box: GitBox) -> None:
    commit = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    (box.repo / ".git/config.lock").touch()
    assert box.git("unlock")[0] == 1
    box.let("one")
    assert box.end(commit)[0] == 0
    assert box.git("unlock")[0] == 0


@whole_host
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


@whole_host
@pytest.mark.parametrize("worktree", ["main", "linked", "submodule"])
def test_a_commit_inside_of_a_container_is_never_robbed(box: GitBox, worktree: str) -> None:
    """It has the repository at another path, and we are outside."""
    unshare = shutil.which("unshare")
    if os.geteuid() or not unshare:
        pytest.skip("needs root and unshare(1) to make a mount namespace")
    place = box.repo
    if worktree == "linked":
        place = box.root / "linked"
        box.bare("worktree", "add", "-q", place, "-b", "side")
    if worktree == "submodule":
        place = box.repo / "sub"
        box.bare("submodule", "--quiet", "add", box.make(box.root / "library"), "sub")
    for repo in (place, box.make(box.root / "other")):
        (repo / "a").write_text("two\n")
    inside = box.root / "inside"
    inside.mkdir()
    script = f"mount --bind {box.root} {inside} && cd {inside / place.relative_to(box.root)}"
    script += f" && exec {GIT} commit -a"
    box.start(unshare, "--mount", "sh", "-c", script, GIT_EDITOR=box.editor("one"))
    box.reached("one")
    lock = Path(box.bare("rev-parse", "--absolute-git-dir", cwd=place).strip()) / "index.lock"
    assert lock.exists()
    code, said = box.git("unlock", "--force", cwd=place)
    assert (code, lock.exists()) == (1, True), said
    other = box.root / "other/.git/index.lock"
    other.touch()
    assert box.git("unlock", cwd=box.root / "other")[0] == 0, "it is told from another repository"


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
