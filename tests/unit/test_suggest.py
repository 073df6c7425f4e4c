"""Suggested limits: enough for every run that was seen, with the evidence."""

import pytest

from sandrun.insight.suggest import ENOUGH, suggest
from sandrun.model import MIB
from sandrun.types import Record

DAY = 86400.0


def runs(*peaks: "int | None", wall: float = 30.0) -> "list[Record]":
    """Runs with these peaks in MiB; None: it reached its limit of 2 GiB."""
    return [
        {
            "id": f"{number:08x}",
            "command": ["make", f"test{number % 3}"],
            "since": 1.7e9 + number * DAY,
            "reason": "memory" if peak is None else "exit",
            "limit": 2048 * MIB,
            "peak": (2047 if peak is None else peak) * MIB,
            "wall": wall + number,
        }
        for number, peak in enumerate(peaks)
    ]


@pytest.mark.parametrize(
    ("peaks", "memory"),
    [
        ((100, 200, 1229, 1000, 900), "1792M"),  # + 25 %, 256 MiB steps above 1 GiB
        ((1, 2, 3, 4, 5), "128M"),  # + 64 MiB
        ((500, 500, 500, 500, 512), "640M"),
        ((100, 200, None, 300, 400), "4096M"),  # at least 2 GiB
        ((100, 3000, None, 300, 400), "3840M"),  # later it had more, and needed less than twice
    ],
)
def test_memory(peaks: "tuple[int | None, ...]", memory: str) -> None:
    suggestion = suggest(runs(*peaks))
    assert suggestion.values()["memory"] == memory
    assert suggestion.memory is not None
    assert all(suggestion.memory >= (peak or 2048) * MIB for peak in peaks)


def test_the_evidence_names_the_run() -> None:
    text = suggest(runs(100, 200, 1229, 1000, 900)).evidence["memory"]
    assert text == "highest of 5 runs: 1.2 GiB (make test2, 2023-11-16, 00000002); + 25 %"


def test_a_run_that_reached_the_limit_counts_as_at_least() -> None:
    text = suggest(runs(100, 200, None, None, 900)).evidence["memory"]
    assert text.startswith("at least 2.0 GiB: 2 of 5 runs reached this limit (make test2")


def test_too_few_runs_give_no_suggestion() -> None:
    suggestion = suggest(runs(*[100] * (ENOUGH - 1)))
    assert not suggestion.values()
    assert suggestion.evidence["memory"] == "only 4 runs with a known peak; 5 are needed"
    assert suggest([]).evidence["pids"].startswith("no run with a known number")


def test_runs_that_never_ran_the_command_do_not_count() -> None:
    never = runs(*[9999] * 5)
    reasons = ("left", "lost", "failed", "not-started", "left")
    for record, reason in zip(never, reasons, strict=True):
        record["reason"] = reason  # type: ignore[typeddict-item]
    assert suggest([*runs(*[10] * 5), *never]).values()["memory"] == "128M"
    assert not suggest(never).values()


def test_a_timeout() -> None:
    assert suggest(runs(*[10] * 5, wall=40.0)).values()["timeout"] == "2m"  # longest: 44 s
    assert suggest(runs(*[10] * 5, wall=3000.0)).values()["timeout"] == "110m"
    assert suggest(runs(*[10] * 5, wall=3600.0)).values()["timeout"] == "130m"
    late = runs(*[10] * 5, wall=600.0)
    late[4] |= {"reason": "timeout", "wall": 905.0}
    suggestion = suggest(late)
    assert suggestion.values()["timeout"] == "31m"
    assert suggestion.evidence["timeout"].startswith("at least 15 min 5 s: 1 of 5 runs")


def test_processes() -> None:
    many = runs(*[10] * 5)
    for number, record in enumerate(many):
        record["processes"] = 100 + number * 100
    suggestion = suggest(many)
    assert suggestion.values()["pids"] == 1024
    assert suggestion.evidence["pids"].startswith("most of 5 runs: 500 (make test1")


def test_missing_fields_and_a_hostile_command_are_survived() -> None:
    records: list[Record] = [{}, {"reason": "exit"}, *runs(*[10] * 5)]
    records[-1] |= {"command": ["\x1b[2J\n::error::"], "peak": 20 * MIB}
    text = suggest(records).evidence["memory"]
    assert text.isprintable()
