"""The subcommand log: one past or current run."""

import json

import click

from sandrun.cli.answer import page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.config.settings import Settings


@click.command(short_help="Show one run: its memory, its events, why it ended.")
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print versioned JSON.")
@click.option("--ids", is_flag=True, hidden=True)
@click.pass_obj
def log(
    obj: "tuple[str, Settings]", run: "str | None", as_json: bool = False, ids: bool = False
) -> None:
    """Show one run: what it was, how it ended, its memory over time, and what happened.

    RUN is an id, or the start of one; without it, what runs in the project's queue now, or else its
    last run. Exits with 1 if there is no such run.
    """
    from sandrun.insight import plots, run_log, run_text
    from sandrun.queue.state import state_path

    root, chosen = obj
    if ids:  # for completions
        for line in run_log.recent():
            page(line)
        return
    found = run_log.find(run, state_path(root, chosen.queue), chosen.queue or root)
    if as_json:
        page(json.dumps(found.as_json()))
    else:
        page("\n".join(run_text.lines(found, plots.width(), plots.can_show_blocks())))


ALL: "tuple[click.Command, ...]" = (log,)
