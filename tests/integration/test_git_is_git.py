"""`sandrun git` behaves as git: exit codes, output, terminal, and odd directories."""

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
def test_exit_codes_and_output_are_git_s(box: GitBox, line: str) -> None:
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


def test_a_reader_in_the_background_takes_no_optional_locks(box: GitBox) -> None:
    env = _echo_git(box)
    assert box.git("log", **env) == (0, "locks=0\n")
    assert box.git("log", GIT_OPTIONAL_LOCKS="1", **env) == (0, "locks=1\n")
    assert box.git("commit", **env) == (0, "locks=\n")
    box.env |= env
    assert _on_a_terminal(box, sys.executable, "-m", "sandrun", "git", "log") == "locks=\r\n"


REFRESHING = ["status --short", "diff", "describe --always --dirty", "st"]


@pytest.mark.parametrize("line", REFRESHING)
@pytest.mark.parametrize("entry", ["shim", "sandrun git", "in a run"])
def test_a_reader_refreshes_the_index_if_no_writer_is_active(
    box: GitBox, line: str, entry: str
) -> None:
    """Scripts check for changes with `git status; git diff-index --quiet HEAD`."""
    box.bare("config", "alias.st", "status --short")
    words = {
        "shim": [str(box.shims / "git")],
        "sandrun git": [sys.executable, "-m", "sandrun", "git"],
        "in a run": [sys.executable, "-m", "sandrun", "--", str(box.shims / "git")],
    }[entry]
    os.utime(box.repo / "a", (1, 1))
    assert box.end(box.start(GIT, "diff-index", "--quiet", "HEAD"))[0] == 1, "else it shows nothing"
    code, _ = box.end(box.start(*words, *line.split()))
    assert code == 0
    assert box.end(box.start(*words, "diff-index", "--quiet", "HEAD"))[0] == 0


@pytest.mark.parametrize("line", REFRESHING)
def test_a_reader_does_not_refresh_the_index_beside_a_writer(box: GitBox, line: str) -> None:
    box.bare("config", "alias.st", "status --short")
    plain = box.end(box.start(GIT, *line.split(), GIT_OPTIONAL_LOCKS="0"))
    os.utime(box.repo / "a", (1, 1))
    commit = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    before = (box.repo / ".git/index").stat().st_mtime_ns
    code, said = box.git(*line.split(), SANDRUN_GIT_WAIT="999")
    assert (code, said.splitlines()[-1:]) == (0, plain[1].splitlines())
    if "describe" in line:  # it has no option for that
        assert "s for git commit --allow-empty" in said
    else:
        assert "sandrun" not in said, "it does not wait"
        assert (box.repo / ".git/index").stat().st_mtime_ns == before
    box.let("one")
    assert box.end(commit)[0] == 0


@pytest.mark.parametrize("line", ["status --short", "describe --always --dirty"])
def test_a_writer_waits_for_a_reader_that_refreshes_the_index(box: GitBox, line: str) -> None:
    """Otherwise it would fail on the reader's lock."""
    watcher = box.root / "watcher"
    once = f"mkdir {box.root}/once 2>/dev/null || exit 1"  # git asks again in an older way
    watcher.write_text(f"#!/bin/sh\n{once}\n{box.gate('watcher')}\nexit 1\n")
    watcher.chmod(0o755)
    reader = box.start(box.shims / "git", "-c", f"core.fsmonitor={watcher}", *line.split())
    box.reached("watcher")
    (box.repo / "b").write_text("b")
    writer = box.guarded("add", "b")
    wait_for(lambda: is_queued(writer), "the writer queues")
    box.let("watcher")
    assert box.end(reader)[0] == 0
    assert box.end(writer)[0] == 0


def test_a_diff_in_a_pager_delays_no_writer(box: GitBox) -> None:
    (box.repo / "a").write_text("two\n")
    os.utime(box.repo / "a", (1, 1))
    pager = box.root / "pager"
    pager.write_text(f"#!/bin/sh\n{box.gate('pager')}\nexec cat\n")
    pager.chmod(0o755)
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(box.repo)
        env = {**box.env, "TERM": "xterm", "GIT_PAGER": str(pager)}
        os.execve(box.shims / "git", ["git", "diff"], env)
    box.reached("pager")
    (box.repo / "b").write_text("b")
    assert box.git("add", "b", SANDRUN_GIT_WAIT="999") == (0, "")
    box.let("pager")
    out = b""
    while part := _read(master):
        out += part
    os.close(master)
    assert os.waitpid(pid, 0)[1] == 0
    assert b"two" in out


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError:
        return b""


def test_a_status_without_optional_locks_needs_no_turn(box: GitBox) -> None:
    """As IDEs and prompts use it; the shim does not start Python for it."""
    os.utime(box.repo / "a", (1, 1))
    before = (box.repo / ".git/index").stat().st_mtime_ns
    shim = (box.shims / "git").read_text()
    (box.shims / "git").write_text(shim.replace("exec ", "exit 9; exec ", 1))
    words = [str(box.shims / "git"), "--no-optional-locks", "status", "--short"]
    assert box.end(box.start(*words)) == (0, "")
    assert box.end(box.start(words[0], *words[2:], GIT_OPTIONAL_LOCKS="0")) == (0, "")
    assert box.end(box.start(words[0], "diff", "--cached")) == (0, "")
    assert (box.repo / ".git/index").stat().st_mtime_ns == before
    assert box.end(box.start(words[0], *words[2:]))[0] == 9, "else this shows nothing"


def test_the_real_git_behind_a_shim_is_found(box: GitBox) -> None:
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


def test_a_user_who_may_only_read_the_repository_cannot_delay_git_there(box: GitBox) -> None:
    if os.geteuid():
        pytest.skip("needs root to be two users")
    for path in (box.root, *box.root.parents):
        if not path.stat().st_mode & 0o005:
            path.chmod(path.stat().st_mode | 0o011)
    (box.repo / ".git").chmod(0o755)
    guard = box.repo / ".git/sandrun-guard"
    guard.touch()
    guard.chmod(0o644)  # as an older version left it
    assert box.git("add", "a")[0] == 0
    lock = (
        "import fcntl, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "fcntl.lockf(fd, fcntl.LOCK_SH, 1, 0)\n"
        "print('held')\n"
        "sys.stdin.read()\n"
    )
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    reader = box.start(*argv, "/usr/bin/python3", "-I", "-c", lock, str(guard))
    code, said = box.end(reader)
    assert (code, said.splitlines()[-1].partition(":")[0]) == (1, "PermissionError"), said
    assert box.git("add", "a", SANDRUN_GIT_WAIT="999") == (0, "")


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


@pytest.mark.parametrize("kind", ["FIFO", "link", "device", "directory"])
def test_a_hostile_guard_file_blocks_no_git(box: GitBox, kind: str) -> None:
    """It is not followed, not waited for and, if possible, not opened; one line reports it."""
    guard = box.repo / ".git/sandrun-guard"
    target = box.root / "target"
    target.touch(mode=0o644)
    if kind == "device":
        if os.geteuid():
            pytest.skip("needs root to make a device")
        try:
            os.mknod(guard, 0o020666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("needs CAP_MKNOD")
    elif kind == "FIFO":
        os.mkfifo(guard)
    elif kind == "link":
        guard.symlink_to(target)
    else:
        guard.mkdir()
    line = f"sandrun: {guard} is no regular file: git commands here take no turns\n"
    for args in (["add", "a"], ["status", "--short"]):
        code, said = box.git(*args)
        assert (code, said.partition("sandrun: hint")[0]) == (0, line)
    assert box.end(box.sandrun("--", "echo", "ran"))[1].endswith("ran\n")
    assert target.stat().st_mode & 0o777 == 0o644


def test_the_mode_of_a_hard_linked_file_is_not_changed(box: GitBox) -> None:
    precious = box.root / "precious"
    precious.touch(mode=0o644)
    (box.repo / ".git/sandrun-guard").hardlink_to(precious)
    assert box.git("add", "a") == (0, "")
    assert precious.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o2775, 0o777, 0o700])
def test_the_mode_of_the_guard_file(box: GitBox, mode: int) -> None:
    """A shared lock (F_RDLCK) would delay git, so only users who may write may open the file. The
    mode of an older version, or from before the repository was shared, is corrected."""
    git_dir = box.repo / ".git"
    guard = git_dir / "sandrun-guard"
    git_dir.chmod(mode)
    wanted = 0o600 | (0o060 if mode & 0o020 else 0) | (0o006 if mode & 0o002 else 0)
    for left in (None, 0o644, 0o600, 0o666):
        if left:
            guard.chmod(left)
        assert box.git("add", "a") == (0, "")
        assert guard.stat().st_mode & 0o777 == wanted
