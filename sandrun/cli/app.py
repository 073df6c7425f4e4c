"""The command line of everything except a run: help, status, kill, doctor, config. Uses click.

The options of a run come from `options.OPTIONS`, so `--help` agrees with the parser of a run. A run
itself never imports this module.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from sandrun import __version__, messages
from sandrun.cli import entries, history, log, metrics, parse, report, status, top
from sandrun.cli.answer import out, page
from sandrun.cli.mistakes import Group, explained
from sandrun.config import options, project, settings
from sandrun.config.values import Option
from sandrun.model import EXIT_SANDRUN, MIB, SandrunError, size_text
from sandrun.platform import spawn
from sandrun.queue.state import all_states, state_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.queue import Queue, Ticket

_EPILOG = """\b
Exit codes:
  0-255  the command's own
  128+n  signal n ended the command
  75     gave up waiting for a turn (--wait-timeout, --no-wait, queue cancel)
  124    ended at a time limit (--timeout, --cpu-time, --idle-timeout)
  125    sandrun failed or was used wrongly; the command was not started
  126    the command cannot be executed
  127    the command was not found
  129    ended because the process that started sandrun died
  137    ended at the memory limit (or by SIGKILL; the message says which)

\b
Variables: each setting except --project is also SANDRUN_<NAME>, and
MEMORY_LIMIT_MB, CHECK_INTERVAL, TIMEOUT, VERBOSE; SANDRUN_STATE_DIR holds
the queues instead of /tmp."""


class _Value(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.4 only
    """An option's converter as a click type."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.kind

    def convert(
        self, value: object, param: "click.Parameter | None", ctx: "click.Context | None"
    ) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self.option.convert(value)
        except ValueError as error:
            self.fail(f"{value!r}: expected {error}", param, ctx)


def run_options() -> "list[click.Parameter]":
    """The options of a run as click parameters."""
    return [
        click.Option(
            [*option.flags, option.key],
            count=True,
            help=_help(option),
        )
        if option.kind == "count"
        else click.Option(
            [*option.flags, option.key],
            type=_Value(option),
            metavar=option.metavar,
            help=_help(option),
        )
        for option in options.OPTIONS
    ]


def _help(option: Option) -> str:
    default = option.default
    if option.choices:
        text = f"{option.help} One of {', '.join(option.choices)}; default {default}."
    elif option.kind == "size" and isinstance(default, int):
        text = f"{option.help} Default {default // MIB} MiB."
    elif option.key == "pool":
        text = f"{option.help} Default {default}."
    elif option.kind in ("span", "interval"):
        text = f"{option.help} Default {default:g} s." if default else option.help
    else:
        text = option.help
    return text + (f" [{option.variable}]" if option.variable else "")


class _Root(Group):
    """Subcommands, or a command to run as the rest of the line."""

    def parse_args(self, ctx: click.Context, args: "list[str]") -> "list[str]":
        try:
            args = parse(args).ordered
        except SandrunError:
            pass  # click reports it
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage("sandrun", "[OPTIONS] [--] COMMAND [ARGUMENTS]...")
        formatter.write_usage("sandrun", "SUBCOMMAND [OPTIONS] [ARGUMENTS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # Subcommands come first: the options fill more than a screen.
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)


@click.group(
    cls=_Root,
    params=run_options(),
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="sandrun", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, **flags: object) -> None:
    """Run COMMAND in the project's queue, with a memory limit.

    One run at a time per project, first in, first out. The limit holds for the whole process
    tree. Processes that the command leaves behind are ended with it.

    \b
    sandrun make test               wait for its turn, then run in 2 GiB
    sandrun -m 4G -t 10m make test  more memory; at most ten minutes
    sandrun status                  what runs, what waits
    """
    start = project.start_directory(flags.get("project"))
    root = project.find(start)
    counts = {option.key for option in options.OPTIONS if option.kind == "count"}
    given = {k: v for k, v in flags.items() if v is not None and (v or k not in counts)}
    ctx.obj = (root, settings.resolve(given, root, start))


@cli.command()
@click.pass_obj
def config(obj: "tuple[str, settings.Settings]") -> None:
    """Show the value of each setting and where it comes from."""
    root, chosen = obj
    out(f"# project {root}")
    out(f"# queue   {state_path(root, chosen.queue)}")
    for option in options.OPTIONS:
        shown = _shown(option, getattr(chosen, option.key))
        out(f"{option.key:15} {shown:12} {chosen.source[option.key]}")
    if chosen.untrusted:
        from sandrun.config import trust

        for file, keys in chosen.untrusted.items():
            out(f"# {trust.describe_ignored(file, keys)} (sandrun trust)")


_NONE = ("file", "name", "rate", "share", "span", "text", "weight")


def _shown(option: Option, value: "Any") -> str:
    """A value as a user would write it; `none` if it sets no limit or no name."""
    if value == option.default and value in ("", -1, 0.0) and option.kind in _NONE:
        return "none"
    if option.kind in ("size", "bytes") or (option.kind == "pool" and value.isdigit()):
        return size_text(int(value)) if value else "0"
    if option.kind in ("span", "interval"):
        return f"{value:g} s"
    if option.kind == "signal":
        return signal.Signals(value).name[3:] if value in set(signal.Signals) else str(value)
    return str(value)


@cli.command(short_help="End a run or a waiter, the project's run, or all.")
@click.argument("run", required=False)
@click.option("--all", "everything", is_flag=True, help="All your runs and waiters.")
@click.pass_obj
def kill(obj: "tuple[str, settings.Settings]", run: "str | None", everything: bool) -> None:
    """End a run or a waiter by its id, the project's run, or everything.

    Ends whole process trees and prints what was ended. Exits with 1 if there was nothing to end, or
    if a process survived.
    """
    from sandrun.lifecycle import kill

    root, chosen = obj
    answer = kill.end(state_path(root, chosen.queue), run, everything, chosen.grace)
    for line in answer.ended:
        out(line)
    for line in answer.survived:
        messages.error(line, "sandrun status --all")
    if not answer.ended and not answer.survived:
        messages.error(
            "nothing to end" + ("" if run is None else f": no run {run}"), "sandrun status --all"
        )
    if answer.survived or not answer.ended:
        raise SystemExit(1)


@cli.command(short_help="Start no waiting run until resume.")
@click.pass_obj
def pause(obj: "tuple[str, settings.Settings]") -> None:
    """Start no waiting run until `sandrun resume`. A current run goes on; new runs queue up."""
    while True:
        try:
            out("paused" if _queue(obj).pause() else "already paused")
            return
        except FileNotFoundError:  # the state directory was just removed as unused: make it again
            continue


@cli.command()
@click.pass_obj
def resume(obj: "tuple[str, settings.Settings]") -> None:
    """Start waiting runs again after a pause."""
    queue = _queue(obj)
    out("resumed" if queue.resume() else "not paused")


def _queue(obj: "tuple[str, settings.Settings]") -> "Queue":
    from sandrun.queue import Queue

    root, chosen = obj
    return Queue(state_path(root, chosen.queue))


@cli.group(invoke_without_command=True)
@click.pass_context
def queue(ctx: click.Context) -> None:
    """Show the queue, or move or cancel a waiter."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(status.status)


def _waiter(obj: "tuple[str, settings.Settings]", run: str) -> "tuple[Queue, Ticket]":
    """The waiting ticket with that id, in any of the user's queues. Raises SandrunError."""
    from sandrun.queue import Queue

    for path in {
        state_path(obj[0], obj[1].queue): 0,
        **dict.fromkeys(all_states()),
    }:
        try:
            found = Queue(path)
        except SandrunError:
            continue
        for ticket in found.tickets():
            if ticket.id == run and not ticket.running:
                return found, ticket
            if ticket.id == run:
                raise SandrunError(f"{run} is already running", f"end it with: sandrun kill {run}")
        found.close()
    raise SandrunError(f"no such waiter: {run}", "sandrun status --all")


@queue.command()
@click.argument("run")
@click.option(
    "-p",
    "--priority",
    required=True,
    type=_Value(next(o for o in options.OPTIONS if o.key == "priority")),
    help="high, normal, low, or a head start in seconds.",
)
@click.pass_obj
def move(obj: "tuple[str, settings.Settings]", run: str, priority: int) -> None:
    """Give a waiter another priority, as if it had been queued with it."""
    found, ticket = _waiter(obj, run)
    if not found.move(ticket, priority):
        raise SandrunError(f"{run} no longer waits", "sandrun status")
    ids = [other.id for other in found.tickets()]
    out(f"moved {run}: position {ids.index(run) + 1 if run in ids else 0} of {len(ids)}")


@queue.command()
@click.argument("run")
@click.pass_obj
def cancel(obj: "tuple[str, settings.Settings]", run: str) -> None:
    """Remove a waiter from the queue. It exits with 75."""
    from sandrun.queue import CANCEL

    found, ticket = _waiter(obj, run)
    found.notify(ticket.name, CANCEL)
    out(f"cancelled {run}: {ticket.command}")


@cli.command(short_help="Test what can enforce limits here, and show fixes.")
@click.option("--json", "as_json", is_flag=True, help="Print versioned JSON.")
@click.pass_obj
def doctor(obj: "tuple[str, settings.Settings]", as_json: bool) -> None:
    """Test what can enforce limits here, and show fixes and the backend in force.

    Each backend is tested with a process that exceeds its limit. Exits with 1 if no kernel enforces
    the limits.
    """
    from sandrun.doctor import CAUTION, Check, examine, show
    from sandrun.integrations import hooks

    missing = hooks.missing(project.find(project.working_directory()))
    checks = [Check("hooks", CAUTION, text, hooks.MAKE_THEM) for text in missing]
    raise SystemExit(show([*examine(obj[1]), *checks], page, as_json))


@cli.command(
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
    short_help="Run git in turn; `git unlock` moves stale locks aside.",
)
@click.argument("arguments", nargs=-1)
def git(arguments: "tuple[str, ...]") -> None:
    """Run git when it is its turn in the repository; `git unlock` moves stale locks aside.

    \b
    git unlock                  move aside the locks whose owner is dead
    git unlock --dry-run        only show them
    git unlock --force          also those whose owner cannot be seen from here: in a container,
                                on a network file system, as another user
    git unlock --restore [NAME] put back the locks that were moved last, or under that name
    """
    raise AssertionError("handled before click is loaded")  # only for --help


for _command in (
    *(status.status, *entries.ALL, *history.ALL, *log.ALL, *metrics.ALL, *report.ALL, *top.ALL),
):
    cli.add_command(_command)


def main(argv: "list[str]", caller: spawn.CallerState) -> int:
    """Run a subcommand or show help. Returns the exit code."""
    if sys.platform != "win32":
        # `capture` has blocked all signals for a run; a subcommand is an ordinary program.
        signal.pthread_sigmask(signal.SIG_SETMASK, caller.mask)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        code = _guarded(lambda: cli.main(argv, "sandrun", standalone_mode=False))
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # The error names the file, unless it is about standard output.
        where = f"{error.filename}" if error.filename else "cannot write the answer"
        messages.error(f"{where}: {error.strerror}")
        os._exit(EXIT_SANDRUN)
    return code


def _guarded(call: "Callable[[], object]") -> int:
    try:
        result = call()
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except click.Abort:
        return 130
    except click.ClickException as error:
        messages.error(*explained(error))
        return EXIT_SANDRUN
    except SandrunError as error:
        messages.error(error.text, error.hint)
        return error.exit_code
    return result if isinstance(result, int) else 0
