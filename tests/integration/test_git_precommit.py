"""A real pre-commit whose hooks are runs of sandrun, in every kind of commit."""

import importlib.util
import os
import pty
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gitbox import GIT, GitBox
from tests.harness import SCALE

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("pre_commit"), reason="needs pre-commit (pip install pre-commit)"
)

HOOKS = """
repos:
  - repo: local
    hooks:
      - id: lint
        name: lint
        entry: {sandrun} -- make lint
        language: system
        pass_filenames: false
        always_run: true
        verbose: true
"""
# What the hook sees: the files that will be committed, and the index of this commit.
MAKE = """lint:
\t@changed=$$(git diff --cached --name-only | tr '\\n' ,); \\
\techo LINT a=$$(cat a) index=$$(git show :a) changed=$$changed
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    if not shutil.which("make"):
        pytest.skip("needs make")
    made = GitBox(tmp_path)
    made.env["PATH"] = f"{made.shims}:{made.env['PATH']}"
    made.env["PRE_COMMIT_HOME"] = str(tmp_path / "home/pre-commit")
    (made.repo / ".pre-commit-config.yaml").write_text(HOOKS.format(sandrun=made.sandrun_text()))
    (made.repo / "Makefile").write_text(MAKE)
    (made.repo / "b").write_text("one\n")
    made.bare("add", ".")
    made.bare("commit", "-qm", "files")
    code, said = made.end(made.start(sys.executable, "-m", "pre_commit", "install"))
    assert code == 0, said
    yield made
    made.close()


def _commit(box: GitBox, outer: str, *args: str, **env: str) -> str:
    """Commit, through the shim or not; return the output of the hook."""
    git = GIT if outer == "bare" else box.shims / "git"
    began = time.monotonic()
    code, said = box.end(box.start(git, *args, **env))
    assert code == 0, said
    assert "waiting" not in said, said
    assert time.monotonic() - began < 30 * SCALE, "half of git_wait"
    lines = [line for line in said.splitlines() if line.startswith("LINT")]
    assert lines, said
    return lines[-1]


outers = pytest.mark.parametrize("outer", ["guarded", "bare"])


@outers
def test_commit(box: GitBox, outer: str) -> None:
    (box.repo / "a").write_text("two\n")
    box.bare("add", "a")
    (box.repo / "a").write_text("unstaged\n")  # pre-commit stashes it meanwhile
    assert _commit(box, outer, "commit", "-m", "x") == "LINT a=two index=two changed=a,"
    assert (box.repo / "a").read_text() == "unstaged\n"


@outers
def test_commit_all(box: GitBox, outer: str) -> None:
    (box.repo / "a").write_text("two\n")
    (box.repo / "b").write_text("two\n")
    assert _commit(box, outer, "commit", "-a", "-m", "x") == "LINT a=two index=two changed=a,b,"


@outers
def test_commit_a_file(box: GitBox, outer: str) -> None:
    (box.repo / "a").write_text("two\n")
    (box.repo / "b").write_text("two\n")
    box.bare("add", "b")
    assert _commit(box, outer, "commit", "-m", "x", "a") == "LINT a=two index=two changed=a,"
    assert box.bare("status", "--short") == "M  b\n"


@outers
def test_rebase_exec(box: GitBox, outer: str) -> None:
    (box.repo / "a").write_text("two\n")
    box.bare("commit", "-qam", "x", "--no-verify")
    run = f"{box.sandrun_text()} -- make lint"
    assert _commit(box, outer, "rebase", "-x", run, "HEAD~1") == "LINT a=two index=two changed="


@outers
def test_commit_patch(box: GitBox, outer: str) -> None:
    """On a terminal, one hunk taken and one left."""
    (box.repo / "a").write_text("two\n")
    (box.repo / "b").write_text("two\n")
    git = GIT if outer == "bare" else str(box.shims / "git")
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(box.repo)
        os.execve(git, [git, "commit", "-p", "-m", "x"], box.env)
    os.write(master, b"y\nn\n")
    said = b""
    while True:
        try:
            said += os.read(master, 65536)
        except OSError:
            break
    os.close(master)
    text = said.decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text
    assert "LINT a=two index=two changed=a," in text
    assert "waiting" not in text
    assert box.bare("status", "--short") == " M b\n"


@outers
def test_a_failing_hook_stops_the_commit(box: GitBox, outer: str) -> None:
    (box.repo / "Makefile").write_text("lint:\n\t@false\n")
    git = GIT if outer == "bare" else box.shims / "git"
    code, said = box.end(box.start(git, "commit", "-a", "-m", "x"))
    assert code == 1, said
    assert box.bare("log", "--format=%s", "-1") == "files\n"
    assert not (box.repo / ".git/index.lock").exists()
