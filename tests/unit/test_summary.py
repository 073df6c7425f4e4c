"""The end of a test run is told by reason."""

import subprocess
import sys
from pathlib import Path

from tests.harness import ROOT

TESTS = """
import pytest

@pytest.mark.parametrize("n", range(5))
def test_skipped(n):
    pytest.skip("the moon is full" if n else "needs rain")

@pytest.mark.xfail(reason="known")
def test_known():
    assert 0

tries = []

@pytest.mark.flaky(reruns=2)
def test_tried_again():
    tries.append(1)
    assert len(tries) == 3, "too early\\nand more"
"""


def test_each_reason_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(TESTS)
    words = ["-p", "tests.summary", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-o", "addopts=", "-p", "no:cacheprovider", "."],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    reasons = done.stdout.partition(" by reason ")[2]
    told = [line for line in reasons.splitlines() if line.partition(" ")[0].isupper()]
    assert told == [
        "SKIPPED [4] the moon is full",
        "SKIPPED [1] needs rain",
        "XFAIL [1] known",
        "RERUN [2] test_it.py::test_tried_again: AssertionError: too early",
    ]
