"""The subcommand report: a page about past runs."""

import os

import click

from sandrun.cli import filters
from sandrun.cli.answer import data
from sandrun.model import SandrunError
from sandrun.platform import folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.insight.records import Filters


@click.command(short_help="Write a page with drawings about past runs.")
@click.option(
    "--html", metavar="FILE", default=None, help="Write it to FILE; - is standard output."
)
@filters.filters
@click.option(
    "--runs",
    type=click.IntRange(1, 10_000),
    default=1000,
    metavar="N",
    help="Draw the newest N runs; default 1000. Sums are of all.",
)
@click.pass_context
def report(
    ctx: click.Context,
    html: "str | None",
    since: "float | None",
    until: "float | None",
    failed: bool,
    command: str,
    runs: int,
) -> None:
    """Write a page about past runs, and print its path.

    One HTML file for any browser, without scripts and without network: timeline of the queues,
    memory against the limit, worst runs, trends, hours lost. Without --html the file is report.html
    beside the history. Command lines may contain secrets: only you can read the file.

    \b
    sandrun report --html report.html --since 1w --project .
    """
    from sandrun.insight import records
    from sandrun.insight.report import collect, output, page

    file = _default() if html is None else html
    wanted = filters.chosen(ctx, since, until, failed, command)
    found = collect.collect(records.newest_first(**wanted), runs)
    content = page.build(found, _described(wanted))
    if file == "-":
        data(content.encode())
        return
    output.write(file, content)
    data(os.fsencode(file) + b"\n")


def _default() -> str:
    folder = folders.state_home()
    if not folder:
        raise SandrunError("there is no home directory to write to", "sandrun report --html FILE")
    try:
        folders.make_folders(folder, 0o700)
    except OSError as error:
        raise SandrunError(
            f"cannot make {folder}: {error.strerror}", "sandrun report --html FILE"
        ) from error
    return os.path.join(folder, "report.html")


def _described(wanted: "Filters") -> str:
    """The filters in words, to follow a number of runs."""
    from sandrun.insight.report.markup import moment

    return "".join(
        words.format(moment(value) if isinstance(value, float) else value)
        for key, words in _WORDS.items()
        if (value := wanted.get(key))
    )


_WORDS = {
    "project": " of {}",
    "command": " with {} in the command",
    "failed": " that did not succeed",
    "since": ", started since {}",
    "until": ", started before {}",
}

ALL: "tuple[click.Command, ...]" = (report,)
