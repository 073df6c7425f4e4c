"""The subcommand status: what runs and what waits, once or repeatedly."""

import json
import os
import sys
import time

import click

from sandrun.cli.answer import page
from sandrun.config import settings
from sandrun.model import plain
from sandrun.queue.state import all_states, foreign_states, state_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_SHARE = 0.02
"""The share of a processor that --watch may use: where thousands wait, it refreshes less often."""


def _refuse_nan(ctx: click.Context, param: click.Parameter, value: float) -> float:
    if value != value:  # it is in every range, says click
        raise click.BadParameter("nan is no number of seconds", ctx, param)
    return value


@click.command()
@click.option("--all", "everything", is_flag=True, help="All your queues on this machine.")
@click.option("--json", "as_json", is_flag=True, help="Print versioned JSON.")
@click.option(
    *("-w", "--watch"),
    is_flag=True,
    help="Repeat until Ctrl-C: redraw on a terminal, elsewhere print each change.",
)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    callback=_refuse_nan,
    default=1.0,
    metavar="SECONDS",
    help="The time between two updates of --watch; default 1.",
)
@click.option("--ids", type=click.Choice(["all", "waits"]), hidden=True)
@click.pass_obj
def status(
    obj: "tuple[str, settings.Settings]",
    everything: bool = False,
    as_json: bool = False,
    watch: bool = False,
    interval: float = 1.0,
    ids: str = "",
) -> None:
    """Show what runs and what waits, in order."""
    from sandrun.lifecycle import status

    root, chosen = obj
    if watch:
        _watch(root, chosen.queue, everything, as_json, interval)
    queues = _queues(root, chosen.queue, everything, passive=False)
    if ids:  # for completions
        for line in status.ids(queues, ids == "waits"):
            page(line)
        return
    page(_json(queues, everything) if as_json else _text(queues, everything))


def _queues(root: str, name: str, everything: bool, passive: bool) -> "list[dict[str, object]]":
    from sandrun.lifecycle import status

    here = state_path(root, name)
    return [
        status.describe(path, root, name, passive)
        if path == here
        else status.describe(path, passive=passive)
        for path in (all_states() if everything else [here])
    ]


def _json(queues: "list[dict[str, object]]", everything: bool) -> str:
    foreign = foreign_states()[0] if everything else 0
    return json.dumps({"v": 1, "queues": queues, "foreign": foreign})


def _text(queues: "list[dict[str, object]]", everything: bool) -> str:
    from sandrun.lifecycle import status

    text = status.text(queues, everything)
    foreign, example = foreign_states() if everything else (0, "")
    if foreign:
        many = "1 entry" if foreign == 1 else f"{foreign} entries"
        text += f"\nignored: {many} of other users with names of your queues ({example})"
    return text


def _watch(root: str, name: str, everything: bool, as_json: bool, interval: float) -> "NoReturn":
    """Show the queues repeatedly. On a terminal each update overwrites the lines of the one before.
    Elsewhere a text or a JSON document is printed only if more has changed than ages and memory.
    """
    is_live = sys.stdout is not None and not as_json and sys.stdout.isatty()
    is_live = is_live and os.environ.get("TERM", "") not in ("", "dumb")
    shown, lines = None, 0
    while True:
        began = time.process_time()
        queues = _queues(root, name, everything, passive=True)
        state = _without_memory(queues)
        if is_live:
            lines = _redraw(_text(queues, everything), lines)
        elif state != shown:
            page(_json(queues, everything) if as_json else _text(queues, everything))
            sys.stdout.flush()
        shown = state
        time.sleep(max(interval, (time.process_time() - began) / _SHARE))


def _without_memory(queues: "list[dict[str, object]]") -> "list[object]":
    found: list[object] = []
    for queue in queues:
        rows = queue["runs"]
        assert isinstance(rows, list)
        found.append({**queue, "runs": [{**row, "memory": 0} for row in rows]})
    return found


def _redraw(text: str, above: int) -> int:
    """Write `text` over the `above` lines that were written last; return the number of lines. Lines
    are cut so that none wraps, and their number to the height of the screen, because lines that
    have scrolled away cannot be overwritten."""
    from sandrun.queue.progress import cut

    width, height = os.get_terminal_size(1)
    lines = [f"sandrun status, {time.strftime('%H:%M:%S')} (Ctrl-C ends it)", *text.split("\n")]
    if len(lines) >= height:
        hidden = len(lines) - max(1, height - 2)
        lines = [*lines[: max(1, height - 2)], f"and {hidden} more lines: a pipe shows them"]
    lines = [cut(plain(line), max(1, width - 1)) for line in lines]
    up = f"\x1b[{above}A" if above else ""
    sys.stdout.write(f"{up}\r\x1b[J" + "".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
    return len(lines)
