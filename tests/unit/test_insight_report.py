"""The parts of a report: what is counted, what is drawn, and what is left out."""

import time
from typing import Any

import pytest

from sandrun.cli.filters import moment
from sandrun.insight.report import collect, curves, markup, timeline, trends
from sandrun.insight.report.drawing import Frame
from sandrun.insight.samples import Point
from sandrun.types import Record


def record(**fields: Any) -> Record:
    typical: Record = {"project": "/p", "command": ["make"], "reason": "exit", "exit": 0}
    return {**typical, "since": 1.6e9, "wall": 10.0, **fields}  # type: ignore[typeddict-item]


def test_the_highest_point_is_kept_at_every_resolution() -> None:
    points = [Point(float(n), n * 7919 % 1009, None, None, None) for n in range(600)]
    for most in (1, 7, 120, 599, 600, 1000):
        kept = curves.thin(points, most)
        assert len(kept) <= most
        assert max(point.memory for point in kept) == max(point.memory for point in points)
        assert kept == sorted(kept, key=lambda point: point.t)


def test_a_path_of_relative_steps_ends_where_its_points_do() -> None:
    frame = Frame(0, 100, 50)
    points = [(t, float(t * 37 % 50)) for t in range(0, 101, 5)]
    words = frame.path(points).replace("M", "").replace("l", " ").replace("-", " -").split()
    x, y = (sum(map(int, words[start::2])) for start in (0, 1))
    assert (x, y) == (round(frame.x(100)), round(frame.y(points[-1][1])))
    assert frame.path([(50, 10)]).endswith("h0")


@pytest.mark.parametrize("most", [1e-9, 0.3, 1, 7.5, 59, 3601, 1e5, 1e9, 1e18])
def test_an_axis_has_a_few_round_values(most: float) -> None:
    values = markup.steps(most, markup.SPANS, 4)
    assert values[0] == 0 and values[-1] <= most and len(values) <= 5


def test_totals_are_of_all_runs_and_only_the_newest_are_kept() -> None:
    records = [record(wall=float(n), wait=2.0, exit=n % 2) for n in range(50)]
    found = collect.collect(iter(records), 10)
    assert (found.count, found.wall, found.wait) == (50, 1225.0, 100.0)
    assert len(found.runs) == 10 and found.kinds == {"ok": 25, "failed": 25}
    assert [run.wall for run in found.worst("wall")] == [float(n) for n in range(49, 39, -1)]


def test_runs_that_differ_only_in_whether_the_peak_is_known_have_a_trend() -> None:
    records = [record(peak=peak) for peak in (None, 5 << 20, None, 7 << 20)]
    found = collect.collect(iter(records), 10)
    assert "4 runs" in trends.section(list(found.commands.values()), 10, 80)


def test_however_many_commands_there_are_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect, "_KEYS", 5)
    waited = [{"id": "x", "command": f"c{n}", "seconds": 1.0} for n in range(3)]
    records = [record(command=[f"make {n}"], waited_for=waited, wait=3.0) for n in range(40)]
    found = collect.collect(iter(records), 3)
    assert len(found.commands) == 6 and found.commands["", collect.OTHER].runs == 35
    assert len(found.waits) == 6 and sum(found.waits.values()) == 120.0


def test_a_day_is_that_of_the_local_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        summer = time.mktime((2026, 7, 1, 0, 30, 0, 0, 0, -1))
        winter = time.mktime((2026, 12, 1, 23, 30, 0, 0, 0, -1))
        found = collect.collect(iter([record(since=summer), record(since=winter)]), 2)
    finally:
        monkeypatch.undo()
        time.tzset()
    days = [time.strftime("%Y-%m-%d", time.gmtime(day * 86400)) for day in sorted(found.days)]
    assert days == ["2026-07-01", "2026-12-01"]


def test_runs_that_overlap_are_in_lanes_of_their_own() -> None:
    runs = [collect.run_of(record(), str(n)) for n in range(4)]
    bars = [(0.0, 10.0, runs[0]), (5.0, 8.0, runs[1]), (8.0, 9.0, runs[2]), (10.0, 11.0, runs[3])]
    assert [lane for lane, *_ in timeline._lanes(bars)] == [0, 1, 1, 0]


def test_a_break_ends_a_period_and_there_are_never_too_many() -> None:
    runs = [collect.run_of(record(since=1.6e9 + n * 7200), str(n)) for n in range(5)]
    assert len(timeline._periods(runs)) == 5
    many = [collect.run_of(record(since=1.6e9 + n * 86400), str(n)) for n in range(900)]
    periods = timeline._periods(many)
    assert len(periods) <= 40 and sum(map(len, periods)) == 900


@pytest.mark.parametrize(
    ("words", "seconds_ago"),
    [("90", 90), ("90m", 5400), ("2d", 172800), ("1w", 604800), ("0", 0)],
)
def test_how_long_ago(words: str, seconds_ago: float) -> None:
    assert moment(words, 1.7e9) == 1.7e9 - seconds_ago


def test_dates_are_local() -> None:
    assert time.localtime(moment("2026-11-30", 0))[:6] == (2026, 11, 30, 0, 0, 0)
    assert time.localtime(moment("2026-11-30 14:05", 0))[:5] == (2026, 11, 30, 14, 5)
    assert moment("2026-11-30T12:00:00+02:00", 0) == moment("2026-11-30T10:00:00Z", 0)
    now = time.time()
    today, yesterday = (time.localtime(moment(word, now)) for word in ("today", "yesterday"))
    assert today[:3] == time.localtime(now)[:3] and today[3:6] == yesterday[3:6] == (0, 0, 0)
    assert 82800 <= time.mktime(today) - time.mktime(yesterday) <= 90000


@pytest.mark.parametrize("words", ["", "soon", "-1d", "nanw", "w", "2026-02-30", "1e999d", "infd"])
def test_what_is_no_moment(words: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        moment(words, 1.7e9)


def test_runs_that_hit_their_memory_limit_come_first_and_no_command_hides_the_others() -> None:
    fields: list[dict[str, Any]] = [
        {"reason": "timeout", "peak": 1, "limit": 100},
        {"reason": "memory", "peak": 100, "limit": 100, "since": 1.6e9},
        *({"reason": "memory", "peak": 100, "limit": 100, "since": 1.7e9 + n} for n in range(3)),
        {"command": ["other"], "peak": 90, "limit": 100},
    ]
    runs = [collect.run_of(record(**given), str(n)) for n, given in enumerate(fields)]
    assert [run.key for run in curves.worst_first(runs)] == ["4", "3", "5", "2", "1", "0"]
