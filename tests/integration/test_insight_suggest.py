"""`sandrun suggest --apply`: what it writes, what it keeps, and what is in force then."""

import json
import os
import sys
from pathlib import Path

import pytest

from sandrun.model import MIB
from tests.harness import Box
from tests.integration.test_insight_history import record, validated, write

PEAKS = (100, 200, 1229, 1000, 900)
WRITTEN = {"memory": '"1792M"', "timeout": '"1m"', "pids": "256"}


@pytest.fixture(autouse=True)
def runs(box: Box) -> None:
    write(
        box,
        *(
            record(number, project=str(box.project), peak=peak * MIB)
            for number, peak in enumerate(PEAKS)
        ),
    )


def apply(box: Box, **more: str) -> "list[str]":
    done = box.run("suggest", "--apply", env=more)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if "suggest" not in line and line[:1] == "/"]


def test_a_suggestion_has_its_evidence_and_can_be_pasted(box: Box) -> None:
    text = box.run("suggest").stdout
    assert "# highest of 5 runs: 1.2 GiB (make test, " in text
    (box.project / "sandrun.toml").write_text(text)
    shown = box.run("config")
    assert shown.stderr == ""
    assert shown.stdout.count(f"{box.project}/sandrun.toml") == 3
    answer = validated(box, "suggest", "suggest", "--json")
    assert answer["memory"] == 1792 * MIB
    assert answer["settings"] == {"memory": "1792M", "timeout": "1m", "pids": 256}


def test_too_few_runs_write_nothing(box: Box) -> None:
    write(box, record(1, project=str(box.project)))
    done = box.run("suggest", "--apply")
    assert done.returncode == 0
    assert "# no memory: only 1 run with a known peak; 5 are needed" in done.stdout
    assert "nothing to write: too few runs" in done.stdout
    assert not os.listdir(box.project)


def test_a_new_file_is_written_once(box: Box) -> None:
    (line,) = apply(box)
    file = box.project / "sandrun.toml"
    assert line.startswith(f'{file}: memory = "1792M", timeout = "1m", pids = 256')
    assert file.read_text() == "".join(f"{k} = {v}\n" for k, v in WRITTEN.items())
    inode = file.stat().st_ino
    assert "nothing to change" in box.run("suggest", "--apply").stdout
    assert file.stat().st_ino == inode


FILES = {
    "comments": ('# mine\nmemory = "3G"  # why\n\n[later]\nx = 1\n', "sandrun.toml"),
    "an equal value": ('memory = 1792 # MiB\npids = 256\ntimeout = "60s"\n', "sandrun.toml"),
    "windows": ("# a\r\nmemory = 512\r\n# b\r\n", "sandrun.toml"),
    "a mark": ("\ufeff# a\nmemory = 512\n", "sandrun.toml"),
    "no last line end": ('grace = "9s"', "sandrun.toml"),
    "a table": ('[project]\nname = "x"\n[tool.sandrun]\n# c\npids = 9\n[tool.z]\na=1\n', "p"),
    "dotted": ('tool.sandrun.memory = "1G" # c\n', "p"),
    "in line": ('tool = {sandrun = {memory = "1G"}, z = {a = 1}}\n', "p"),
}


@pytest.mark.parametrize("name", FILES)
def test_comments_and_all_else_are_kept(box: Box, name: str) -> None:
    import tomllib

    before, where = FILES[name]
    file = box.project / ("pyproject.toml" if where == "p" else where)
    file.write_bytes(before.encode())
    file.chmod(0o640)
    said = apply(box)
    after = file.read_bytes().decode()
    if name == "an equal value":
        assert after == before
        assert not said
        return
    (line,) = said
    assert line.startswith(f"{file}: ")
    for comment in ("# mine", "# why", "# a", "# b", "# c"):
        assert (comment in after) is (comment in before)
    assert after.count("\r\n") == (after.count("\n") if "\r\n" in before else 0)
    old, new = (tomllib.loads(text.removeprefix("\ufeff")) for text in (before, after))
    if where == "p":
        old, new = old["tool"], new["tool"]
        assert old.pop("z", 0) == new.pop("z", 0)
        old, new = old["sandrun"], new["sandrun"]
    assert new == {**old, "memory": "1792M", "timeout": "1m", "pids": 256}
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in box.project.iterdir()] == [file.name]
    assert box.run("config").stdout.count(str(file)) >= 3


def test_a_link_stays_a_link(box: Box) -> None:
    real = box.project / "config" / "limits.toml"
    real.parent.mkdir()
    real.write_text("# here\n")
    link = box.project / "sandrun.toml"
    link.symlink_to("config/limits.toml")
    apply(box)
    assert link.is_symlink()
    assert real.read_text().startswith("# here\nmemory")


@pytest.mark.parametrize("kind", ["outside", "broken", "invalid", "directory", "not utf-8"])
def test_a_file_that_cannot_be_edited_is_left_alone(box: Box, kind: str) -> None:
    file = box.project / "sandrun.toml"
    outside = box.root / "outside.toml"
    outside.write_text("# theirs\n")
    if kind == "outside":
        file.symlink_to(outside)
    elif kind == "broken":
        file.symlink_to("nowhere")
    elif kind == "directory":
        file.mkdir()
    else:
        file.write_bytes(b"memory = = 1\n" if kind == "invalid" else b"# \xff\n")
    done = box.run("suggest", "--apply")
    assert done.returncode == 125
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr
    assert outside.read_text() == "# theirs\n"
    if kind in ("invalid", "not utf-8"):
        assert b"1792M" not in file.read_bytes()


def test_what_is_not_in_force_is_said(box: Box) -> None:
    own = box.home / "config/sandrun/config.toml"
    own.parent.mkdir(parents=True)
    own.write_text('memory = "1G"\n')
    done = box.run("suggest", "--apply", env={"TIMEOUT": "5"})
    file = box.project / "sandrun.toml"
    trust = f"sandrun trust {file}"
    assert f"memory is looser than in your own file: in force after {trust}" in done.stdout
    assert "timeout is not in force: TIMEOUT sets it" in done.stdout
    assert box.run("trust").returncode == 0
    write(box, *(record(n, project=str(box.project), peak=3000 * MIB) for n in range(5)))
    again = box.run("suggest", "--apply")
    assert f"trust in its other settings ended: {trust}" in again.stdout


def test_without_tomlkit_one_line_tells_how_to_install_it(box: Box) -> None:
    script = (
        "import sys; sys.modules['tomlkit'] = None; sys.argv = ['sandrun', 'suggest', '--apply'];"
        "from sandrun import cli; cli.main()"
    )
    done = box.run("-c", script, argv=[sys.executable])
    assert done.returncode == 125
    first, hint = done.stderr.splitlines()
    assert "suggest --apply needs the Python package tomlkit" in first
    assert all(word in hint for word in ("pipx inject", "uv tool", "pip install"))
    assert not (box.project / "sandrun.toml").exists()


def test_a_part_of_the_runs(box: Box) -> None:
    answer = json.loads(box.run("suggest", "--json", "--command", "lint").stdout)
    assert answer["runs"] == 0
    assert Path(answer["project"]) == box.project
    done = box.run("--queue", "scanner", "suggest", "--json")
    assert (json.loads(done.stdout)["project"], done.returncode) == ("scanner", 0)
