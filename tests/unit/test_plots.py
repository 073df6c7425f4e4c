"""Plots of text: heights, the limit's line, labels, and widths that no line exceeds."""

import os
import pty
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sandrun.insight import plots

MIB = 1 << 20
RAMP = [(float(t), 10.0 * t * MIB) for t in range(1, 101)]


def test_a_sparkline_reaches_from_the_lowest_to_the_highest_mark() -> None:
    assert plots.sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert plots.sparkline([0, 1, 2, 3, 4, 5, 6, 7], blocks=False) == "_.-=+*#@"
    assert plots.sparkline([1, 2], ceiling=8) == "▂▃"
    assert plots.sparkline([0, 0]) == "▁▁"
    assert plots.sparkline([]) == ""


def test_a_peak_does_not_disappear_between_columns() -> None:
    series = [(float(t), 7.0 if t == 333 else 1.0) for t in range(1, 601)]
    for count in (1, 7, 60, 599, 1200):
        assert max(plots.columns(series, 0.0, 600.0, count)) == 7.0
        assert min(plots.columns(series, 0.0, 600.0, count)) >= 1.0


def test_a_value_counts_from_the_point_before_it() -> None:
    assert plots.columns([(2.0, 5.0), (4.0, 3.0)], 0.0, 4.0, 4) == [5.0, 5.0, 3.0, 3.0]


def test_the_limit_is_a_line_at_its_height() -> None:
    lines = plots.Plot(RAMP, 0.0, 100.0, 2000 * MIB, 60).lines()
    assert lines[0].startswith("limit 2.0 GiB │ ───────")
    assert "█" in lines[4] and "█" not in "".join(lines[:4])
    assert lines[8].split() == ["0.0", "s", "100", "s"]
    over = plots.Plot(RAMP, 0.0, 100.0, 500 * MIB, 60).lines()
    at = next(number for number, line in enumerate(over) if line.startswith("limit 500 MiB │ ──"))
    assert at > 0 and over[at].endswith("█")


def test_a_limit_far_above_the_curve_is_not_to_scale_and_says_so() -> None:
    lines = plots.Plot(RAMP, 0.0, 100.0, 20_000 * MIB, 80).lines()
    assert "limit 19.5 GiB │ ──" in lines[0] and "not to scale" in lines[0]
    assert "1.0 GiB │" in lines[1] and "█" in lines[2]


def test_ascii_has_the_same_form() -> None:
    lines = plots.Plot(RAMP, 0.0, 100.0, 2000 * MIB, 60, blocks=False).lines()
    assert "\n".join(lines).isascii()
    assert lines[0].startswith("limit 2.0 GiB | -------")
    assert lines[7].endswith("#")


@example(points=[(0.0, 0.0), (0.0, 1.0)], limit=0, wide=20, blocks=False)
@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e15)), max_size=50),
    st.integers(0, 1 << 50),
    st.integers(20, 300),
    st.booleans(),
)
def test_no_line_is_wider_than_the_terminal(
    points: "list[tuple[float, float]]", limit: int, wide: int, blocks: bool
) -> None:
    series = sorted(points)
    end = series[-1][0] if series else 0.0
    plot = plots.Plot(series, 0.0, end, limit, wide, blocks, 16)
    lines = [*plot.lines(), plot.labelled("max 10 processes", plot.sparkline(series))]
    assert all(len(line) <= wide and line.isprintable() for line in lines)
    if any(value for _, value in series):
        assert "".join(lines[:-2]).strip("│|─- ") != ""


def test_without_a_terminal_there_are_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "__stdout__", None)
    assert plots.width() == 80
    monkeypatch.setenv("COLUMNS", "3")
    assert plots.width() == 20


@pytest.mark.parametrize(
    ("env", "shown"),
    [
        ({"LANG": "C.UTF-8", "TERM": "xterm"}, True),
        ({"LANG": "de_DE.UTF-8", "LC_ALL": "", "TERM": "xterm"}, True),
        ({"LANG": "C", "TERM": "xterm"}, False),
        ({"LANG": "C.UTF-8", "LC_ALL": "POSIX", "TERM": "xterm"}, False),
        ({"TERM": "xterm"}, False),
        ({"LANG": "C.UTF-8", "TERM": "dumb"}, False),
        ({"LANG": "C.UTF-8", "TERM": "linux"}, False),
        ({"LANG": "C.UTF-8"}, False),
    ],
)
def test_where_blocks_are_shown(
    env: "dict[str, str]", shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LANG", "LC_ALL", "LC_CTYPE", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    main, side = pty.openpty()
    with (
        open(os.devnull, "w", encoding="utf-8") as file,
        open(os.devnull, "w", encoding="iso8859-1") as latin,
    ):
        monkeypatch.setattr(sys, "stdout", file)
        assert plots.can_show_blocks(side) == shown
        monkeypatch.setenv("LANG", "C.UTF-8")
        monkeypatch.setenv("LC_ALL", "")
        assert plots.can_show_blocks(file.fileno())  # it is read elsewhere
        monkeypatch.setattr(sys, "stdout", latin)
        assert not plots.can_show_blocks(latin.fileno())
        monkeypatch.undo()
    os.close(main)
    os.close(side)
