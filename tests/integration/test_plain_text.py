"""Names of others' choosing reach people as text: no escape acts on their terminal, no line of
theirs looks like ours, and no CI service obeys them.
"""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from sandrun import model
from tests.harness import Box, wait_for

HOSTILE = "a\x1b[31m\nsandrun: hint: rm\r::error::x\u202e##[add-mask]y\u2028z"
SHOWN = r"a\x1b[31m\nsandrun: hint: rm\r::error::x\u202e# #[add-mask]y\u2028z"
NAMES = {
    "escape": "a\x1b]0;title\x07b",
    "line": "a\nsandrun: hint: do evil\n::error::x",
    "return": "a\rsection_start:1:x\r\x1b[0K",
    "mask": "##[add-mask]a ##vso[task.setvariable]b",
    "direction": "a\u202eb\u2066c",
    "bytes": os.fsdecode(b"a\xff\x9b31m"),
}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("plain, grüße, 日本", "plain, grüße, 日本"),
        ("::error::x", r"\x3a:error::x"),
        ("  ::add-mask::x", r"\x3a:add-mask::x"),
        (os.fsdecode(b"\xff"), r"\xff"),
        ("##", "##"),
        ("x" * 5000, "x" * 4000 + "…"),
    ],
)
def test_the_filter(text: str, shown: str) -> None:
    assert model.plain(text) == shown
    assert model.plain(text).isprintable()


def is_ours(text: str, start: str = "sandrun: ") -> bool:
    """Whether all is lines of ours, in characters that act on nothing."""
    lines = text.split("\n")
    assert lines.pop() == ""
    return all(
        line.isprintable() and line.startswith(start) and "##[" not in line and "##vso[" not in line
        for line in lines
    )


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return NAMES[request.param]


@pytest.mark.parametrize(
    "word",
    ["a b", "it's", "é ü", "\udcff 1", "é\udcff0", "a\n\tb\\n", "測\x1b[31m試", "\u2066x'\\"],
)
def test_a_shell_reads_a_command_as_it_was(word: str) -> None:
    """Also what is no text, such as a file's name in a hint that removes it."""
    line = model.command_text(["printf", "%s", word])
    assert line.isprintable()
    done = subprocess.run(["bash", "-c", os.fsencode(line)], capture_output=True, check=True)
    assert done.stdout == os.fsencode(word)


def test_names_of_directories_and_settings(box: Box, name: str) -> None:
    project = box.project / name
    project.mkdir()
    key = json.dumps(name if name.isprintable() or "\udcff" not in name else "bytes")
    (project / "sandrun.toml").write_text(
        f"{key} = 1\nqueue = {key}\nmemory = {key}\nbackend = {key}\n"
    )
    box.env["SANDRUN_BACKEND"] = ""
    for words in (["-v", "--", "true"], ["--", "true"], ["status"], ["config"], ["doctor"],
                  ["trust"], ["trust", "--list"]):  # fmt: skip
        done = box.run(*words, cwd=project, seconds=90)
        assert done.stderr == "" or is_ours(done.stderr), words
        assert is_ours(done.stdout, "") if done.stdout else True, words
        assert "\n::" not in "\n" + done.stdout + done.stderr
    status = json.loads(box.run("status", "--json", cwd=project).stdout)
    assert status["v"] == 1


def test_names_of_queues_and_commands(box: Box, name: str) -> None:
    first = box.hold("one", "--queue", name)
    waiter = box.start("--queue", name, "-v", "--", "env", f"x={name}", "true")
    wait_for(lambda: "waiting" in box.heard(waiter), 20)
    for words in (["status"], ["status", "--all"], ["config"], ["queue"]):
        done = box.run("--queue", name, *words)
        assert is_ours(done.stdout, "") and "\n::" not in done.stdout, words
    box.let("one")
    assert box.finish(first).returncode == 0
    done = box.finish(waiter)
    assert done.returncode == 0
    assert is_ours(done.stderr)


def test_a_command_that_is_not_there(box: Box, name: str) -> None:
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(box.root / "summary")}
    for env in ({}, github, {"GITLAB_CI": "true"}):
        done = box.run("--", name, env=env)
        assert done.returncode in (126, 127)  # PATH may have a directory that is not for us
        assert is_ours(done.stderr)
    summary = (box.root / "summary").read_text()
    assert len(summary.splitlines()) == 4 and summary.replace("\n", "").isprintable()


def test_names_of_processes_in_what_is_said_of_a_run(box: Box, name: str) -> None:
    """Of one that the command leaves behind, and of an annotation on a limit."""
    github = {"GITHUB_ACTIONS": "true", "SANDRUN_BACKEND": "rlimit"}
    shown = name.replace("\n", " ") if "\udcff" not in name else name
    tool = box.root / "tool"
    tool.write_text("#!/bin/sh\nsleep 1000\n")
    tool.chmod(0o755)
    script = 'setsid "$0" "$1" </dev/null >/dev/null 2>&1 & sleep 0.3'
    done = box.run("--", "sh", "-c", script, str(tool), shown, env=github)
    assert "left behind" in done.stderr
    assert is_ours(done.stderr)
    done = box.run("-t", "0.1", "--", "sleep", "1000", shown, env=github)
    assert done.returncode in (1, 124)
    lines = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert all(line.isprintable() and line.startswith("::error title=sandrun") for line in lines)


def test_the_live_line_of_a_waiter(box: Box, tmp_path: Path) -> None:
    """On a terminal, where it is drawn again and again."""
    import pty

    box.hold("one", "--queue", "q", env={"X": "1"})
    leader, terminal = pty.openpty()
    try:
        env = {"TERM": "xterm"}
        place = box.project / "dir\x1b[31m\nx"
        place.mkdir()
        waiter = box.start("--queue", "q", "--", "true", env=env, stderr=terminal, cwd=place)
        seen = b""
        while b"waiting" not in seen:
            seen += os.read(leader, 4096)
        assert b"\x1b[31m" not in seen
        waiter.send_signal(signal.SIGINT)
        waiter.wait(20)
    finally:
        os.close(leader)
        os.close(terminal)


def test_other_users_processes_and_git(box: Box) -> None:
    """Whose git is waited for is told by its command line."""
    subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    lock = box.project / ".git/index.lock"
    opener = box.start(
        "-c", f"exec 9>{lock}; sleep 1000 '\x1b[31m\n::error::x' & wait", argv=["sh"]
    )
    wait_for(lock.exists, 20)
    done = box.run("--git-wait", "1", "--", "true")
    assert "index.lock" in done.stderr
    assert is_ours(done.stderr)
    opener.kill()
