"""How `sandrun top` looks: pictures by Textual's snapshot plugin, and the text of its lines.

The pictures show made-up queues at a fixed time, so they depend on nothing of the host. After an
intended change look at the new ones: pytest --snapshot-update.
"""

import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.cells import cell_len

from sandrun.insight import live
from sandrun.insight.figures import Figures
from sandrun.insight.live import PoolView, QueueView, Row, Snapshot
from sandrun.insight.top import texts
from sandrun.insight.top.app import Top
from sandrun.queue import Ticket, new_key
from sandrun.queue.queue import escape

NOW = 1_795_976_820
GIB, MIB = 1 << 30, 1 << 20
FRAME = Callable[..., bool]


def ticket(run_id: str, order: str, age: int, command: str, extra: int = 0) -> Ticket:
    return Ticket(f"{order}{new_key(0):020}.{run_id}.4711.{NOW - age}.{extra}.{escape(command)}")


def figures(memory: int, limit: int, curve: "tuple[int, ...]") -> Figures:
    series = [(t * 2.0, float(value)) for t, value in enumerate((0, *curve, memory))]
    return Figures(memory, limit, 1.87, 12, 0.03, series, "cgroup2", ("warned", 50.0))


def queue(title: str, tickets: "list[Ticket]", known: "list[Figures | None]") -> QueueView:
    view = QueueView(f"/tmp/{title}", 1000, title, tickets=tickets, ahead=[0.0, 200.0, 400.0])
    for index, shown in enumerate(known):
        row = Row(tickets[index], index + 1, 0, shown is None, "/home/me/app", shown, None)
        view.rows[row.id] = row
    return view


def example() -> Snapshot:
    rising = tuple(40 * MIB * step for step in range(40))
    app = [
        ticket("a1b2c3d4", "r", 95, "make -j8 test"),
        ticket("b2c3d4e5", "w", 60, "make lint"),
        ticket("c3d4e5f6", "w", 30, "pytest -q tests/unit -k 'naïve ✓ 漢字'", 3600),
        ticket("d4e5f607", "w", 2, "git push\x1b[2J\n::error::", -3600),
    ]
    site = [ticket("e5f60718", "r", 4000, "npm run build")]
    wait = [ticket("f6071829", "r", 5, "cargo test")]
    queues = [
        queue("/home/me/app", app, [figures(1630 * MIB, 2 * GIB, rising)]),
        queue("/home/me/site", site, [figures(4070 * MIB, 4 * GIB, (4070 * MIB,) * 90)]),
        queue("scanner", wait, [None]),
    ]
    queues[1].note = "the run lock is kept for pid 99, which SIGKILL does not end"
    queues[2].paused = True
    pool = [
        ticket("a1b2c3d4", "r", 95, "make -j8 test", 2 * GIB),
        ticket("e5f60718", "r", 4000, "npm run build", 4 * GIB),
        ticket("f6071829", "w", 5, "cargo test", 2 * GIB),
    ]
    return Snapshot(queues, [PoolView(0, pool)])


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time stands still, in UTC; we are uid 0."""
    still = SimpleNamespace(
        time=lambda: float(NOW),
        localtime=time.gmtime,
        strftime=lambda form, when=None: time.strftime(form, when or time.gmtime(NOW)),
        monotonic=time.monotonic,
    )
    monkeypatch.setattr(texts, "time", still)
    monkeypatch.setattr(live, "time", still)
    monkeypatch.setattr("os.geteuid", lambda: 0)


def top(ascii_only: bool = False) -> Top:
    return Top(example, 8 * GIB, 1.0, ascii_only)


@pytest.mark.parametrize(
    ("size", "keys"),
    [
        ((80, 24), []),
        ((120, 40), []),
        ((40, 10), ["down"]),
        ((80, 24), ["k"]),
        ((80, 24), ["question_mark"]),
    ],
    ids=["80x24", "120x40", "40x10", "question", "help"],
)
def test_it_looks_as_before(
    snap_compare: FRAME, size: "tuple[int, int]", keys: "list[str]"
) -> None:
    assert snap_compare(top(), terminal_size=size, press=keys)


def test_it_looks_as_before_in_ascii_without_colour(
    snap_compare: FRAME, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert snap_compare(top(ascii_only=True), terminal_size=(80, 24))


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("width", [*range(20, 210, 7), 80])
def test_every_line_is_as_wide_as_the_screen(width: int, ascii_only: bool) -> None:
    glyphs = texts.Glyphs(ascii_only)
    shown = example()
    lines = [
        texts.header(shown, glyphs, width, "filter: x" * 20),
        texts.pool(shown.pools[0], 8 * GIB, glyphs, width, ""),
    ]
    for view in shown.queues:
        lines.append(texts.title(view, glyphs, width, True))
        for index in range(len(view.tickets)):
            row = view.row(index)
            lines.append(texts.row(row, texts.Columns(width), glyphs))
            lines += texts.details(view, row, glyphs, width, 6)
    for line in lines:
        text = "".join(piece for piece, _ in line)
        assert cell_len(text) <= max(width, 34), text
        assert text.isprintable()
        assert not ascii_only or text.isascii()


def test_a_curve_loses_no_peak_and_shows_what_is_small() -> None:
    glyphs = texts.Glyphs(False)
    series = [(float(t), 100.0 if t == 777 else 10.0) for t in range(1000)]
    (line,) = glyphs.curve(series, 999, 100, 20)
    assert line.count("█") == 1 and set(line) == {"▁", "█"}
    start = (0.0, 0.0)
    assert glyphs.curve([start, (1.0, 1.0)], 5, 10**9, 5) == ["    ▁"]
    assert glyphs.curve([start, (1.0, 50.0), (2.0, 100.0)], 2, 100, 2, 2) == [" █", "██"]
    assert glyphs.curve([], 60, 100, 3, 2) == ["   ", "   "]


def test_a_snapshots_waiter_knows_its_expected_start() -> None:
    view = example().queues[0]
    assert [view.row(at).starts_in for at in range(4)] == [None, 105.0, 305.0, None]
