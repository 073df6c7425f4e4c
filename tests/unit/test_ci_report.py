"""CI's verdict: what fails it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ci_report
from tests.harness import ROOT

CASES = {
    "passed": "",
    "failed": '<failure message="no"/>',
    "error": '<error message="no"/>',
    "known": '<skipped type="pytest.skip" message="about cgroup v2"/>',
    "lost": '<skipped type="pytest.skip" message="the moon is full"/>',
    "away": '<skipped type="pytest.skip" message="runs inside vagrant/lab"/>',
    "root": '<skipped type="pytest.skip" message="needs root: mounts"/>',
    "retried": '<properties><property name="failed-try" value="call: assert 1"/></properties>',
    "lost-again": '<properties><property name="failed-try" value="x"/></properties><failure/>',
    "xfail": '<skipped type="pytest.xfail" message="the moon is full"/>',
}


def verdict(
    folder: Path, capsys: pytest.CaptureFixture[str], *names: str, file: str = "host.xml"
) -> "tuple[int, str]":
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    cases = "".join(
        f'<testcase classname="c" name="{n}{i}">{CASES[n]}</testcase>' for i, n in enumerate(names)
    )
    path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    code = ci_report.main("container", "0", str(path))
    return code, capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("names", "code", "counts"),
    [
        (("passed", "known", "xfail"), 0, "2 passed, 0 failed, 1 skipped"),
        (("passed", "failed", "error"), 1, "1 passed, 2 failed, 0 skipped"),
        (("passed", "lost"), 1, "1 passed, 1 failed, 1 skipped"),
        (("retried",) * 3, 0, "3 passed, 0 failed, 0 skipped"),
        (("retried",) * 4, 1, "4 passed, 1 failed, 0 skipped"),
        (("passed", "lost-again"), 1, "1 passed, 1 failed, 0 skipped"),
        (("known",), 1, "0 passed, 0 failed, 1 skipped"),
    ],
)
def test_what_fails_the_run(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    names: "tuple[str, ...]",
    code: int,
    counts: str,
) -> None:
    assert verdict(tmp_path, capsys, *names) == (code, f"ci: {counts}")


def test_each_place_has_its_own_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict(tmp_path, capsys, "passed", "away")[0] == 0
    assert verdict(tmp_path, capsys, "passed", "away", file="v1/vm.xml")[0] == 1


def test_a_plain_user_in_a_clean_root_skips_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("passed", "away", "root")
    assert verdict(tmp_path, capsys, *names, file="fresh-trixie-user.xml")[0] == 0
    assert verdict(tmp_path, capsys, *names, file="fresh-trixie.xml")[0] == 1


def test_the_laboratory_may_skip_what_its_tests_say() -> None:
    """... but that they run there."""
    folder = Path(ci_report.__file__).parent / "vm"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    reasons = set(re.findall(r'(?:reason=|skip\()"([^"]+)"', text)) - {"runs inside vagrant/lab"}
    assert reasons
    for reason in reasons:
        assert any(re.fullmatch(p, reason) for p in ci_report.EXPECTED["lab"]), reason


FLAKY = """
import pathlib

HERE = pathlib.Path(__file__)

def test_flaky():
    first = not HERE.with_name("tried").exists()
    HERE.with_name("tried").touch()
    assert not first, "the moon"

def test_steady():
    pass

def test_broken():
    assert 0
"""


def test_a_second_try_is_seen_in_the_file_of_a_real_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "test_it.py").write_text(FLAKY)
    words = ["-p", "tests.summary", "--reruns=2", "--junitxml=host.xml", "--rootdir=."]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    tried_first = done.stdout.partition("failed, and tried again")[2]
    assert "E       AssertionError: the moon" in tried_first
    ci_report.main("container", "0", str(tmp_path / "host.xml"))
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("passed only")]
    assert line.endswith("test_it::test_flaky: call: AssertionError: the moon"), line
    assert said.endswith("ci: 2 passed, 1 failed, 0 skipped\n")


def test_more_tests_may_need_a_second_try_where_more_ran() -> None:
    assert [ci_report.budget(passed) for passed in (1, 2700, 10_800)] == [3, 3, 12]
