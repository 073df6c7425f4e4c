"""`sandrun git` is git: its exit codes, words, terminal, and the places where it runs."""

import os
import pty
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gitbox import GIT, GitBox, is_queued, wait_for


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    made = GitBox(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    "line",
    [
        "diff --exit-code HEAD~0",
        "rev-parse nothing",
        "commit --no-such-option",
        "no-such-command",
        "config a.b.c",
        "-C /nowhere status",
        "add nothing",
        "--version",
        "",
        "-c alias.x=!exit\\ 42 x",
    ],
)
def test_exit_codes_and_words_are_git_s(box: GitBox, line: str) -> None:
    (box.repo / "a").write_text("two\n")
    words = line.replace("\\ ", "\0").split()
    words = [word.replace("\0", " ") for word in words]
    assert box.git(*words) == box.end(box.start(GIT, *words))


def _on_a_terminal(box: GitBox, *argv: str) -> str:
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(box.repo)
        os.execve(argv[0], list(argv), {**box.env, "TERM": "xterm"})
    out = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:
            break
        if not part:
            break
        out += part
    os.close(master)
    os.waitpid(pid, 0)
    return out.decode()


def test_the_terminal_is_git_s(box: GitBox) -> None:
    (box.repo / "a").write_text("two\n")
    ours = _on_a_terminal(box, sys.executable, "-m", "sandrun", "git", "--no-pager", "diff")
    assert ours == _on_a_terminal(box, GIT, "--no-pager", "diff")
    assert "\x1b[" in ours


def _echo_git(box: GitBox) -> dict[str, str]:
    fake = box.root / "fake"
    fake.mkdir()
    (fake / "git").write_text('#!/bin/sh\necho "locks=$GIT_OPTIONAL_LOCKS"\n')
    (fake / "git").chmod(0o755)
    return {"PATH": f"{box.shims}:{fake}:{box.env['PATH']}"}


def test_background_reading_takes_no_optional_locks(box: GitBox) -> None:
    env = _echo_git(box)
    assert box.git("status", **env) == (0, "locks=0\n")
    assert box.git("status", GIT_OPTIONAL_LOCKS="1", **env) == (0, "locks=1\n")
    assert box.git("commit", **env) == (0, "locks=\n")
    box.env |= env
    assert _on_a_terminal(box, sys.executable, "-m", "sandrun", "git", "status") == "locks=\r\n"


def test_a_background_status_leaves_the_index_alone(box: GitBox) -> None:
    os.utime(box.repo / "a", (1, 1))
    before = (box.repo / ".git/index").stat().st_mtime_ns
    assert box.git("status", "--short") == (0, "")
    assert (box.repo / ".git/index").stat().st_mtime_ns == before


def test_a_shim_in_front_is_passed_by(box: GitBox) -> None:
    path = f"{box.shims}:{box.shims}:{box.env['PATH']}"
    shim = box.shims / "git"
    (box.repo / "b").write_text("b")
    assert box.end(box.start(shim, "add", "b", PATH=path)) == (0, "")
    assert box.end(box.start(shim, "ls-files", PATH=path)) == (0, "a\nb\n")


def test_no_git_at_all(box: GitBox) -> None:
    code, said = box.git("status", PATH=str(box.shims))
    assert code == 127
    assert said.startswith("sandrun: git: command not found\n")


# Places


def test_not_in_a_repository(box: GitBox) -> None:
    empty = box.root / "empty"
    empty.mkdir()
    assert box.git("add", "x", cwd=empty)[0] == 128
    assert box.git("init", "-q", cwd=empty) == (0, "")
    assert (empty / ".git/HEAD").exists()
    assert box.git("clone", "-q", str(box.repo), "copy", cwd=empty) == (0, "")


def test_the_guard_file_has_the_directory_s_owner_and_permissions(box: GitBox) -> None:
    if os.geteuid():
        pytest.skip("needs root to make files of two users")
    git_dir = box.repo / ".git"
    os.chown(git_dir, 12345, 23456)
    os.chmod(git_dir, 0o2770)
    box.bare("config", "--global", "safe.directory", "*")
    assert box.git("add", "a")[0] == 0
    info = (git_dir / "sandrun-guard").stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (12345, 23456, 0o660)


def test_two_users_take_turns(box: GitBox) -> None:
    if os.geteuid():
        pytest.skip("needs root to be two users")
    os.chmod(box.root, 0o755)
    for folder in [box.repo, *box.repo.rglob("*"), box.root / "state", box.root / "home"]:
        os.chmod(folder, 0o777 if folder.is_dir() else 0o666)
    box.bare("config", "--global", "safe.directory", "*")
    os.chmod(box.root / "gitconfig", 0o644)
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    parents = [path for path in box.root.parents if not path.stat().st_mode & 0o005]
    for path in parents:
        path.chmod(path.stat().st_mode | 0o011)
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    state = box.root / "their-state"
    state.mkdir(mode=0o777)
    state.chmod(0o777)
    env = {"SANDRUN_STATE_DIR": str(state), "HOME": str(state)}
    other = box.start(*argv, "-m", "sandrun", "git", "add", "a", **env)
    wait_for(lambda: is_queued(other), "the other user's git queues")
    box.let("one")
    assert box.end(holder)[0] == 0
    code, said = box.end(other)
    assert code == 0, said


def test_a_hostile_guard_file_blocks_nobody(box: GitBox) -> None:
    guard = box.repo / ".git/sandrun-guard"
    os.mkfifo(guard)
    assert box.git("add", "a") == (0, "")
    guard.unlink()
    guard.symlink_to("/etc/passwd")
    assert box.git("add", "a") == (0, "")


def test_a_repository_that_cannot_be_written(box: GitBox) -> None:
    """Root can write anywhere: the file system must say no."""
    guard = box.repo / ".git/sandrun-guard"
    guard.mkdir()
    assert box.git("add", "a") == (0, "")
