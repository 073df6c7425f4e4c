"""Plots of text: a sparkline and a curve of memory, in Unicode blocks or, where those cannot be
shown, in ASCII.

No library: plotext 5.3 (6.1) takes 80 (210) ms to import where all of this takes 10, its axes
cannot label sizes, and its finest marks are missing in many fonts.

Promises no line wider than `wide` and no control characters, so a plot can be piped, pasted and
logged.

A series is a list of `(time, value)` in the order of time. A value is the highest since the point
before it, as in a file of samples. So each column shows the highest value in its part of the time,
and no peak is lost between two columns.
"""

import math
import os
import shutil
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from sandrun.model import DARWIN, size_text, span_text
from sandrun.platform import spawn

Series = Sequence[tuple[float, float]]

BLOCKS = " ▁▂▃▄▅▆▇█"
"""Eighths of a character cell (U+2581 to U+2588)."""
_ASCII_BLOCKS = " .:#"
_ASCII_SPARKS = "_.-=+*#@"
_FAR = 6
"""A curve whose peak is below this part of the limit has a scale of its own: on the limit's, it
would be a flat line."""
_ROWS = 8


def width() -> int:
    """The columns of the terminal; 80 without one."""
    return max(20, shutil.get_terminal_size((80, 24)).columns)


def can_show_blocks(fd: int = 1) -> bool:
    """Whether the locale, and the terminal if `fd` is one, can show block characters.

    The C locale names no such encoding, although Python changes it to UTF-8 (PEP 538). A dumb
    terminal promises nothing, and the Linux console's fonts have half blocks only.
    """
    try:
        BLOCKS.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    if sys.platform == "win32":
        return True
    env = spawn.environment({})
    if DARWIN and env.get("LANG") in ("C", "POSIX") and not env.get("LC_ALL"):
        return False  # on macOS, nothing shows whether Python has changed LC_CTYPE
    if (env.get("LC_ALL") or env.get("LC_CTYPE") or env.get("LANG") or "C") in ("C", "POSIX"):
        return False
    return not os.isatty(fd) or env.get("TERM", "dumb") not in ("dumb", "linux", "unknown")


def sparkline(values: "Sequence[float]", ceiling: float = 0.0, blocks: bool = True) -> str:
    """One character per value. The highest character stands for `ceiling` or a higher value."""
    marks = BLOCKS[1:] if blocks else _ASCII_SPARKS
    most = max([ceiling, *values]) or 1.0
    return "".join(marks[min(int(value / most * len(marks)), len(marks) - 1)] for value in values)


def columns(series: Series, start: float, end: float, count: int) -> "list[float]":
    """The highest value in each of `count` equal parts of the time from `start` to `end`; 0.0 where
    there is none."""
    times = [time for time, _ in series]
    step = (end - start) / count
    found = []
    for index in range(count):
        # A value counts from the point before it, exclusively, to its own, inclusively.
        first = bisect_right(times, start + index * step) if index else bisect_left(times, start)
        last = bisect_left(times, start + (index + 1) * step if index + 1 < count else end)
        after = bisect_right(times, times[last]) if last < len(times) else last
        found.append(max((value for _, value in series[first:after]), default=0.0))
    return found


class Plot:
    """A curve of memory in bytes from `start` to `end` seconds, `wide` columns wide.

    `limit` is drawn as a line at its height; if the curve is far below it, at the top, with a note
    that it is not to scale; 0: none. `margin` is the width of the labels on the left, which have at
    least room for `longest` characters; 0, without labels, if the plot would become too narrow.
    `inner` is the width of the plot.
    """

    def __init__(
        self,
        series: Series,
        start: float,
        end: float,
        limit: int,
        wide: int,
        blocks: bool = True,
        longest: int = 0,
    ) -> None:
        self.start, self.end, self.limit, self.blocks = start, end, limit, blocks
        peak = max((value for _, value in series), default=0.0)
        self.is_far = bool(limit) and peak < limit / _FAR
        fits = peak <= limit and limit and not self.is_far
        self.top = float(limit) if fits else _rounded_up(peak)
        self._labels = [self._label(row) for row in range(_ROWS)]
        self._limit_label = f"limit {size_text(limit)}" if limit else ""
        longest = max(longest, *map(len, [*self._labels, self._limit_label]))
        self.margin = longest + 3 if wide >= 2 * (longest + 3) else 0
        self.inner = wide - self.margin
        heights = [value / self.top for value in columns(series, start, end, self.inner)]
        self._rows = [_row(heights, _ROWS - 1 - row, blocks) for row in range(_ROWS)]

    def _label(self, row: int) -> str:
        return "" if row % 2 else size_text(int(self.top * (_ROWS - row) / _ROWS))

    def labelled(self, label: str, text: str, bar: str = " ") -> str:
        """A line below or in the plot, with its label to the left, if there is room for labels."""
        before = f"{label:>{self.margin - 3}} {bar} " if self.margin else ""
        return (before + text).rstrip()

    def lines(self) -> "list[str]":
        """The curve and its axes."""
        line = ("─" if self.blocks else "-") * self.inner
        labels, rows = list(self._labels), list(self._rows)
        if self.is_far:
            labels.insert(0, self._limit_label)
            rows.insert(0, _centred(" far above the curve: not to scale ", line))
        elif self.limit:
            at = min(_ROWS - 1, int((self.top - self.limit) / self.top * _ROWS))
            labels[at] = self._limit_label
            rows[at] = "".join(a if a != " " else b for a, b in zip(rows[at], line, strict=True))
        bar = "│" if self.blocks else "|"
        drawn = [self.labelled(*pair, bar) for pair in zip(labels, rows, strict=True)]
        left, right = span_text(self.start), span_text(self.end)
        return [*drawn, self.labelled("", left + right.rjust(self.inner - len(left)))]

    def sparkline(self, series: Series) -> str:
        """Another series over the same time, in one line as wide as the plot."""
        return sparkline(columns(series, self.start, self.end, self.inner), 0.0, self.blocks)


def _rounded_up(value: float) -> float:
    """The next 1, 1.5 or 2 times a power of two, for an axis with readable labels."""
    power = 2.0 ** math.floor(math.log2(max(value, 1.0)))
    return next(power * factor for factor in (1.0, 1.5, 2.0) if value <= power * factor)


def _row(heights: "list[float]", row: int, blocks: bool) -> str:
    """One line of a curve. In the lowest, `row` 0, every value that is not 0 is visible."""
    marks = BLOCKS if blocks else _ASCII_BLOCKS
    most = len(marks) - 1
    filled = (round((height * _ROWS - row) * most) or int(height > 0 == row) for height in heights)
    return "".join(marks[max(0, min(most, number))] for number in filled)


def _centred(text: str, line: str) -> str:
    """`text` in the middle of `line`, if it fits."""
    at = (len(line) - len(text)) // 2
    return line if at < 2 else line[:at] + text + line[at + len(text) :]
