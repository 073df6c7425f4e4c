"""Runs and git: waiting for an active git, enclosing git commands, leaked variables."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun.git import guard
from tests.gitbox import GIT, GitBox, heard, is_queued, wait_for, watches
from tests.harness import PACKAGE


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    made = GitBox(tmp_path)
    yield made
    made.close()


def _places(box: GitBox) -> "dict[str, tuple[Path, Path, dict[str, str]]]":
    """By name: where a run starts, the lock it must wait for, and its environment."""
    other = box.root / "other"
    box.bare("worktree", "add", "-q", other, "-b", "side")
    library = box.make(box.root / "library")
    box.bare("submodule", "--quiet", "add", library, "sub")
    deep = box.repo / "deep"
    deep.mkdir()
    main = box.repo / ".git"
    return {
        "main": (box.repo, main / "index.lock", {}),
        "HEAD": (box.repo, main / "HEAD.lock", {}),
        "folder": (deep, main / "index.lock", {}),
        "worktree": (other, main / "worktrees/other/index.lock", {}),
        "submodule": (box.repo / "sub", main / "modules/sub/index.lock", {}),
        "GIT_DIR": (box.root, main / "index.lock", {"GIT_DIR": "repo/.git"}),
        "GIT_INDEX_FILE": (box.repo, main / "i.lock", {"GIT_INDEX_FILE": ".git/i"}),
    }


PLACES = ["main", "HEAD", "folder", "worktree", "submodule", "GIT_DIR", "GIT_INDEX_FILE"]


@pytest.mark.parametrize("place", PLACES)
def test_a_run_waits_for_a_foreign_lock(box: GitBox, place: str) -> None:
    cwd, lock, env = _places(box)[place]
    lock.touch()
    run = box.sandrun("--clean-git-env", "--", "echo", "ran", cwd=cwd, **env)
    wait_for(lambda: watches(run), "the run waits by inotify")
    assert "which has held" in heard(run)
    lock.unlink()
    assert box.end(run) == (0, "ran\n")


def test_a_run_waits_for_a_guarded_git(box: GitBox) -> None:
    """A plain commit in its editor holds none of git's lock files."""
    commit = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    assert not (box.repo / ".git/index.lock").exists()
    run = box.sandrun("--", "echo", "ran")
    wait_for(lambda: is_queued(run), "the run waits")
    assert f"waiting for git commit --allow-empty (pid {commit.pid}, for" in heard(run)
    box.let("one")
    assert box.end(commit)[0] == 0
    assert box.end(run) == (0, "ran\n")


def test_after_the_wait_a_run_starts_with_a_warning(box: GitBox) -> None:
    (box.repo / "a").write_text("two\n")
    commit = box.start(GIT, "commit", "-a", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    code, said = box.end(box.sandrun("--git-wait", "0.6", "--", "echo", "ran"))
    assert code == 0
    assert said.endswith("ran\n")
    warning = said.splitlines()[1]
    assert f"waited 0.6 s for {GIT} commit -a (pid {commit.pid}, for" in warning
    assert "which has held index.lock for" in warning
    assert warning.endswith("going on without waiting")
    box.let("one")
    assert box.end(commit)[0] == 0


def test_a_signal_ends_a_run_that_waits_for_git(box: GitBox) -> None:
    (box.repo / ".git/index.lock").touch()
    run = box.sandrun("--", "echo", "ran")
    wait_for(lambda: watches(run), "the run waits")
    run.terminate()
    code, said = box.end(run)
    assert code == 143
    assert "ran" not in said


def test_without_an_active_git_a_run_does_not_wait(box: GitBox) -> None:
    empty = box.root / "empty"
    empty.mkdir()
    assert box.end(box.sandrun("--", "echo", "ran", cwd=empty)) == (0, "ran\n")
    assert box.git("add", "a") == (0, "")
    assert box.end(box.sandrun("--", "echo", "ran")) == (0, "ran\n")


INSIDE = {
    "commit -a": ["commit", "-q", "-a", "-m", "x"],
    "commit -a, index forgotten": ["commit", "-q", "-a", "-m", "x"],
    "commit FILE": ["commit", "-q", "-m", "x", "a"],
    "rebase --exec": ["rebase", "-q", "--exec", "{run}", "--root"],
    "bisect run": ["bisect", "run", "sh", "-c", "{run}"],
    "submodule foreach": ["submodule", "--quiet", "foreach", "{run}"],
    "alias": ["-c", "alias.x=!{run}", "x"],
}


@pytest.mark.parametrize("how", INSIDE)
@pytest.mark.parametrize("outer", ["guarded", "bare"])
def test_a_run_inside_a_git_starts_at_once(box: GitBox, how: str, outer: str) -> None:
    run = f"{box.sandrun_text()} -- sh -c 'echo ran >>{box.root}/ran'"
    library = box.make(box.root / "library")
    box.bare("submodule", "--quiet", "add", library, "sub")
    box.bare("commit", "-qm", "sub")
    if how == "bisect run":
        box.bare("commit", "-q", "--allow-empty", "-m", "x")
        box.bare("bisect", "start", "HEAD", "HEAD~2")
    if how.startswith("commit"):
        forget = "env -u GIT_INDEX_FILE" if "forgotten" in how else ""
        box.hook("pre-commit", f"test -e .git/index.lock && {forget} {run}")
        (box.repo / "a").write_text("two\n")
    words = [word.format(run=run) for word in INSIDE[how]]
    # A lock without an owner: without the enclosing git, the run would wait for the deadline.
    process = box.guarded(*words) if outer == "guarded" else box.start(GIT, *words)
    code, said = box.end(process, 30)
    assert code == 0, said
    assert "waiting" not in said
    assert (box.root / "ran").exists()


# What git leaves in the background


def _loose(box: GitBox) -> int:
    return int(box.bare("count-objects").split()[0])


def to_be_packed(box: GitBox) -> None:
    """So many loose objects that `gc --auto` repacks them: it counts those in folder 17."""
    box.bare("config", "gc.auto", "1")
    texts = (f"{number}".encode() for number in range(9999))
    named = {hashlib.sha1(b"blob %d\0%s" % (len(text), text)).hexdigest(): text for text in texts}
    found = [text for name, text in named.items() if name.startswith("17")][:3]
    for number, text in enumerate(found):
        (box.repo / f"loose{number}").write_bytes(text)
    box.bare("-c", "gc.auto=0", "add", ".")


def _to_be_packed_behind(box: GitBox) -> None:
    """... in the background, as the user has configured."""
    to_be_packed(box)
    box.bare("config", "gc.autoDetach", "true")
    box.bare("config", "maintenance.autoDetach", "true")


def _slow_repack(box: GitBox) -> dict[str, str]:
    """An exec path in which `git repack` blocks at the gate `repack`."""
    inner = box.root / "exec-path"
    inner.mkdir()
    gate = f'case "$1" in repack) {box.gate("repack")};; esac'
    (inner / "git").write_text(f'#!/bin/sh\n{gate}\nexec {GIT} "$@"\n')
    (inner / "git").chmod(0o755)
    return {"GIT_EXEC_PATH": str(inner)}


@pytest.mark.parametrize("how", ["guarded", "bare", "cleared"])
@pytest.mark.parametrize("backend", ["auto", "rlimit"])
def test_the_housekeeping_of_a_commit_is_finished(box: GitBox, how: str, backend: str) -> None:
    """If each run killed it at its end, loose objects would pile up."""
    _to_be_packed_behind(box)
    box.env["SANDRUN_BACKEND"] = backend
    clear = ["env", "-i", f"HOME={box.root}/home", f"GIT_CONFIG_GLOBAL={box.root}/gitconfig", GIT]
    git = {"guarded": [str(box.shims / "git")], "bare": [GIT], "cleared": clear}[how]
    code, said = box.end(box.sandrun("--", *git, "commit", "-qm", "x"))
    assert code == 0, said
    assert "left behind" not in said, said
    assert _loose(box) == 0
    assert not (box.repo / ".git/gc.pid").exists()


def test_housekeeping_is_waited_for_within_the_limits(box: GitBox) -> None:
    _to_be_packed_behind(box)
    box.env["SANDRUN_BACKEND"] = "auto"
    slow = _slow_repack(box)
    run = box.sandrun("--", GIT, "commit", "-qm", "x", **slow)
    box.reached("repack")
    line = heard(run)
    if "a monitor polls" in line:  # where no kernel enforces limits
        line = heard(run)
    assert "waiting for" in line
    assert " gc --auto" in line or " maintenance run --auto" in line
    assert run.poll() is None
    box.let("repack")
    assert box.end(run) == (0, "")
    assert _loose(box) == 0


def test_housekeeping_ends_at_a_limit(box: GitBox) -> None:
    """The commit has succeeded even if its housekeeping is killed."""
    _to_be_packed_behind(box)
    box.env["SANDRUN_BACKEND"] = "auto"
    slow = _slow_repack(box)
    limits = ("--timeout", "4", "--grace", "0")
    code, said = box.end(box.sandrun(*limits, "--", GIT, "commit", "-qm", "x", **slow))
    assert (box.root / "reached-repack").exists(), said
    assert code == 0, said
    assert "gc --auto" in said or "maintenance run --auto" in said  # from git 2.47 on
    assert not (box.repo / ".git/objects/maintenance.lock").exists()


def test_other_processes_that_a_git_leaves_are_ended(box: GitBox) -> None:
    box.env["SANDRUN_BACKEND"] = "auto"
    box.hook("post-commit", "sleep 600 >/dev/null 2>&1 & git cat-file --batch <$0.fifo &")
    os.mkfifo(box.repo / ".git/hooks/post-commit.fifo")
    code, said = box.end(box.sandrun("--", GIT, "commit", "-q", "--allow-empty", "-m", "x"))
    assert code == 0
    assert "sleep 600" in said


# Variables that leak


def test_the_local_variables_are_those_of_git(box: GitBox) -> None:
    listed = box.bare("rev-parse", "--local-env-vars").split()
    assert set(listed) - {"GIT_CONFIG_COUNT"} <= set(guard.LOCAL_VARIABLES)


HOOKS = """pre-commit prepare-commit-msg commit-msg post-commit post-checkout pre-rebase
post-rewrite applypatch-msg pre-applypatch post-applypatch pre-merge-commit post-merge pre-push
reference-transaction post-index-change pre-auto-gc pre-receive update post-receive post-update
push-to-checkout"""
HARMLESS = {"GIT_PREFIX", "GIT_EDITOR", "GIT_SEQUENCE_EDITOR", "GIT_REFLOG_ACTION", "GIT_EXEC_PATH",
            "GIT_CHERRY_PICK_HELP", "GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_AUTHOR_DATE",
            "GIT_PUSH_OPTION_COUNT", "GIT_INTERNAL_GETTEXT_SH_SCHEME"}  # fmt: skip
"""What git's own hooks get and no repository is named by."""


def test_the_variables_that_hooks_leak_are_removed(box: GitBox) -> None:
    """With the installed git: each hook records its variables. The user's own are kept."""
    log = box.root / "leaks"
    script = f"env | sed -n 's/^\\(GIT_[A-Z_0-9]*\\)=.*/\\1/p' >>{log}"
    server = box.root / "server"
    box.bare("init", "-q", "--bare", server)
    for name in HOOKS.split():
        box.hook(name, script)
        box.hook(name, script, server)
    other = box.root / "other"
    config = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "a.b", "GIT_CONFIG_VALUE_0": "c"}
    box.env |= config
    mine = {name for name in box.env if name.startswith("GIT_")}
    box.bare("worktree", "add", "-q", other, "-b", "side")
    for place in (box.repo, other):
        (place / "a").write_text(f"{place}\n")
        box.bare("-c", "x.y=z", "commit", "-qam", "two", cwd=place)
        box.bare("commit", "-q", "--amend", "-m", "three", "--allow-empty", "a", cwd=place)
    box.bare("push", "-q", server, "side:main", cwd=other)
    box.bare("rebase", "-q", "--force-rebase", "HEAD~1")
    leaked = set(log.read_text().split()) - mine
    assert {"GIT_DIR", "GIT_INDEX_FILE", "GIT_QUARANTINE_PATH", "GIT_CONFIG_PARAMETERS"} <= leaked
    assert leaked - HARMLESS <= set(guard.LOCAL_VARIABLES)
    assert not set(guard.LOCAL_VARIABLES) & set(config)


def test_the_user_s_configuration_is_kept(box: GitBox) -> None:
    """As CI sets it: a proxy, credentials, safe.directory."""
    config = {
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "http.proxy",
        "GIT_CONFIG_VALUE_0": "http://proxy",
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
    }
    env = {**config, "GIT_DIR": str(box.root / "nothing"), "GIT_CONFIG_PARAMETERS": "'a.b'='c'"}
    lines = "git config http.proxy; git config safe.directory; git config a.b; git rev-parse HEAD"
    code, said = box.end(box.sandrun("--clean-git-env", "--", "sh", "-c", lines, **env))
    assert (code, said.split()) == (0, ["http://proxy", "*", box.bare("rev-parse", "HEAD").strip()])


def test_clean_git_env(box: GitBox) -> None:
    """A test suite in a hook makes its own repository and must not write to the real one."""
    suite = "mkdir -p t && cd t && git init -q . && git config user.x y && git rev-parse --git-dir"
    env = {"GIT_DIR": str(box.repo / ".git"), "GIT_WORK_TREE": str(box.repo)}
    code, said = box.end(box.sandrun("--clean-git-env", "--", "sh", "-c", suite, **env))
    assert (code, said) == (0, ".git\n")
    assert "user.x" not in box.bare("config", "-l", "--local")
    code, said = box.end(box.sandrun("--", "sh", "-c", suite, **env))
    assert "user.x=y" in box.bare("config", "-l", "--local"), "else the first half shows nothing"


def test_clean_git_env_in_the_file(box: GitBox) -> None:
    (box.repo / "sandrun.toml").write_text("clean_git_env = true\n")
    assert box.end(box.sandrun("trust"))[0] == 0
    everything = dict.fromkeys(guard.LOCAL_VARIABLES, "x")
    code, said = box.end(box.sandrun("--git-wait", "0", "--", "env", **everything))
    assert code == 0
    found = {line.partition("=")[0] for line in said.splitlines()}
    assert not found & set(guard.LOCAL_VARIABLES)
    assert {"PATH", "GIT_CEILING_DIRECTORIES"} <= found


def test_the_run_warns_of_a_leak(box: GitBox) -> None:
    git_dir = str(box.repo / ".git")
    code, said = box.end(box.sandrun("--", "true", GIT_DIR=git_dir))
    assert code == 0
    first, second = said.splitlines()
    assert first.startswith("sandrun: GIT_DIR from the environment: every git in this run")
    assert second.startswith("sandrun: hint: clean_git_env = true")
    assert box.end(box.sandrun("--", "true", GIT_INDEX_FILE=".git/index")) == (0, "")
    index = git_dir + "/next-index-1.lock"
    assert "GIT_INDEX_FILE from" in box.end(box.sandrun("--", "true", GIT_INDEX_FILE=index))[1]
    (box.repo / "sandrun.toml").write_text("clean_git_env = false\n")
    assert box.end(box.sandrun("trust"))[0] == 0
    assert box.end(box.sandrun("--", "true", GIT_DIR=git_dir)) == (0, "")


def test_leak_check(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in guard.LOCAL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert guard.leak_check()[0]
    monkeypatch.setenv("GIT_DIR", "/x/.git")
    fine, evidence, fix = guard.leak_check()
    assert not fine
    assert "GIT_DIR=/x/.git" in evidence
    assert "clean_git_env" in fix


def test_the_installed_sandrun_guards_git(box: GitBox) -> None:
    """It is not the checkout that the tests are in."""
    show = "import sandrun; print(sandrun.__file__)"
    said = box.end(box.start(sys.executable, "-c", show))[1]
    assert said == f"{PACKAGE / 'sandrun/__init__.py'}\n"
    assert str(PACKAGE / "sandrun") in (box.shims / "git").read_text()


def test_a_guarded_git_imports_few_modules(box: GitBox) -> None:
    """Expensive modules must not be imported: compared by name, not by time."""
    heavy = "click psutil typing dataclasses re json subprocess pathlib ctypes tomllib threading"
    script = (
        "import os, sys\n"
        "os.execve = lambda *a: (os.write(1, ' '.join(sys.modules).encode()), os._exit(0))\n"
        "from sandrun.cli import main\n"
        "main()\n"
    )
    for args in (["status"], ["commit", "-m", "x"]):
        out = subprocess.run(
            [sys.executable, "-S", "-c", script, "git", *args],
            env={**box.env, "PYTHONPATH": str(PACKAGE)},
            cwd=box.repo,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        assert not set(heavy.split()) & set(out.split())
        assert "sandrun.git.record_locks" in out
        assert "sandrun.git.waiter" not in out
