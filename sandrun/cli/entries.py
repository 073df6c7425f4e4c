"""The subcommands that set things up: init, trust, shims, make-include, completions, man."""

import os

import click

from sandrun import messages
from sandrun.cli import completions as shells
from sandrun.cli import describe
from sandrun.cli.answer import out, page
from sandrun.cli.mistakes import Group
from sandrun.config import project, settings, settings_files
from sandrun.model import SandrunError

SHELLS = click.Choice(["bash", "zsh", "fish"])


@click.command(short_help="Set this project up: make, hooks and tools use its queue.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@click.option("--undo", is_flag=True, help="Remove what init added.")
@click.pass_obj
def init(obj: "tuple[str, settings.Settings]", dry_run: bool, undo: bool) -> None:
    """Set this project up, so that its make, hooks and tools use its queue.

    Writes sandrun.toml (all settings commented out) and sandrun.mk, includes sandrun.mk in the
    Makefile, adds a line to the pre-commit hook, and adds shims for the tools in use. Keeps your
    edits, and leaves files that are generated or shared with other projects. You can run it again
    at any time. --undo leaves a shim that init added for another project too.
    """
    from sandrun.integrations import init as setting_up

    for step in setting_up.steps(obj[0], undo):
        if not dry_run:
            step.do()
        out(("would " if dry_run and step.act else "") + step.text)


@click.command(short_help="Let a project's file set more than limits.")
@click.argument("file", required=False)
@click.option("--revoke", is_flag=True, help="Stop trusting the file.")
@click.option("--list", "listing", is_flag=True, help="Show the files that you trust.")
@click.pass_obj
def trust(
    obj: "tuple[str, settings.Settings]", file: "str | None", revoke: bool, listing: bool
) -> None:
    """Let a project's settings file set everything, as your own file can.

    FILE is a settings file, or a directory that contains some; default: this project's files.
    Without trust, only the limits in a project's file apply. Trust is for the file as it is now: an
    edited file must be trusted again.
    """
    from sandrun.config import trust as trusted

    read = {found.path: found for found in obj[1].files if not found.is_unread}
    if listing:
        for path in trusted.paths():
            found = read.get(path) or _settings_at(path)
            state = "" if found and found.is_trusted() else "changed, " if found else "gone, "
            out(path + (f" ({state}not in force)" if state else ""))
        return
    if file and not os.path.isdir(file):
        named = [_real(file)]
    else:
        held = settings.project_files(project.find(file), file, []) if file else obj[1].files
        named = [found.path for found in held]
    if revoke:
        revoked = [path for path in named if trusted.revoke(path)]
        for path in revoked:
            out(f"revoked {path}")
        if not revoked:
            raise SandrunError("nothing there was trusted", "sandrun trust --list")
        return
    files = [found for path in named if (found := read.get(path) or _settings_at(path))]
    if not files:
        raise SandrunError(f"no settings in {file or 'this project'}", "sandrun config")
    for found in files:
        trusted.add(found)
        texts = ", ".join(f"{key} = {text}" for key, text in found.texts().items())
        out(f"trusted {found.path}: {texts or 'it sets nothing'}")


def _real(file: str) -> str:
    """The path under which the settings know a file."""
    directory, name = os.path.split(os.path.abspath(file))
    return os.path.join(os.path.realpath(directory), name)


def _settings_at(path: str) -> "settings_files.File | None":
    complaints: list[str] = []
    top = project.find(os.path.dirname(path))
    found = settings_files.load(path, top, complaints, foreign=True)
    for complaint in complaints:
        messages.warn(complaint)
    return found


@click.group(cls=Group, short_help="Run make, git and other tools in the queue by name.")
def shims() -> None:
    """Small programs, first on PATH, that run make, git and other tools in the queue."""


@shims.command("add", short_help="Write shims for tools.")
@click.argument("tools", nargs=-1, required=True)
def shims_add(tools: "tuple[str, ...]") -> None:
    """Write shims for tools: make, ninja, cmake, pytest, npm, cargo, go, git, or any other."""
    from sandrun.integrations import shims as made

    for tool in tools:
        out(made.add(tool))
    if not made.active():
        messages.status("not on PATH yet: sandrun shims activate --help")


@shims.command("remove")
@click.argument("tools", nargs=-1, required=True)
@click.option("--no-forward", is_flag=True, help="Leave no forwarder, and remove an earlier one.")
def shims_remove(tools: "tuple[str, ...]", no_forward: bool) -> None:
    """Remove the shims for tools.

    A forwarder, which runs the tool without sandrun, takes the place of each shim, because a build
    that was configured with the shim has stored its path (CMakeCache.txt, config.status).
    """
    from sandrun.integrations import shims as made

    for tool in tools:
        path = made.remove(tool, forward=not no_forward)
        left = os.path.exists(path)
        out(f"removed {path}" + (", a forwarder in its place (or: --no-forward)" if left else ""))


@shims.command("list")
def shims_list() -> None:
    """List the tools that have a shim."""
    from sandrun.integrations import shims as made

    tools = made.installed()
    for tool in tools:
        out(tool)
        if first := made.hidden(tool):
            messages.status(f"{first} comes before the shim for {tool}: activate the shims last")
    if not tools:
        messages.status("no shims yet: sandrun shims add make")
    elif not made.active():
        messages.status("not on PATH yet: sandrun shims activate --help")


@shims.command("activate", short_help="Print the code that puts the shims first on PATH.")
@click.argument("shell", type=click.Choice([*SHELLS.choices, "cmd", "powershell"]))
def shims_activate(shell: str) -> None:
    """Print the code that a shell evaluates to put the shims first on its PATH.

    \b
    bash, zsh   eval "$(sandrun shims activate bash)"
    fish        sandrun shims activate fish | source
    powershell  sandrun shims activate powershell | Invoke-Expression
    cmd         for /f "delims=" %i in ('sandrun shims activate cmd') do %i
    """
    from sandrun.integrations import shims as made

    page(made.activation(shell))


@click.command("make-include", short_help="Print the path of sandrun.mk, for Makefiles.")
def make_include() -> None:
    """Print the path of sandrun.mk, the file that a Makefile includes."""
    from sandrun.integrations import init as setting_up

    page(setting_up.include())


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
    page(shells.text(ctx.find_root().command, shell))


@click.command()
@click.pass_context
def man(ctx: click.Context) -> None:
    """Print the manual page: sandrun man | man -l -"""
    page(describe.manual(ctx.find_root().command))


@click.command("make-again", hidden=True)
def make_again() -> None:
    """Start the make that called this again, inside a run. Only for sandrun.mk."""
    raise AssertionError("handled before click is loaded")


ALL = (init, trust, shims, make_include, make_again, completions, man)
