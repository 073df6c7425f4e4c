"""The end of a test run: what was skipped, failed as expected or was tried again, by reason.

One line for each reason, the most frequent first. A test that was tried again is named, because
what it said may be of any kind. `-rs` and the like show the places as well, as ever.
"""

from collections import Counter

import pytest

_OUTCOMES = {"skipped": "SKIPPED", "xfailed": "XFAIL", "rerun": "RERUN"}


def pytest_terminal_summary(terminalreporter: "pytest.TerminalReporter") -> None:  # since pytest 9
    lines = [
        f"{shown} [{count}] {reason}"
        for outcome, shown in _OUTCOMES.items()
        for reason, count in Counter(
            map(_reason, terminalreporter.stats.get(outcome, []))
        ).most_common()
    ]
    if lines:
        terminalreporter.section("by reason")
        terminalreporter.write("\n".join(lines) + "\n")


def _reason(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return str(report.wasxfail).removeprefix("reason: ")
    if isinstance(report.longrepr, tuple):  # of a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    said = str(crash.message if crash else report.longrepr).splitlines() or [""]
    return f"{report.nodeid}: {said[0]}"
