"""What README shows of the ways in, where it cannot be run as it stands (see test_readme)."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sandrun.integrations import init
from tests.entering import makefile, need, put_on_path
from tests.harness import ROOT, Box
from tests.integration.test_readme import BLOCKS


def blocks(kind: str) -> "list[str]":
    return [text for found, text in BLOCKS if found == kind]


def test_the_include_line_is_the_one_that_init_writes(box: Box) -> None:
    (text,) = blocks("make")
    assert text == init.INCLUDE_LINE
    put_on_path(box)
    makefile(box, "all: ; @echo all $${SANDRUN_RUNS:+in a run}\n", include=text)
    assert box.run(argv=["make"]).stdout == "all in a run\n"


def test_each_line_for_a_shell_is_taken_by_it(box: Box) -> None:
    need("bash", "zsh", "fish")
    put_on_path(box)
    lines = "".join(blocks("bash")).splitlines()
    assert len(lines) == 6
    for line in lines:
        if "fish" in line:
            shells = [["fish", "--no-config", "-c"]]
        elif "completions" in line:
            shells = [["bash", "--norc", "-c"]]
        else:
            shells = [["bash", "--norc", "-c"], ["zsh", "-f", "-c"]]
        for shell in shells:
            script = line.replace("man -l -", "grep SANDRUN").replace(" bash)", f" {shell[0]})")
            done = box.run(f"{script}\n", argv=shell)
            assert (done.returncode, done.stderr) == (0, ""), line


def test_the_folder_that_mise_is_told_is_that_of_the_shims(box: Box) -> None:
    (text,) = blocks("mise")
    need("true")
    added = box.run("shims", "add", "true", env={"XDG_DATA_HOME": ""}).stdout
    assert added == f"{box.home}/.local/share/sandrun/shims/true\n"
    assert '"~/.local/share/sandrun/shims"' in text


def test_the_python_runs(box: Box) -> None:
    (text,) = blocks("python")
    shutil.copytree(ROOT / "tests/demo", box.project, dirs_exist_ok=True)
    done = box.run("-c", text, argv=[sys.executable], seconds=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("0 exit ")


def test_the_hooks_are_those_that_there_are(tmp_path: Path) -> None:
    hooks = (ROOT / ".pre-commit-hooks.yaml").read_text()
    (shown,) = [text for text in blocks("yaml") if "repos:" in text]
    (tmp_path / "config.yaml").write_text(shown)
    for verb, file in (
        ("validate-config", tmp_path / "config.yaml"),
        ("validate-manifest", ROOT / ".pre-commit-hooks.yaml"),
    ):
        words = [sys.executable, "-m", "pre_commit", verb, str(file)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "- id: sandrun\n" in shown
    assert "- id: sandrun\n" in hooks
    assert "- id: sandrun-files\n" in hooks


def test_nothing_installs_the_sandrun_of_pypi() -> None:
    """That is another project: what is installed is a path, a URL or our own distribution."""
    by_name = re.compile(r"\b(pip|pipx|uv|uvx)\b.*(install|uvx)\b.*[\s\"']sandrun([\[=<>~\s\"']|$)")
    assert by_name.search("      - run: pipx install sandrun   # from where you have it")
    places = ("README.md", ".pre-commit-hooks.yaml", "tests/setup", ".github", "vagrant", "sandrun")
    for place in places:
        top = ROOT / place
        for file in [top] if top.is_file() else top.rglob("*"):
            text = file.read_text(errors="replace") if file.is_file() else ""
            assert not [line for line in text.splitlines() if by_name.search(line)], file


def ci_example(name: str) -> str:
    (text,) = [text for text in blocks("yaml") if text.startswith(f"# {name}\n")]
    return text


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        ("github-workflows", ".github/workflows/test.yml"),
        ("github-workflows", ROOT / ".github/workflows/ci.yml"),
        ("github-workflows", ROOT / ".github/workflows/release.yml"),
        ("dependabot", ROOT / ".github/dependabot.yml"),
        ("gitlab-ci", ".gitlab-ci.yml"),
    ],
)
def test_what_ci_reads_fits_its_schema(tmp_path: Path, schema: str, name: "str | Path") -> None:
    """By the published schemas of JSON Schema Store, which the checker brings along."""
    need("check-jsonschema")
    file = Path(name)
    if isinstance(name, str):
        file = tmp_path / "example.yml"
        file.write_text(ci_example(name))
    checker = ["check-jsonschema", "--builtin-schema", f"vendor.{schema}"]
    done = subprocess.run([*checker, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    file = tmp_path / "wrong.yml"
    file.write_text("jobs: {test: {steps: 1}}\ntest: {script: 1}\n")
    assert subprocess.run([*checker, file], capture_output=True, check=False).returncode == 1


def test_the_example_for_github_is_a_step_that_we_take(box: Box) -> None:
    """The step only: nothing here runs a workflow."""
    words = ci_example(".github/workflows/test.yml").rpartition("run: sandrun ")[2].split()
    makefile(box, "test: ; @echo tested\n", include="")
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(box.root / "summary")}
    assert box.run(*words, env=github).stdout == "tested\n"
    assert "| `make test` | exit 0 |" in (box.root / "summary").read_text()


def test_the_example_for_gitlab_runs_as_a_pipeline(box: Box) -> None:
    """In gitlab-ci-local, which runs jobs as GitLab's shell executor does."""
    need("gitlab-ci-local", "rsync")
    put_on_path(box)
    pip = box.root / "bin/pip"  # before_script is to install nothing here
    pip.write_text('#!/bin/sh\necho pip "$@"\n')
    pip.chmod(0o755)
    makefile(box, "test: ; @echo tested; exit $${EXIT-0}\n", include="")
    (box.project / ".gitlab-ci.yml").write_text(ci_example(".gitlab-ci.yml"))
    for words in (["init", "-q"], ["add", "."]):
        assert box.run(*words, argv=["git"]).returncode == 0
    run = ["gitlab-ci-local", "--force-shell-executor", "test"]
    done = box.run(argv=run, seconds=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"test.* pip install git\+https://", done.stdout)
    assert re.search(r"test.* tested\n", done.stdout)
    told = r"sandrun: exit (\d+); waited .* s; ran .* s; peak memory .* of 4.0 GiB\n"
    assert re.findall(told, done.stdout + done.stderr) == ["0"]
    assert box.records()[-1]["command"] == ["make", "test"]
    makefile(box, "test: ; @exit 3\n", include="")
    done = box.run(argv=run, seconds=90)
    assert done.returncode != 0
    assert set(re.findall(told, done.stdout + done.stderr)) == {"2"}  # a failed job's log twice
