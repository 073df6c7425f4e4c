"""The table of the contract's results (tests/contract/table.py)."""

import itertools
from pathlib import Path

import pytest

from tests.contract.table import results

INSIDE = {
    "FAIL": "<failure/>",
    "ok": "",
    "xfail": '<skipped type="pytest.xfail"/>',
    "-": '<skipped type="pytest.skip"/>',
}


def junit(file: Path, suite: str, *cells: str) -> str:
    """A file of one case that was tried once for each of `cells`."""
    case = '<testcase classname="tests.contract.test_contract" name="test_a[rlimit]">{}</testcase>'
    cases = "".join(case.format(INSIDE[cell]) for cell in cells)
    file.write_text(f'<testsuites><testsuite name="{suite}">{cases}</testsuite></testsuites>')
    return str(file)


@pytest.mark.parametrize(
    ("better", "worse"), list(itertools.combinations(["-", "xfail", "ok", "FAIL"], 2))
)
def test_the_worst_verdict_of_a_cell_stands(tmp_path: Path, better: str, worse: str) -> None:
    for first, second in ((better, worse), (worse, better)):
        files = (
            junit(tmp_path / "1.xml", "pytest", first),
            junit(tmp_path / "2.xml", "pytest", second),
        )
        assert results(files) == {"a": {"here rlimit": worse}}
        assert results((junit(tmp_path / "3.xml", "pytest", first, second),)) == results(files)


def test_variants_of_a_case_are_rows(tmp_path: Path) -> None:
    file = junit(tmp_path / "1.xml", "pytest", "ok")
    text = Path(file).read_text().replace("[rlimit]", "[job-object-anon]")
    Path(file).write_text(text)
    assert results((file,)) == {"a, anon": {"here job-object": "ok"}}


def test_each_place_has_a_column_of_its_own(tmp_path: Path) -> None:
    files = (
        junit(tmp_path / "1.xml", "pytest", "ok"),
        junit(tmp_path / "2.xml", "container-user rlimit", "FAIL"),
    )
    assert results(files) == {"a": {"here rlimit": "ok", "container-user rlimit": "FAIL"}}
