"""What README shows is true: its commands run, its tables list what there is.

The two set-up commands are executed by tests/fresh/run, in a clean Debian root.
"""

import re
import shutil

import pytest

from sandrun.config import options
from tests.harness import ROOT, Box, launcher

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("script", [text for kind, text in BLOCKS if kind == "sh"])
def test_each_command_runs_on_the_demo_project(box: Box, script: str) -> None:
    shutil.copytree(ROOT / "tests/demo", box.project, dirs_exist_ok=True)
    bin = box.root / "bin"
    bin.mkdir()
    words = " ".join(f"'{word}'" for word in launcher())
    (bin / "sandrun").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    (bin / "python3").write_text(f'#!/bin/sh\nexec {launcher_python()} "$@"\n')
    for file in bin.iterdir():
        file.chmod(0o755)
    env = {"PATH": f"{bin}:{box.env['PATH']}", "SANDRUN_BACKEND": "auto"}
    done = box.run(f"set -e\n{script}", argv=["sh", "-c"], env=env, seconds=120)
    assert done.returncode == 0, done.stdout + done.stderr


def launcher_python() -> str:
    import sys

    return sys.executable


def test_the_settings_file_is_understood(box: Box) -> None:
    (text,) = [text for kind, text in BLOCKS if kind == "toml"]
    (box.project / "sandrun.toml").write_text(text)
    shown = box.run("config")
    assert shown.stderr == ""
    assert len(re.findall(r"sandrun\.toml$", shown.stdout, re.MULTILINE)) == len(text.splitlines())


def test_the_table_lists_every_setting_with_its_flags_and_variable() -> None:
    rows = [row for row in README.splitlines() if row.startswith("| `") and row.count("|") == 6]
    for option in options.OPTIONS:
        (row,) = [row for row in rows if f"`{option.key}`" in row.split("|")[1]]
        _, _, flags, variable, *_ = row.split("|")
        assert all(f"`{flag}`" in flags for flag in option.flags), option.key
        assert variable.strip() == (f"`{option.variable}`" if option.variable else ""), option.key
    assert sum(row.split("|")[1].count("`") // 2 for row in rows) == len(options.OPTIONS)


def test_readme_and_help_list_the_same_exit_codes(box: Box) -> None:
    helped = box.run("--help").stdout
    table = README.partition("## Exit codes")[2].partition("\n## ")[0]
    for code in ("75", "124", "125", "126", "127", "137", "128+n"):
        assert re.search(rf"^\|.*\b{re.escape(code)}", table, re.MULTILINE), code
        assert re.search(rf"^ +{re.escape(code)}\b", helped, re.MULTILINE), code
