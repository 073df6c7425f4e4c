"""The options that select past runs: --since, --until, --failed, --command, and --project."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import TypeVar

import click

from sandrun.config.values import parse_span

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.insight.records import Filters

F = TypeVar("F", bound="Callable[..., object]")
_DAYS = {"today": 0, "yesterday": 1}


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """A moment in the past, as seconds since 1970: a date, a date and time (local), `today`,
    `yesterday`, or how long ago (`90m`, `2d`, `1w`)."""

    name = "when"

    def convert(
        self, value: object, param: "click.Parameter | None", ctx: "click.Context | None"
    ) -> float:
        try:
            return value if isinstance(value, float) else moment(str(value), time.time())
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{value!r}: expected a date (2026-11-30, '2026-11-30 14:00'), today, yesterday, "
                "or how long ago (90m, 2d, 1w)",
                param,
                ctx,
            )


def moment(words: str, now: float) -> float:
    """The moment that `words` name, in seconds since 1970. Raises ValueError, OverflowError or
    OSError."""
    words = words.strip()
    if words in _DAYS:
        today = datetime.fromtimestamp(now).date()
        return time.mktime((today.year, today.month, today.day - _DAYS[words], 0, 0, 0, 0, 0, -1))
    try:
        return datetime.fromisoformat(words).timestamp()
    except ValueError:
        pass
    if words.endswith("w"):
        return now - 7 * parse_span(words[:-1] + "d")
    return now - parse_span(words)


def filters(function: F) -> F:
    """Add the options to a subcommand. `chosen` turns their values into filters."""
    for option in (
        click.option(
            "--command", default="", metavar="TEXT", help="Only runs whose command contains TEXT."
        ),
        click.option("--failed", is_flag=True, help="Only runs that did not exit with 0."),
        click.option(
            "--until", type=Moment(), metavar="WHEN", help="Only runs that started before then."
        ),
        click.option(
            "--since",
            type=Moment(),
            metavar="WHEN",
            help="Only runs that started since then: 2d, 1w, yesterday, 2026-11-30.",
        ),
    ):
        function = option(function)
    return function


def chosen(
    ctx: click.Context, since: "float | None", until: "float | None", failed: bool, command: str
) -> "Filters":
    """The filters that the options select. --project and --queue, which every subcommand has,
    select the runs of that project or queue; without them the runs of all projects are read."""
    found: Filters = {}
    given = ctx.find_root().params
    if given.get("project") or given.get("queue"):
        root, settings = ctx.obj
        found["project"] = settings.queue or root
    if since is not None:
        found["since"] = since
    if until is not None:
        found["until"] = until
    if failed:
        found["failed"] = True
    if command:
        found["command"] = command
    return found
