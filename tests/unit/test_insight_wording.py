"""The words that several views of past runs share."""

import pytest

from sandrun.insight import wording


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        *((-1, "0.0s"), (0.44, "0.4s"), (9.96, "10s"), (59.6, "1m00s"), (6610, "1h50m")),
        *((86399, "23h59m"), (273600, "3d04h"), (1e8, "1157d"), (1e18, "99999d")),
    ],
)
def test_a_short_span_fits_into_six_columns(seconds: float, shown: str) -> None:
    """The columns of `history`, `stats` and `top`: none of them cuts it."""
    assert wording.short_span(seconds) == shown
    assert len(shown) <= 6


def test_a_moment_beyond_any_date_is_still_shown() -> None:
    assert wording.moment(1e300).endswith("s after 1970")
    assert wording.moment(86400 * 365, "%Y") in ("1970", "1971")


@pytest.mark.parametrize(
    ("reason", "code", "shown"),
    [
        *(("exit", 0, "ok"), ("exit", 2, "exit 2"), ("signal", 143, "signal 15")),
        *(("signal", None, "signal"), ("outer-memory", 137, "outer limit"), ("idle", 124, "idle")),
        ("", None, ""),
    ],
)
def test_an_end_has_the_same_words_in_every_view(
    reason: str, code: "int | None", shown: str
) -> None:
    assert wording.ending(reason, code) == shown


def test_a_count_is_singular_or_plural() -> None:
    assert [wording.count(n, "run") for n in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
