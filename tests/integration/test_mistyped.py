"""A command that cannot be executed is refused before the wait, and what was meant is named."""

import sys
import time
from pathlib import Path

import pytest

from tests.harness import Box, wait_for


@pytest.fixture
def busy(box: Box) -> Box:
    """A box whose queue has a run that does not end; PATH has a folder of the project's too."""
    box.hold("one")
    return box


def tool(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\necho it ran\n")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        (["stauts"], 127, "did you mean: sandrun status"),
        (["--", "stauts"], 127, "did you mean: sandrun status"),
        (["help"], 127, "did you mean: sandrun --help"),
        (["version"], 127, "did you mean: sandrun --version"),
        (["run", "make", "a b"], 127, "did you mean: sandrun -- make 'a b'"),
        (["--", "mkdri", "x"], 127, "did you mean: sandrun -- mkdir"),
        (["make && make test"], 127, "sandrun -- sh -c 'make && make test'"),
        (["--", "make test", "-j 2"], 127, "sandrun -- sh -c"),
        (["--", "true|cat"], 127, "sandrun -- sh -c 'true|cat'"),
        (["make -C ./src test"], 127, "sandrun -- sh -c 'make -C ./src test'"),
        (["./configure && make"], 127, "sandrun -- sh -c './configure && make'"),
        (["cd build; ./x"], 127, "sandrun -- sh -c 'cd build; ./x'"),
        (["cd", "src"], 127, "sandrun -- sh -c 'cd src'"),
        (["FOO=1", "make"], 127, "sandrun -- env NAME=VALUE COMMAND"),
        (["configure"], 127, "did you mean: sandrun -- ./configure"),
        (["--", "no-such-command-here"], 127, ""),
        (["--", ""], 127, ""),
        (["--", "/no/such/file"], 127, ""),
        (["--", "/etc/passwd"], 126, ""),
        (["--", "./notes"], 126, ""),
        (["--", "./folder"], 126, ""),
        (["--no-wait", "--", "stauts"], 127, "did you mean"),
        (["--wait-timeout", "1h", "--", "stauts"], 127, "did you mean"),
    ],
)
def test_what_cannot_be_executed_does_not_wait(
    box: Box, words: "list[str]", code: int, hint: str
) -> None:
    """The same answer as in a free queue, and a record of it."""
    tool(box.project / "configure")
    tool(box.project / "notes", 0o644)
    (box.project / "folder").mkdir()
    free = box.run(*words)
    if words[-1] == "./notes":
        time.sleep(1.1)  # older than the run, whose ticket tells seconds
    box.hold("one")
    done = box.run(*words)
    assert (free.returncode, done.returncode) == (code, code), done.stderr
    assert done.stderr == free.stderr
    assert hint in done.stderr and ("hint:" in done.stderr) == bool(hint), done.stderr
    assert [record["reason"] for record in box.records()] == ["not-started"] * 2
    assert len(box.view()) == 1


@pytest.mark.parametrize(
    "name",
    ["./build/tool", "build/tool", "../elsewhere/tool", "{project}/build/tool", "tool", "a tool/x"],
)
def test_what_a_run_ahead_may_make_is_waited_for(busy: Box, name: str) -> None:
    """Also a word, where PATH leads into the project."""
    env = {"PATH": f"{busy.project}/build:{busy.env['PATH']}"}
    waiter = busy.start("--", name.format(project=busy.project), env=env)
    wait_for(lambda: "waiting, position 2 of 2" in busy.heard(waiter), 20)
    assert "because what runs now may create it" in busy.heard(waiter)
    tool(busy.project / "build/tool")
    tool(busy.root / "elsewhere/tool")
    tool(busy.project / "a tool/x")
    busy.let("one")
    done = busy.finish(waiter)
    assert (done.returncode, done.stdout) == (0, "it ran\n")


def test_a_missing_interpreter_is_named(box: Box) -> None:
    """exec says ENOENT of a file that is there."""
    tool(box.project / "tool").write_text("#!/no/such/interpreter\n")
    done = box.run("--", "./tool")
    assert done.returncode == 127
    assert "but the interpreter that its first line (#!) names does not" in done.stderr


def test_a_file_in_the_making_is_waited_for(busy: Box) -> None:
    """A linker makes its output executable last."""
    file = tool(busy.project / "tool", 0o644)
    waiter = busy.start("--", "./tool")
    wait_for(lambda: "waiting, position 2 of 2" in busy.heard(waiter), 20)
    file.chmod(0o755)
    busy.let("one")
    assert busy.finish(waiter).stdout == "it ran\n"


def test_it_is_known_before_the_wait_for_memory(box: Box) -> None:
    box.env |= {"SANDRUN_POOL": "300M", "SANDRUN_BACKEND": "rlimit"}
    box.hold("one", "-m", "300M", "--queue", "other")
    done = box.run("-m", "200M", "--", "stauts")
    assert (done.returncode, "waiting" in done.stderr) == (127, False)


def test_it_is_known_before_the_wait_for_a_git(box: Box) -> None:
    """What a checkout that is at work may bring is waited for."""
    box.run("init", "-q", argv=["git"])
    lock = box.project / ".git/index.lock"
    lock.touch()
    assert box.run("--git-wait", "1h", "--", "stauts").returncode == 127
    waiter = box.start("--git-wait", "1h", "--", "./new-tool")
    wait_for(lambda: "index.lock" in box.heard(waiter), 20, "it waits")
    tool(box.project / "new-tool")
    lock.unlink()
    done = box.finish(waiter)
    assert (done.returncode, done.stdout) == (0, "it ran\n")


def test_the_python_api_says_the_same(busy: Box) -> None:
    code = "import sandrun; outcome = sandrun.run(['stauts']); print(outcome.code, outcome.reason)"
    done = busy.run("-c", code, argv=[sys.executable])
    assert (done.returncode, done.stdout) == (0, "127 not-started\n")
    assert "did you mean: sandrun status" in done.stderr
