"""`sandrun git` below another git: in hooks, aliases and pagers; which ancestors it waits for."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gitbox import GIT, GitBox, wait_for
from tests.harness import SCALE


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    made = GitBox(tmp_path)
    yield made
    made.close()


HOOKS = {
    "plain": "{sandrun} git tag inside",
    # The proof is the chain of our ancestors, not the environment.
    "clean": "env -i PATH={path} PYTHONPATH={root} {sandrun} git tag inside",
    "shim": "PATH={shims}:$PATH; git tag inside",
    "detour": "sh -c 'nice {sandrun} git tag inside; exit $?'",
    "stash": "{sandrun} git tag inside && {sandrun} git stash list",
}


@pytest.mark.parametrize("outer", ["guarded", "bare"])
@pytest.mark.parametrize("inner", HOOKS)
def test_a_git_in_a_hook_does_not_wait(box: GitBox, inner: str, outer: str) -> None:
    text = HOOKS[inner].format(
        sandrun=box.sandrun_text(),
        path=box.env["PATH"],
        root=box.env.get("PYTHONPATH", ""),
        shims=box.shims,
    )
    box.hook("pre-commit", text)
    (box.repo / "a").write_text("two\n")
    command = ["commit", "-q", "-a", "-m", "x"]
    began = time.monotonic()
    process = box.guarded(*command) if outer == "guarded" else box.start(GIT, *command)
    code, said = box.end(process)
    assert (code, said) == (0, "")
    assert time.monotonic() - began < 30 * SCALE, "half of git_wait"
    assert box.bare("tag").split() == ["inside"]


@pytest.mark.parametrize("outer", ["guarded", "bare"])
def test_the_lock_of_an_ancestor_is_not_waited_for(box: GitBox, outer: str) -> None:
    """In a hook without the commit's index git fails at once, as it does without sandrun."""
    clean = f"env -i PATH={box.env['PATH']} PYTHONPATH={box.env.get('PYTHONPATH', '')}"
    inner = f"{clean} {box.sandrun_text()} git add a >{box.root}/said 2>&1"
    box.hook("pre-commit", f"test -e .git/index.lock || exit 3; {inner}; test $? = 128")
    (box.repo / "a").write_text("two\n")
    command = ["commit", "-q", "-a", "-m", "x"]
    process = box.guarded(*command) if outer == "guarded" else box.start(GIT, *command)
    assert box.end(process) == (0, "")
    said = (box.root / "said").read_text()
    assert said.startswith("fatal: Unable to create")
    assert "sandrun" not in said


def test_add_and_stash_inside_a_commit(box: GitBox) -> None:
    """As a hook that fixes files does; its index is the commit's."""
    sandrun = box.sandrun_text()
    box.hook("pre-commit", f"echo fixed >a && {sandrun} git add a && {sandrun} git stash list")
    (box.repo / "a").write_text("two\n")
    assert box.git("commit", "-q", "-a", "-m", "x") == (0, "")
    assert box.bare("show", "HEAD:a") == "fixed\n"


def test_siblings_inside_a_git_take_turns(box: GitBox) -> None:
    """`git config` does not wait for its lock: without turns, some of these fail."""
    sandrun = box.sandrun_text()
    loop = " ".join(f"{number}" for number in range(12))
    each = f"{sandrun} git config s.v$n $n || echo $n >>{box.root}/failed"
    box.hook("pre-commit", f"for n in {loop}; do ({each}) & done; wait")
    assert box.git("commit", "-q", "--allow-empty", "-m", "x")[0] == 0
    assert not (box.root / "failed").exists()
    assert len(box.bare("config", "--get-regexp", "^s[.]v").splitlines()) == 12


def test_below_a_git_of_another_repository_a_git_waits(box: GitBox) -> None:
    other = box.make(box.root / "other")
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    inner = f"env -u GIT_DIR -u GIT_PREFIX {box.sandrun_text()} git -C {box.repo} add a"
    process = box.start(
        GIT, "-c", f"alias.x=!echo $$ >{box.root}/pid; exec {inner}", "x", cwd=other
    )
    wait_for((box.root / "pid").exists, "the inner git starts")
    wait_for(lambda: _is_queued_in_session(process.pid), "the inner git waits")
    box.let("one")
    assert box.end(holder)[0] == 0
    assert box.end(process)[0] == 0


def _is_queued_in_session(session: int) -> bool:
    with open("/proc/locks") as file:
        rows = [row.split() for row in file if "-> POSIX" in row]
    return any(os.getsid(int(row[row.index("->") + 4])) == session for row in rows)


def test_below_a_reading_git_a_git_waits(box: GitBox) -> None:
    """For example, from the pager of `git log`."""
    holder = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    process = box.start(
        GIT, "grep", f"-O{box.sandrun_text()} git add #", "one", GIT_PAGER_IN_USE="1"
    )
    wait_for(lambda: _is_queued_in_session(process.pid), "the inner git waits")
    box.let("one")
    assert box.end(holder)[0] == 0
    box.end(process)
