"""Stale locks: which are left alone, which are moved aside, and how they are restored."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun.git import git_processes, repository, stale
from sandrun.model import SandrunError
from sandrun.platform import processes
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
def test_the_lock_of_a_commit_in_its_editor_is_never_moved(box: GitBox, how: str) -> None:
    """No process has index.lock open then, so neither that nor its age is proof."""
    where, args, env = LIVE[how]
    (box.repo / "deep").mkdir()
    (box.repo / "a").write_text("two\n")
    editor = box.editor("one")
    cwd = box.root / where
    commit = box.start(GIT, *args, cwd=cwd, GIT_EDITOR=editor, **{"PWD": str(cwd), **env})
    box.reached("one")
    lock = box.repo / ".git/index.lock"
    assert lock.exists()
    assert git_processes.openers(str(lock)) == [], "else this shows nothing"
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
def test_a_stale_lock_is_moved_aside_and_can_be_restored(box: GitBox) -> None:
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


REAL: "dict[str, tuple[str, str]]" = {
    "objects/maintenance.lock": ("maintenance run --no-quiet", "exists, skipping"),
    "info/sparse-checkout.lock": ("sparse-checkout set x", "Unable to create"),
    "objects/pack/multi-pack-index.lock": ("multi-pack-index write", "Unable to create"),
    "objects/info/commit-graph.lock": ("commit-graph write --reachable", "Unable to create"),
    "objects/info/commit-graphs/commit-graph-chain.lock": (
        "commit-graph write --reachable --split",
        "Unable to create",
    ),
    "logs/refs/heads/main.lock": ("reflog expire --expire=all refs/heads/main", "Unable to create"),
    "logs/HEAD.lock": ("reflog expire --expire=all HEAD", "Unable to create"),
    "gc.pid.lock": ("gc", "Unable to create"),
    "config.worktree.lock": ("config --worktree a.b c", "could not lock config file"),
    "MERGE_RR.lock": ("-c rerere.enabled=true rerere", "Unable to create"),
    "ORIG_HEAD.lock": ("update-ref ORIG_HEAD HEAD", "Unable to create"),
    "../.gitmodules.lock": ("config -f .gitmodules a.b c", "could not lock config file"),
    "../../gitconfig.lock": ("config --global a.b c", "could not lock config file"),
    "../../home/.git-credentials.lock": ("credential-store store", "credential storage lock"),
}
"""By lock: a command of git's that stumbles over it, so that it is one, and what it then says."""


@whole_host
@pytest.mark.parametrize("name", REAL)
def test_each_lock_that_makes_git_fail_is_found(box: GitBox, name: str) -> None:
    line, complaint = REAL[name]
    box.bare("config", "extensions.worktreeConfig", "true")
    box.bare("repack", "-adq")
    git_dir = Path(os.path.realpath(box.repo / ".git"))
    lock = Path(os.path.normpath(git_dir / name))
    lock.parent.mkdir(parents=True, exist_ok=True)
    (box.root / "home/.git-credentials").touch()
    secret = "protocol=https\\nhost=h\\nusername=u\\npassword=p\\n\\n"
    script = f"printf '{secret}' | {GIT} {line}"
    lock.write_text("left")
    _, said = box.end(box.start("sh", "-c", script))
    assert complaint in said, "else git does not lock there"
    code, said = box.git("unlock")
    assert (code, lock.exists()) == (0, False), said
    _, again = box.end(box.start("sh", "-c", script))
    assert complaint not in again
    stamp = said.split("--restore ")[1].strip()
    assert box.git("unlock", "--restore", stamp)[0] == 0
    assert lock.read_text() == "left"


@whole_host
def test_locks_that_need_a_state_or_a_newer_git(box: GitBox) -> None:
    """By the names in sequencer.c, object-file.c, loose.c, midx-write.c, reftable's system.c,
    builtin/gc.c, commit.c and stash.c."""
    names = """
    rebase-merge/git-rebase-todo.lock sequencer/opts.lock rebase-apply/patch-merge-index.lock
    objects/info/alternates.lock objects/loose-object-idx.lock objects/schedule.lock
    objects/pack/multi-pack-index.d/multi-pack-index-chain.lock reftable/tables.list.lock
    reftable/0x000000000001-0x000000000002-00000001.ref.lock gc.log.lock next-index-12.lock
    index.stash.12.lock MERGE_MSG.lock CHERRY_PICK_HEAD.lock AUTO_MERGE.lock BISECT_HEAD.lock
    fsmonitor--daemon.ipc.lock refs/worktree/x.lock logs/refs/heads/deep/er.lock index~pid.lock
    """
    git_dir = box.repo / ".git"
    for name in names.split():
        (git_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (git_dir / name).touch()
    assert box.git("unlock")[0] == 0
    assert [name for name in names.split() if (git_dir / name).exists()] == []


def test_a_file_that_only_looks_like_a_lock_is_not_moved(box: GitBox) -> None:
    for name in ("lock", "x.lockfile", "deep/unlock"):
        box.bare("branch", name)
    names = """
    yarn.lock deep/Cargo.lock .git/annex.lock .git/hooks/x.lock .git/lfs/x.lock .git/other.lock
    .git/objects/ab/x.lock .git/branches/x.lock
    """
    for name in names.split():
        (box.repo / name).parent.mkdir(exist_ok=True)
        (box.repo / name).write_text("mine")
    (box.repo / ".git/refs/heads/folder.lock").mkdir()
    assert box.git("unlock", "--force") == (0, f"sandrun: {box.repo}: no lock files\n")
    assert {(box.repo / name).read_text() for name in names.split()} == {"mine"}


@whole_host
@pytest.mark.parametrize("top", ["main", "linked", "submodule"])
def test_locks_of_worktrees_and_submodules_are_found_from_each_other(box: GitBox, top: str) -> None:
    """A commit in any of them may have been killed; `git unlock` at the top must find its lock."""
    other = box.root / "other"
    box.bare("worktree", "add", "-q", other, "-b", "side")
    box.bare("submodule", "--quiet", "add", box.make(box.root / "library"), "sub/deep")
    main = box.repo / ".git"
    names = {
        "main": ("index.lock", "modules/sub/deep/index.lock", "worktrees/other/index.lock"),
        "linked": ("worktrees/other/reftable/tables.list.lock", "index.lock", "config.lock"),
        "submodule": ("modules/sub/deep/HEAD.lock", "modules/sub/deep/refs/heads/x.lock"),
    }[top]
    for name in names:
        (main / name).parent.mkdir(parents=True, exist_ok=True)
        (main / name).touch()
    cwd = {"main": box.repo, "linked": other, "submodule": box.repo / "sub/deep"}[top]
    code, said = box.git("unlock", cwd=cwd)
    assert code == 0, said
    assert [name for name in names if (main / name).exists()] == []
    for stamp in [line.split()[-1] for line in said.splitlines() if "--restore " in line]:
        assert box.git("unlock", "--restore", stamp, cwd=cwd)[0] == 0
    assert [name for name in names if not (main / name).exists()] == []


@whole_host
@pytest.mark.parametrize("where", ["linked", "submodule"])
def test_the_lock_of_a_commit_in_another_worktree_is_not_moved(box: GitBox, where: str) -> None:
    place = box.root / "other"
    if where == "linked":
        box.bare("worktree", "add", "-q", place, "-b", "side")
    else:
        place = box.repo / "sub"
        box.bare("submodule", "--quiet", "add", box.make(box.root / "library"), "sub")
    (place / "a").write_text("two\n")
    commit = box.start(GIT, "commit", "-a", cwd=place, GIT_EDITOR=box.editor("one"))
    box.reached("one")
    git_dir = Path(box.bare("rev-parse", "--absolute-git-dir", cwd=place).strip())
    code, said = box.git("unlock", "--force")
    assert (code, (git_dir / "index.lock").exists()) == (1, True), said
    box.let("one")
    assert box.end(commit)[0] == 0


@whole_host
def test_a_process_that_has_the_lock_open_is_an_owner(box: GitBox) -> None:
    """JGit and libgit2 run in processes that are not named git."""
    lock = box.repo / ".git/index.lock"
    with open(lock, "w"):
        code, said = box.git("unlock")
        assert code == 1
        assert f"(pid {os.getpid()}, for" in said
    assert box.git("unlock")[0] == 0


@whole_host
def test_who_owns_a_lock_on_the_user_s_files(box: GitBox) -> None:
    """A `git config` in any directory; no commit, and no git with another configuration."""
    other = box.make(box.root / "other")
    box.start(GIT, "commit", "--allow-empty", cwd=other, GIT_EDITOR=box.editor("one"))
    box.reached("one")
    lock = box.root / "gitconfig.lock"
    lock.touch()
    mine = box.editor("edit", "[a]")
    editing = box.start(GIT, "config", "--global", "-e", cwd=box.root, GIT_EDITOR=mine)
    box.reached("edit")
    assert box.git("unlock")[0] == 1
    assert lock.exists()
    box.let("edit")
    assert box.end(editing)[0] == 0
    elsewhere = str(box.root / "gitconfig-of-another")
    theirs = box.editor("theirs", "[a]")
    env = {"GIT_EDITOR": theirs, "GIT_CONFIG_GLOBAL": elsewhere, "HOME": str(box.root / "other")}
    env["XDG_CONFIG_HOME"] = ""
    box.start(GIT, "config", "--global", "-e", cwd=box.root, **env)
    box.reached("theirs")
    code, said = box.git("unlock")
    assert (code, lock.exists()) == (0, False), said


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
def test_git_commands_of_other_repositories_and_readers_own_no_lock(box: GitBox) -> None:
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


def test_unlock_inside_a_commit(box: GitBox) -> None:
    (box.repo / "a").write_text("two\n")
    box.hook("pre-commit", f"! {box.sandrun_text()} git unlock")
    code, said = box.git("commit", "-q", "-a", "-m", "x")
    assert code == 0, said
    assert "left alone" in said


@pytest.mark.parametrize("line", ["unlock", "unlock x", "unlock --force=1", "unlock --restore a b"])
def test_wrong_arguments_of_unlock(box: GitBox, line: str) -> None:
    empty = box.root / "empty"
    empty.mkdir()
    code, said = box.git(*line.split(), cwd=empty)
    assert code == 125
    assert said.startswith("sandrun: git unlock: ")


def test_unlock_without_locks(box: GitBox) -> None:
    assert box.git("unlock") == (0, f"sandrun: {box.repo}: no lock files\n")
    assert box.git("unlock", "--restore")[0] == 1


# The race between the check and the move


@pytest.mark.parametrize("how", ["replaced", "owned"])
def test_a_live_lock_that_replaced_a_stale_one_is_moved_back(
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
            monkeypatch.setattr(git_processes, "possible_owners", lambda repo, uid: [1])
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(SandrunError, match="replaced by a live lock"):
        stale.move_aside(_repo(box), str(lock))
    assert lock.read_text() == ("new" if how == "replaced" else "old")
    assert stale.moved_aside(_repo(box), {}) == []


# Owners that cannot be seen


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ("nfs4 server:/x rw", "another machine may share this file system (nfs4)"),
        ("9p share rw", "another machine may share this file system (9p)"),
        ("ext4 /dev/x rw", ""),
    ],
)
def test_possible_owners_on_other_machines_and_hidden_ones_are_reported(
    box: GitBox, monkeypatch: pytest.MonkeyPatch, mount: str, reason: str
) -> None:
    lock = box.repo / ".git/index.lock"
    lock.touch()
    read = processes.read
    row = f"1 1 0:1 / / rw - ext4 /dev/y rw\n2 1 0:2 / {box.root} rw shared:1 - {mount}\n"
    monkeypatch.setattr(
        processes, "read", lambda p: row.encode() if p.endswith("mountinfo") else read(p)
    )
    blind = [why for why in stale.blind_spots(str(lock)) if "container" not in why]
    assert blind == ([reason] if reason else [])


@whole_host
@pytest.mark.parametrize("worktree", ["main", "linked", "submodule"])
def test_the_lock_of_a_commit_in_a_container_is_never_moved(box: GitBox, worktree: str) -> None:
    """Its repository has another path, and we are outside the container."""
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
    assert box.git("unlock", cwd=box.root / "other")[0] == 0, (
        "it is distinguished from another repository"
    )


@whole_host
def test_a_git_of_another_user_in_another_repository_is_no_owner(box: GitBox) -> None:
    """It cannot be examined, but its lock would belong to its own user."""
    if os.geteuid():
        pytest.skip("needs root to be two users")
    for path in (box.root, *box.root.parents):
        if not path.stat().st_mode & 0o005:
            path.chmod(path.stat().st_mode | 0o011)
    (box.root / "gitconfig").chmod(0o644)
    theirs = box.make(box.root / "theirs")
    state = box.root / "their-state"
    state.mkdir()
    lock = theirs / ".git/index.lock"
    lock.touch()
    for path in (state, theirs, *theirs.rglob("*")):
        os.chown(path, 65534, 65534)
    box.start(GIT, "commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    env = {"SANDRUN_STATE_DIR": str(state), "HOME": str(state)}
    unlock = [*argv, "-m", "sandrun", "git", "unlock"]
    os.chown(lock, 0, 0)  # made by a root's git: that one, for all that can be seen
    assert box.end(box.start(*unlock, "--force", cwd=theirs, **env))[0] == 1
    os.chown(lock, 65534, 65534)
    code, said = box.end(box.start(*unlock, cwd=theirs, **env))
    assert (code, lock.exists()) == (0, False), said


def test_in_a_container_unlock_needs_force(box: GitBox) -> None:
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
