"""The small drawings: a frame with axes for a curve or a trend."""

from collections.abc import Callable, Iterable, Sequence

from sandrun.insight.report.markup import number, steps

WIDTH, HEIGHT = 290, 120
"""CSS pixels, as in style.css: four side by side on a desktop's screen, one on a phone."""
LEFT, _TOP, _BOTTOM, RIGHT = 56, 8, 18, 4


class Frame:
    """The area between the axes: from `first` to `last` in seconds, from 0 to `top`."""

    def __init__(self, first: float, last: float, top: float) -> None:
        self.first = first
        self.seconds = max(last - first, 0.001)
        self.top = top

    def x(self, seconds: float) -> float:
        """The coordinate of a time; one outside is put at the edge."""
        share = min(max((seconds - self.first) / self.seconds, 0.0), 1.0)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """The coordinate of a value."""
        return HEIGHT - _BOTTOM - min(value / self.top, 1.0) * (HEIGHT - _TOP - _BOTTOM)

    def at(self, seconds: float, value: float) -> str:
        """Both coordinates, for a path."""
        return f"{number(self.x(seconds))} {number(self.y(value))}"

    def path(self, points: "Iterable[tuple[float, float]]") -> str:
        """A line through points, in whole pixels: relative ones, which takes half the text."""
        parts: list[str] = []
        last = 0, 0
        for seconds, value in points:
            here = round(self.x(seconds)), round(self.y(value))
            x, y = here[0] - last[0], here[1] - last[1]
            parts.append(f"{x}{y}" if y < 0 and parts else f"{x} {y}")
            last = here
        return "M" + parts[0] + ("l" + " ".join(parts[1:]) if parts[1:] else "h0")

    def values(self, bases: "Sequence[float]", name: "Callable[[float], str]") -> str:
        """The grid, and what its lines stand for."""
        places = [(round(self.y(value)), name(value)) for value in steps(self.top, bases, 4)]
        lines = "".join(f"M{LEFT} {y}H{WIDTH - RIGHT}" for y, _ in places)
        texts = "".join(
            f'<text class="end" x="{LEFT - 4}" y="{y + 4}">{words}</text>' for y, words in places
        )
        return f'<path class="grid" d="{lines}"/>{texts}'

    def mark(self, seconds: float, name: str, at: str = "end") -> str:
        """A text below the drawing."""
        return f'<text class="{at}" x="{self.x(seconds):.0f}" y="{HEIGHT - 4}">{name}</text>'

    def event(self, seconds: float, title: str, is_hit: bool) -> str:
        """A vertical line, a thick one where a limit was hit."""
        line = f"M{self.x(seconds):.0f} {_TOP}V{HEIGHT - _BOTTOM}"
        kind = "event hit" if is_hit else "event"
        return f'<path class="{kind}" d="{line}"><title>{title}</title></path>'

    def svg(self, title: str, parts: str) -> str:
        """The whole drawing."""
        return f'<svg role="img"><title>{title}</title>{parts}</svg>'
