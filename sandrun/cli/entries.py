"""Subcommands that set the entry points up: init, shims, completions, man."""

import click

from sandrun import messages, settings
from sandrun.cli import describe
from sandrun.cli.answer import out
from sandrun.cli.mistakes import Group

SHELLS = click.Choice(["bash", "zsh", "fish"])


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--undo", is_flag=True, help="Take out again what was put in.")
@click.pass_obj
def init(obj: "tuple[str, settings.Settings]", dry_run: bool, undo: bool) -> None:
    """Set this project up, so that its make, hooks and tools take their turns.

    Writes sandrun.toml (all commented out) and sandrun.mk, includes that in the Makefile, puts a
    line into the pre-commit hook, adds shims for the tools in use. Edits of yours are kept, and
    what is generated or shared with other projects is left; it can be said again at any time.
    Its undoing leaves a shim that another project has from it.
    """
    from sandrun.entry import init as setting_up

    for step in setting_up.steps(obj[0], undo):
        if not dry_run:
            step.do()
        out(("would " if dry_run and step.act else "") + step.says)


@click.group(cls=Group)
def shims() -> None:
    """Small programs first on PATH that send make, git and others through the queue."""


@shims.command("add")
@click.argument("tools", nargs=-1, required=True)
def shims_add(tools: "tuple[str, ...]") -> None:
    """Write shims for tools: make, ninja, cmake, pytest, npm, cargo, go, git, or any other."""
    from sandrun.entry import shims as made

    for tool in tools:
        out(made.add(tool))
    if not made.active():
        messages.status("not on PATH yet: sandrun shims activate --help")


@shims.command("remove")
@click.argument("tools", nargs=-1, required=True)
def shims_remove(tools: "tuple[str, ...]") -> None:
    """Remove the shims for tools."""
    from sandrun.entry import shims as made

    for tool in tools:
        out(f"removed {made.remove(tool)}")


@shims.command("list")
def shims_list() -> None:
    """List the tools that have a shim."""
    from sandrun.entry import shims as made

    for tool in made.installed():
        out(tool)
        if first := made.hidden(tool):
            messages.status(f"{first} comes before the shim for {tool}: activate the shims last")


@shims.command("activate")
@click.argument("shell", type=click.Choice([*SHELLS.choices, "cmd", "powershell"]))
def shims_activate(shell: str) -> None:
    """Print what a shell has to evaluate to have the shims first on its PATH.

    \b
    bash, zsh   eval "$(sandrun shims activate bash)"
    fish        sandrun shims activate fish | source
    powershell  sandrun shims activate powershell | Invoke-Expression
    cmd         for /f "delims=" %i in ('sandrun shims activate cmd') do %i
    """
    from sandrun.entry import shims as made

    out(made.activation(shell))


@click.command("make-include")
def make_include() -> None:
    """Print the path of sandrun.mk, the file that a Makefile includes."""
    from sandrun.entry import init as setting_up

    out(setting_up.include())


@click.command()
@click.argument("shell", type=SHELLS)
@click.pass_context
def completions(ctx: click.Context, shell: str) -> None:
    """Print completions for a shell.

    \b
    bash  eval "$(sandrun completions bash)"
    zsh   eval "$(sandrun completions zsh)", after compinit
    fish  sandrun completions fish | source
    """
    out(describe.completions(ctx.find_root().command, shell))


@click.command()
@click.pass_context
def man(ctx: click.Context) -> None:
    """Print the manual page: sandrun man | man -l -"""
    out(describe.manual(ctx.find_root().command))


@click.command("make-again", hidden=True)
def make_again() -> None:
    """Run the make that called this once more, inside a run; for sandrun.mk only."""
    raise AssertionError("handled before click is loaded")


ALL = (init, shims, make_include, make_again, completions, man)
