"""The subcommands history, stats, suggest, schema: what past runs needed."""

import time
from collections.abc import Callable
from typing import Any

import click

from sandrun import messages
from sandrun.cli import extras, filters
from sandrun.cli.answer import out, page
from sandrun.cli.mistakes import Group
from sandrun.config import settings
from sandrun.config.values import parse_bytes, parse_span

Obj = tuple[str, settings.Settings]


class _Parsed(click.ParamType):  # type: ignore[type-arg]
    """A size or a span, as the settings write them."""

    def __init__(self, name: str, parse: "Callable[[str], float]", expected: str) -> None:
        self.name = name
        self.parse = parse
        self.expected = expected

    def convert(
        self, value: Any, param: "click.Parameter | None", ctx: "click.Context | None"
    ) -> float:
        try:
            return self.parse(value)
        except ValueError:
            self.fail(f"{value!r}: expected {self.expected}", param, ctx)


@click.group(cls=Group, invoke_without_command=True, short_help="List past runs, newest first.")
@filters.filters
@click.option("--json", "as_json", is_flag=True, help="Print versioned JSON.")
@click.option("--csv", "as_csv", is_flag=True, help="Print comma-separated values.")
@click.pass_context
def history(ctx: click.Context, /, as_json: bool, as_csv: bool, **given: Any) -> None:
    """List past runs, the newest first: of all projects, or of --project or --queue.

    A cell of --csv that a spreadsheet would take for a formula (=, +, -, @ first) starts with an
    apostrophe. --json has everything as it was recorded.
    """
    if ctx.invoked_subcommand is not None:
        if any(given.values()) or as_json or as_csv:
            raise click.UsageError(f"options of history do not apply to {ctx.invoked_subcommand}")
        return
    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other", ctx)
    from sandrun.insight import listing, records

    found = records.newest_first(**filters.chosen(ctx, **given))
    if as_json:
        listing.write_json(found, page)
    elif as_csv:
        listing.write_csv(found, page)
    else:
        _list(found)


def _list(found: Any) -> None:
    from sandrun.insight import plots, tables

    width, colored, now = plots.width(), messages.wants_color(1), time.time()
    # No heading in a pipe: a program expects that each line is a run.
    header = messages.is_terminal(1)
    for record in found:
        if header:
            page(tables.HEADER[:width])
            header = False
        page(tables.row(record, now, width, colored))


@history.command(short_help="Remove old records and samples.")
@click.option(
    "--older-than",
    type=_Parsed("time", parse_span, "a time span such as 90d; 0: no limit"),
    metavar="TIME",
    help="Age above which runs are removed; default: the setting history_age.",
)
@click.option(
    "--larger-than",
    type=_Parsed("size", parse_bytes, "a size such as 64M; 0: no limit"),
    metavar="SIZE",
    help="Size to which records, and likewise samples, are reduced; default: history_size.",
)
@click.option("--dry-run", is_flag=True, help="Only report what would be removed.")
@click.pass_obj
def prune(obj: Obj, older_than: "float | None", larger_than: "float | None", dry_run: bool) -> None:
    """Remove the records and samples of old runs, and lines that are no records.

    Runs that end meanwhile are recorded once, as always.
    """
    from sandrun.insight import pruning

    age = obj[1].history_age if older_than is None else older_than
    size = obj[1].history_size if larger_than is None else larger_than
    for line in pruning.prune(age, int(size), dry_run):
        out(line)


@click.command(short_help="Show what each command needed, and how often it failed.")
@filters.filters
@click.option(
    "--top", default=10, type=click.IntRange(0), metavar="N", help="Commands to show; 0: all."
)
@click.option("--json", "as_json", is_flag=True, help="Print versioned JSON, of all commands.")
@click.pass_context
def stats(ctx: click.Context, /, top: int, as_json: bool, **given: Any) -> None:
    """Show statistics of past runs, per command.

    Runs, failures by reason, the wait in the queue, wall time, CPU time and peak memory (median,
    90th and 99th percentile, maximum), the time lost in queues, and who waited for whom most.
    """
    from sandrun.insight import listing, plots, statistics, tables

    found = statistics.collect(**filters.chosen(ctx, **given))
    if as_json:
        page(listing.statistics_json(found))
        return
    for line in tables.statistics(found, top, plots.width()):
        page(line)


@click.command(short_help="Suggest limits from past runs.")
@click.option("--command", metavar="TEXT", help="Only from runs whose command line contains TEXT.")
@click.option("--apply", "write", is_flag=True, help="Write them to the project's settings file.")
@click.option("--json", "as_json", is_flag=True, help="Print versioned JSON.")
@click.pass_obj
def suggest(obj: Obj, command: "str | None", write: bool, as_json: bool) -> None:
    """Suggest a memory limit, a timeout and a limit on processes for this project.

    From its past runs, with the evidence and a margin. --apply writes them to sandrun.toml (to
    pyproject.toml, if the project's settings are there), keeps its comments, and writes nothing if
    nothing changes.
    """
    from sandrun.insight import listing, suggest

    root, chosen = obj
    found = suggest.suggest(suggest.recent(chosen.queue or root, command or ""))
    if as_json:
        page(listing.suggestion_json(found, chosen.queue or root))
    else:
        for line in suggest.text(found, chosen.queue or root):
            out(line)
    if write:
        from sandrun.insight import settings_edit

        tomlkit = extras.load("tomlkit", "tomlkit>=0.12", "suggest --apply")
        report = messages.status if as_json else out
        for line in settings_edit.apply(tomlkit, found.values(), root, chosen):
            report(line)


@click.command(short_help="Print the JSON schema of a --json output.")
@click.argument("name", required=False)
def schema(name: "str | None") -> None:
    """Print the JSON schema of what --json prints; without NAME, the names."""
    from sandrun.insight import schemas

    if name is None:
        for known in schemas.names():
            out(known)
    else:
        page(schemas.text(name))


ALL: "tuple[click.Command, ...]" = (history, stats, suggest, schema)
