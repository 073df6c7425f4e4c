"""The guard's shims for programs other than git that take git's locks: jj and git-annex.

git-annex is Debian's (`tests/setup tools`). jj is the real one if it is installed. A fake jj, which
takes the lock of the index as jj does, shows what does not depend on jj.
"""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sandrun.git import shim
from tests.entering import need
from tests.gitbox import GIT, GitBox, git_version, heard, is_queued, wait_for, watches
from tests.harness import PACKAGE, ROOT

STAND_IN = """#!/bin/sh
case $1 in version|--help) exit ;; esac
[ "$1" != git ] || exec git fetch -q .
set -C
: >"$(git rev-parse --git-path index.lock)" || exit 1
echo done
rm "$(git rev-parse --git-path index.lock)"
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[GitBox]:
    made = GitBox(tmp_path)
    made.env["PATH"] = f"{made.shims}:{made.env['PATH']}"
    yield made
    made.close()


def stand_before(box: GitBox, name: str, python: str = sys.executable) -> None:
    """Put our shim for a tool first on PATH."""
    path = box.shims / name
    text = shim.text if name == "git" else lambda sandrun: shim.other(name, sandrun)
    path.write_text(text(shim.launch(python, str(PACKAGE))))
    path.chmod(0o755)


@pytest.fixture(params=["jj", "git-annex", "a stand-in for jj"])
def tool(box: GitBox, request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name == "a stand-in for jj":
        name = "jj"
        (box.root / "tools").mkdir()
        (box.root / "tools/jj").write_text(STAND_IN)
        (box.root / "tools/jj").chmod(0o755)
        box.env["PATH"] += f":{box.root}/tools"
        if shutil.which("jj"):  # before the real one
            box.env["PATH"] = f"{box.shims}:{box.root}/tools:{box.env['PATH']}"
    else:
        need(name)
    for words in {"jj": (["jj", "git", "init", "--colocate"],),
                  "git-annex": (["git-annex", "init", "-q"],)}[name]:  # fmt: skip
        if request.param != "a stand-in for jj":
            assert box.end(box.start(*words))[0] == 0
    stand_before(box, name)
    return name


def work(tool: str) -> list[str]:
    return ["jj", "status"] if tool == "jj" else ["git-annex", "add", "b"]


def is_done(box: GitBox, tool: str, said: str) -> bool:
    """Whether it did its work; git-annex exits with 0 in any case."""
    return "b" in box.bare("ls-files").split() if tool == "git-annex" else bool(said)


@pytest.mark.parametrize("how", ["guarded", "bare"])
def test_the_tool_waits_for_another_git(box: GitBox, tool: str, how: str) -> None:
    (box.repo / "a").write_text("two\n")
    (box.repo / "b").write_text("b")
    commit, editor = ("commit", "-a"), box.editor("one")
    guarded = how == "guarded"
    start = box.guarded if guarded else partial(box.start, GIT)
    first = start(*commit, GIT_EDITOR=editor)
    box.reached("one")
    second = box.start(*work(tool))
    if guarded:
        wait_for(lambda: is_queued(second), "it queues behind the commit")
        assert "waiting for git commit -a (pid" in heard(second)
    else:
        wait_for(lambda: watches(second), "it waits for index.lock")
    box.let("one")
    assert box.end(first)[0] == 0
    code, said = box.end(second)
    assert code == 0, said
    assert is_done(box, tool, said), said


def test_the_tool_has_the_signal_dispositions_of_its_caller(box: GitBox) -> None:
    """Python ignores SIGPIPE and SIGXFSZ; the tool that it becomes must not."""
    (box.root / "tools").mkdir()
    script = box.root / "tools/jj"
    script.write_text("#!/bin/sh\nexec grep -E 'Sig(Ign|Blk)' /proc/self/status\n")
    script.chmod(0o755)
    bare = box.end(box.start(script))
    stand_before(box, "jj")
    box.env["PATH"] = f"{box.shims}:{box.root}/tools:{box.env['PATH']}"
    assert box.end(box.start("jj", "new")) == bare


def test_a_git_waits_for_the_tool(box: GitBox, tool: str) -> None:
    """The tool holds its turn while it lives: here as long as its editor or hook."""
    words = {"jj": ["jj", "describe"], "git-annex": ["git-annex", "sync"]}[tool]
    name = "one"
    if tool == "git-annex":
        box.hook("pre-commit", box.gate(name))
    elif (box.root / "tools").exists():
        script = STAND_IN.replace("echo done", box.gate(name))
        (box.root / "tools/jj").write_text(script)
    (box.repo / "a").write_text("two\n")
    first = box.start(*words, EDITOR=box.editor(name) if not _has_gate(box, name) else "")
    box.reached(name)
    second = box.guarded("add", "a")
    wait_for(lambda: is_queued(second), "git add queues")
    assert f"{words[0]} {words[1]} (pid {first.pid}," in heard(second)
    box.let(name)
    assert box.end(first)[0] == 0
    assert box.end(second)[0] == 0


def _has_gate(box: GitBox, name: str) -> bool:
    path = box.root / f"gate-{name}"
    return path.exists() and stat.S_ISFIFO(path.stat().st_mode)


def test_git_commands_of_the_tool_do_not_wait_for_it(box: GitBox, tool: str) -> None:
    box.bare("clone", "-q", "--bare", ".", str(box.root / "origin"))
    box.bare("remote", "add", "origin", str(box.root / "origin"))
    words = {"jj": ["jj", "git", "fetch"], "git-annex": ["git-annex", "sync"]}[tool]
    if tool == "jj" and not (box.root / "tools").exists() and git_version() < (2, 42):
        pytest.skip("needs jj beside git 2.42")
    done = box.start(*words, SANDRUN_GIT_WAIT="3600")
    code, said = box.end(done)
    assert code == 0, said
    assert "sandrun:" not in said


AROUND = """
import os
from sandrun.git import git_processes, repository
repo = repository.find(".", os.environ)
print(git_processes.enclosing_git(repo) == os.getppid(), os.getppid() in
git_processes.possible_owners(repo))
"""


@pytest.mark.parametrize("name", ["jj", "git-annex"])
def test_the_tool_counts_as_an_active_git(box: GitBox, name: str) -> None:
    """As an ancestor of git commands, which take turns among themselves, and as owner of a lock."""
    shell = box.root / name  # a program of that name, as the kernel sees it
    shutil.copy(os.path.realpath("/bin/sh"), shell)
    script = box.root / "script"
    script.write_text(f"{sys.executable} -c '{AROUND}'\n:\n")
    assert box.end(box.start(shell, script)) == (0, "True True\n")


def test_a_reading_command_of_the_tool_does_not_wait(box: GitBox, tool: str) -> None:
    first = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    for words in ([tool, "version"], [tool, "--help"]):
        code, said = box.end(box.start(*words))
        assert code == 0, said
        assert "sandrun:" not in said
    box.let("one")
    assert box.end(first)[0] == 0


def test_git_annex_started_by_git_holds_its_turn(box: GitBox) -> None:
    need("git-annex")
    assert box.end(box.start("git-annex", "init", "-q"))[0] == 0
    stand_before(box, "git-annex")
    (box.repo / "b").write_text("b")
    first = box.guarded("commit", "--allow-empty", GIT_EDITOR=box.editor("one"))
    box.reached("one")
    second = box.start("git", "annex", "add", "b")
    wait_for(lambda: is_queued(second), "git annex queues behind the commit")
    box.let("one")
    assert box.end(first)[0] == 0
    assert box.end(second)[0] == 0
    assert "b" in box.bare("ls-files").split()


@pytest.mark.parametrize("how", ["gone", "no python", "broken"])
@pytest.mark.parametrize("name", ["git", "jj"])
def test_without_sandrun_the_shim_warns_and_runs_the_tool(box: GitBox, name: str, how: str) -> None:
    (box.root / "tools").mkdir()
    (box.root / "tools/jj").write_text('#!/bin/sh\nexec git "$@"\n')
    (box.root / "tools/jj").chmod(0o755)
    copy = box.root / "copy"
    if how != "gone":
        (copy / "sandrun/cli").mkdir(parents=True)
        shutil.copy(ROOT / "sandrun/cli/launch.py", copy / "sandrun/cli")
        (copy / "sandrun/__init__.py").write_text("raise ImportError('half of it is missing')\n")
    python = "/nonesuch" if how == "no python" else sys.executable
    sandrun = shim.launch(python, str(copy))
    path = box.shims / name
    path.write_text(shim.text(sandrun) if name == "git" else shim.other(name, sandrun))
    path.chmod(0o755)
    (box.repo / "b").write_text("b")
    path_of_tools = f"{box.shims}:{box.root}/tools:{os.path.dirname(GIT)}:{os.environ['PATH']}"
    if name == "jj":
        (box.shims / "git").unlink()
    done = subprocess.run(
        [name, "add", "b"],
        cwd=box.repo,
        env={**box.env, "PATH": path_of_tools},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "b" in box.bare("ls-files").split()
    assert f"sandrun: {name} runs without its turn: sandrun is" in done.stderr
    assert "sandrun: hint: install it" in done.stderr
