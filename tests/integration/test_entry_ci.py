"""What the pages of a CI show: GitHub's annotations and summary, GitLab's log."""

import os
import re
import sys

import pytest

from tests.harness import Box

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.types import Record

HOG = "kept = [bytearray(b'x') * (1 << 20) for step in range(300)]"


@pytest.fixture
def github(box: Box) -> Box:
    box.env |= {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(box.root / "summary")}
    return box


def summary(box: Box) -> "list[str]":
    return (box.root / "summary").read_text().strip().splitlines()


def test_each_run_is_a_row_of_the_summary(github: Box) -> None:
    github.run("--", "sh", "-c", "exit 3")
    github.run("--", "echo", "a|b", "`c`")
    header, rule, first, second = summary(github)
    assert header.startswith("| sandrun | result | waited | ran | peak memory | limit |")
    assert header.endswith("| limit | backend | memory over time | suggested |")
    assert rule == "|---|---|---|---|---|---|---|---|---|"
    assert first.startswith("| `sh -c 'exit 3'` | exit 3 | 0.0 s |")
    assert second.startswith("| `echo 'a\\|b' ''c''` | exit 0 |")


def test_other_rows_of_the_summary_are_kept(github: Box) -> None:
    (github.root / "summary").write_text("# Mine\n")
    github.run("--", "true")
    assert summary(github)[0] == "# Mine"
    assert len(summary(github)) == 5


def test_a_limit_is_an_error_on_a_line_of_its_own(github: Box) -> None:
    words = ["-m", "50M", "--backend", "rlimit", "--", sys.executable, "-c", HOG]
    done = github.run(*words)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("::error ")]
    assert line.startswith("::error title=sandrun%3A memory limit reached::")
    assert "of 50.0 MiB)" in line
    assert "| memory limit reached |" in summary(github)[-1]
    late = github.run("-t", "100ms", "--", "sh", "-c", "exec sleep 9 # 100%\n")
    (line,) = [line for line in late.stderr.splitlines() if line.startswith("::error ")]
    assert "wall time limit reached::" in line
    assert "100%25" in line


GROWING = """
import time
kept = []
for step in range(300):
    kept.append(bytearray(b"x") * (1 << 20)); time.sleep(0.04)
"""


@pytest.mark.parametrize("place", ["rlimit", "auto"])
def test_the_memory_is_a_sparkline_beside_the_suggestion(
    make_box: "Callable[[str], Box]", place: str
) -> None:
    box = make_box(place)
    page = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(box.root / "summary")}
    words = ["-m", "50M", "--", sys.executable, "-c", GROWING]
    done = box.run(*words, env=page)
    curve, suggested = summary(box)[-1].split(" | ")[-2:]
    assert set(curve) <= set("▁▂▃▄▅▆▇█") and curve.endswith("█")
    assert suggested == "`--memory 100M` |"
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("::error ")]
    assert line.endswith("; suggested: --memory 100M")
    said = box.run(*words, env={"GITLAB_CI": "true"}).stderr.splitlines()[-1]
    assert re.search(r"; memory [▁-█]+█; suggested: ", said), said
    assert said.endswith("; suggested: --memory 100M")


def test_a_failure_of_sandrun_is_an_error_too(github: Box) -> None:
    done = github.run("--project", "/nonesuch", "--", "true")
    assert "::error title=sandrun failed::--project /nonesuch: no such directory" in done.stderr


def test_a_long_wait_is_a_notice(github: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandrun.integrations import ci

    written: list[str] = []
    monkeypatch.setattr("sandrun.messages.write", written.append)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    record: Record = {"reason": "exit", "exit": 0, "command": ["make"], "wall": 1.0}
    for record["wait"] in (ci.LONG_WAIT - 1, ci.LONG_WAIT):
        ci.ended(record)
    assert written == ["::notice title=sandrun%3A long wait::make waited 60 s for its turn\n"]


def test_a_run_inside_is_not_shown_again(github: Box) -> None:
    github.run("--", "sh", "-c", 'sandrun=$0; exec "$@"', "x", *launch(github, "--", "true"))
    assert len(summary(github)) == 3


def launch(box: Box, *words: str) -> "list[str]":
    from tests.harness import launcher

    return [*launcher(), *words]


def test_a_summary_that_cannot_be_written_fails_nothing(github: Box) -> None:
    fifo = github.root / "fifo"  # which would block a reader or a writer
    os.mkfifo(fifo)
    for file in ("/nonesuch/summary", github.root, fifo):
        done = github.run("--", "true", env={"GITHUB_STEP_SUMMARY": str(file)})
        assert (done.returncode, done.stderr) == (0, "")


def test_gitlab_has_a_line_in_its_log(box: Box) -> None:
    done = box.run("--", "sh", "-c", "exit 3", env={"GITLAB_CI": "true"})
    assert done.returncode == 3
    assert done.stderr.startswith("sandrun: exit 3; waited 0.0 s; ran 0.")
    assert box.run("-q", "--", "true", env={"GITLAB_CI": "true"}).stderr == ""
    assert box.run("--", "true").stderr == ""
