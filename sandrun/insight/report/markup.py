"""Text for HTML and SVG: escaping, tables, axes.

Promises: every text of a user goes through `text`, so it is shown and never interpreted. The result
has no control character, no half of a surrogate pair, no change of the writing direction, and no
markup.
"""

from collections.abc import Iterable, Sequence
from html import escape
from math import ceil
from typing import TypeVar

from sandrun.insight import wording
from sandrun.model import plain, size_text, span_text

T = TypeVar("T")
UNKNOWN = "\N{EN DASH}"
_MIB = 1 << 20


def text(words: str, most: int = 0) -> str:
    """`words` for an element's content or a quoted attribute; of at most `most` characters."""
    shown = plain(words)
    if most and len(shown) > most:
        shown = shown[: most - 1] + "…"
    return escape(shown)


def size(value: "int | float | None") -> str:
    """A size in bytes for people; `UNKNOWN` if it is not known."""
    return UNKNOWN if value is None else size_text(int(value))


def span(seconds: "float | None") -> str:
    """A duration for people; `UNKNOWN` if it is not known."""
    return UNKNOWN if seconds is None else span_text(seconds)


def moment(seconds: "float | None", form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A local time; `UNKNOWN` if it is not known."""
    return UNKNOWN if seconds is None else wording.moment(seconds, form)


_MARKS = {"#": ' class="n"', "d": ' class="d"', "c": ' class="c"'}


def table(
    caption: str, heads: "Sequence[str]", rows: "Iterable[Sequence[str]]", kinds: str = ""
) -> str:
    """A table in a region that scrolls, also by keyboard. Cells are markup; the first cell of a row
    is its heading. `kinds`: one character a column: `#` for a number, `d` for a cell that must not
    wrap (a date, a bar), `c` for a command."""
    marks = [_MARKS.get(kind, "") for kind in kinds.ljust(len(heads))]
    head = "".join(
        f'<th scope="col"{mark}>{name}</th>' for name, mark in zip(heads, marks, strict=True)
    )
    body = []
    for first, *rest in rows:
        cells = "".join(
            f"<td{mark}>{cell}</td>" for cell, mark in zip(rest, marks[1:], strict=True)
        )
        body.append(f'<tr><th scope="row"{marks[0]}>{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}"><table>'
        f"<caption>{caption}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def steps(most: float, bases: "Sequence[float]", wanted: int) -> list[float]:
    """Round values for an axis: 0, and at most `wanted` others up to `most`. They are multiples of
    the smallest of `bases` (ascending) that gives so few, or else of a multiple of the largest."""
    base = next((base for base in bases if most / base <= wanted), 0.0)
    base = base or bases[-1] * ceil(most / bases[-1] / wanted)
    return [base * n for n in range(int(most / base) + 1)]


SIZES = [1 << n for n in range(50)]
SPANS = [
    *(0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30),
    *(60 * n for n in (1, 2, 5, 10, 15, 30)),
    *(3600 * n for n in (1, 2, 4, 8)),
    *(86400 * n for n in (1, 2, 7, 30, 90, 365, 3650)),
]


def axis_span(seconds: float) -> str:
    """A round duration as an axis shows it."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s" if seconds else "0"


def axis_size(value: float) -> str:
    """A round size as an axis shows it."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (_MIB, "MiB"), (1 << 10, "KiB")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g} B" if value else "0"


def number(value: float) -> str:
    """A coordinate, as short as it can be."""
    return f"{value:.1f}".removesuffix(".0")


def split(rows: "list[T]", parts: int) -> "list[list[T]]":
    """`rows` in at most `parts` parts of nearly the same length, in order."""
    parts = min(parts, len(rows))
    return [rows[n * len(rows) // parts : (n + 1) * len(rows) // parts] for n in range(parts)]
