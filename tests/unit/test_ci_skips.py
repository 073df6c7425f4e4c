"""CI's verdict: what fails it."""

import re
from pathlib import Path

import pytest

from tests import ci_skips

CASES = {
    "passed": "",
    "failed": '<failure message="no"/>',
    "error": '<error message="no"/>',
    "known": '<skipped type="pytest.skip" message="about cgroup v2"/>',
    "lost": '<skipped type="pytest.skip" message="the moon is full"/>',
    "away": '<skipped type="pytest.skip" message="runs inside vagrant/lab"/>',
    "root": '<skipped type="pytest.skip" message="needs root: mounts"/>',
    "xfail": '<skipped type="pytest.xfail" message="the moon is full"/>',
}


def verdict(
    folder: Path, capsys: pytest.CaptureFixture[str], *names: str, file: str = "host.xml"
) -> "tuple[int, str]":
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    cases = "".join(f'<testcase classname="c" name="{n}">{CASES[n]}</testcase>' for n in names)
    path.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    code = ci_skips.main("container", "0", str(path))
    return code, capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("names", "code", "counts"),
    [
        (("passed", "known", "xfail"), 0, "2 passed, 0 failed, 1 skipped"),
        (("passed", "failed", "error"), 1, "1 passed, 2 failed, 0 skipped"),
        (("passed", "lost"), 1, "1 passed, 1 failed, 1 skipped"),
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
    folder = Path(ci_skips.__file__).parent / "vm"
    text = "".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    reasons = set(re.findall(r'(?:reason=|skip\()"([^"]+)"', text)) - {"runs inside vagrant/lab"}
    assert reasons
    for reason in reasons:
        assert any(re.fullmatch(p, reason) for p in ci_skips.EXPECTED["lab"]), reason
