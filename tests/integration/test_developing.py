"""What people who change the code use: their hooks, their tasks, and the figures of coverage."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.harness import ROOT

pytestmark = [
    pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not in a clone"),
    pytest.mark.timeout(900),  # installs programs
]
MISSPELT = "recie" + "ve"  # or codespell would find it here
NONE: "Mapping[str, str]" = {}
CONFIG = ROOT / ".pre-commit-config.yaml"


def call(
    *words: "str | Path", cwd: Path = ROOT, env: "Mapping[str, str]" = NONE
) -> "tuple[int, str]":
    """The exit code, and all that was said; without what this test run tells its processes."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "COV", "SANDRUN"))}
    kept |= env
    done = subprocess.run(
        words, cwd=cwd, env=kept, capture_output=True, text=True, errors="replace", check=False
    )
    return done.returncode, done.stdout + done.stderr


def hooks() -> "dict[str, dict[str, list[str]]]":
    (repo,) = yaml.safe_load(CONFIG.read_text())["repos"]
    assert repo["repo"] == "local", "a hook from elsewhere would be cloned"
    return {hook["id"]: hook for hook in repo["hooks"]}


def test_the_hooks_check_as_lint_does() -> None:
    """With programs of one version: what a commit lets pass, CI lets pass."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned, imported = (
        {word for word in project["optional-dependencies"][extra] if "==" in word}
        for extra in ("dev", "test")
    )
    words = {word for hook in hooks().values() for word in hook["additional_dependencies"]}
    used = {word for word in words if "==" in word}
    assert used - imported == {word for word in pinned if not word.startswith("zizmor")}


def test_the_hooks_pass_on_a_clone_and_find_what_is_wrong(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (tmp_path / "gitconfig").write_text("[safe]\n\tdirectory = *\n")  # of another user, under sudo
    home = {
        "GIT_CONFIG_GLOBAL": str(tmp_path / "gitconfig"),
        "PRE_COMMIT_HOME": str(tmp_path / "home"),
    }
    assert call("git", "clone", "-q", "--no-hardlinks", ROOT, clone, env=home)[0] == 0
    shutil.copy(CONFIG, clone)
    run = (sys.executable, "-m", "pre_commit", "run", "--verbose")
    code, said = call(*run, "--all-files", cwd=clone, env=home)
    assert code == 0, said
    bad = clone / "sandrun/bad.py"
    bad.write_text(f"import os\ndef wrong( ) -> int:\n    return '{MISSPELT}'\n")
    assert call("git", "add", "sandrun/bad.py", cwd=clone)[0] == 0
    code, said = call(*run, cwd=clone, env=home)
    failed = set(re.findall(r"hook id: (\S+)\n(?:- duration: .*\n)?- exit code", said))
    assert "F401" in said
    assert f"{MISSPELT} ==> receive" in said
    assert re.search(r"bad\.py:\d+: error", said)
    assert failed >= {"ruff", "mypy", "codespell"}, said
    assert re.search(r"ruff format\.+Failed", said), said


def test_each_task_is_listed_and_is_a_command_that_there_is() -> None:
    code, said = call(sys.executable, "-m", "nox", "-l")
    assert code == 0, said
    listed = set(re.findall(r"^[*-] (\S+) -> \S", said, re.MULTILINE))
    once = {"lint", "test", "coverage", "bench", "dist", "lab", "wine", "ci"}
    assert listed == once | {f"matrix-3.{minor}" for minor in range(11, 15)}
    text = (ROOT / "noxfile.py").read_text()
    modes = set(re.findall(r'"tests/setup", "(\w+)"', text))
    assert modes <= set(re.findall(r"^(\w+)\) ", (ROOT / "tests/setup").read_text(), re.MULTILINE))
    for program in re.findall(r'run\(session, "([\w./-]+)"', text):
        assert os.access(ROOT / program, os.X_OK), program


@pytest.mark.parametrize("task", ["test", f"matrix-3.{sys.version_info.minor}"])
def test_one_test_runs_by_its_task(task: str, tmp_path: Path) -> None:
    words = ("-m", "nox", "--envdir", tmp_path / "nox", "-s", task, "--")
    code, said = call(sys.executable, *words, "tests/unit/test_options.py", "-q", "-k", "sizes")
    assert code == 0, said
    assert re.search(r"\d+ passed", said), said
    assert f"Session {task} was successful" in said


def test_lint_runs_by_its_task() -> None:
    code, said = call(sys.executable, "-m", "nox", "-s", "lint")
    assert code == 0, said
    assert "All checks passed!" in said
    assert "Session lint was successful" in said


def test_coverage_counts_what_ran_in_processes_of_sandrun() -> None:
    """Also in those that end by os._exit, that were forked, or that became another program."""
    tests = (
        "integration/test_queue.py::test_concurrent_runs_take_turns_in_order",
        "integration/test_queue.py::test_a_killed_supervisor_leaves_nothing_and_the_next_starts",
        "integration/test_git_guard.py::test_a_guarded_git_waits_for_another",
    )
    words = (f"tests/{test}" for test in tests)
    code, said = call(ROOT / "tests/setup", "coverage", "-q", *words)
    assert code == 0, said
    rows = [line.split() for line in said.splitlines() if re.search(r"\d%$", line)]
    covers = [int(row[-1].rstrip("%")) for row in rows if row[0] != "TOTAL"]
    assert covers == sorted(covers, reverse=True)
    assert rows[-1][0] == "TOTAL"
    shown = {row[0]: int(row[-1].rstrip("%")) for row in rows}
    for name in ("runner", "posix_supervisor", "posix_keeper", "posix_waiter", "wrapper"):
        (cover,) = [cover for file, cover in shown.items() if file.endswith(f"/{name}.py")]
        assert cover > 20, (name, said)
    assert shown["sandrun/doctor/posix.py"] == 0  # nobody asked for it
    assert not [file for file in shown if "windows" in file or "site-packages" in file]
