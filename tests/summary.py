"""The end of a test run: what was skipped, failed as expected or was tried again, by reason.

One line for each reason, the most frequent first. A test that was tried again is named, because
what it said may be of any kind. `-rs` and the like show the places as well, as ever. Above them is
all that a test said before it was tried again: pytest itself shows what failed in the end only.
"""

from collections import Counter
from collections.abc import Generator

import pytest

from tests.ci_report import FAILED_TRY

Answer = Generator[None, pytest.TestReport, pytest.TestReport]
_OUTCOMES = {"skipped": "SKIPPED", "xfailed": "XFAIL", "rerun": "RERUN"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> "Answer":
    """A failure becomes a property of the test case: a JUnit file has no other word for a rerun."""
    report = yield
    if report.failed:
        item.user_properties.append((FAILED_TRY, f"{report.when}: {_first_line(report)}"))
    return report


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:  # since pytest 9
    lines = [
        f"{shown} [{count}] {reason}"
        for outcome, shown in _OUTCOMES.items()
        for reason, count in Counter(
            map(_reason, terminalreporter.stats.get(outcome, []))
        ).most_common()
    ]
    reruns = terminalreporter.stats.get("rerun", [])
    if reruns:
        terminalreporter.section("failed, and tried again")
    for report in reruns:
        terminalreporter.section(report.nodeid, sep="_")
        terminalreporter.write(f"{report.longreprtext}\n")
        for title, text in report.sections:
            terminalreporter.section(title, sep="-")
            terminalreporter.write(f"{text}\n")
    if lines:
        terminalreporter.section("by reason")
        terminalreporter.write("\n".join(lines) + "\n")


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail).removeprefix("reason: ")
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    return f"{report.nodeid}: {_first_line(report)}"


def _first_line(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    said = str(crash.message if crash else report.longrepr).splitlines() or [""]
    return said[0]
