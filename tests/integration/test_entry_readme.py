"""What README shows of the ways in, where it cannot be run as it stands (see test_readme)."""

import shutil
import sys

from sandrun.entry import init
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


def test_the_hooks_are_those_that_there_are() -> None:
    hooks = (ROOT / ".pre-commit-hooks.yaml").read_text()
    (shown,) = [text for text in blocks("yaml") if "repos:" in text]
    assert "- id: sandrun\n" in shown
    assert "- id: sandrun\n" in hooks
    assert "- id: sandrun-files\n" in hooks


def test_the_step_for_ci_is_a_command_line_that_we_take(box: Box) -> None:
    (shown,) = [text for text in blocks("yaml") if "steps:" in text]
    words = shown.partition("run: sandrun ")[2].split()
    makefile(box, "test: ; @echo tested\n", include="")
    assert box.run(*words).stdout == "tested\n"
