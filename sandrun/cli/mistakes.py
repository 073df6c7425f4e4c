"""Usage errors of subcommands: what is wrong, and what was probably meant."""

import click

from sandrun.config import options


class NoSuchSubcommand(click.UsageError):
    """The group has no subcommand with that name."""

    def __init__(self, name: str, ctx: click.Context) -> None:
        super().__init__(f"no such subcommand: {ctx.command_path} {name}", ctx)
        self.name = name


class Group(click.Group):
    """A group that suggests the subcommand that was probably meant."""

    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: "list[str]"
    ) -> "tuple[str | None, click.Command | None, list[str]]":
        if self.get_command(ctx, args[0]) is None and args[0][:1] != "-":
            raise NoSuchSubcommand(args[0], ctx)
        return super().resolve_command(ctx, args)


def explained(error: click.ClickException) -> "tuple[str, str]":
    """The text and the hint of an error, in sandrun's form."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    if ctx is None:
        return error.format_message(), "sandrun --help"
    text, meant = error.message, ""
    if isinstance(error, NoSuchSubcommand) and isinstance(ctx.command, click.Group):
        meant = options.did_you_mean(error.name, ctx.command.commands)
        meant = meant.replace(": ", f": {ctx.command_path} ", 1)
    elif isinstance(error, click.NoSuchOption):
        text = f"no such option: {error.option_name}"
        known = [name for param in ctx.command.get_params(ctx) for name in param.opts]
        flags = [name for option in options.OPTIONS for name in option.flags]
        meant = options.did_you_mean(error.option_name, [*known, *flags])
    else:
        text = " ".join(error.format_message().split())  # some messages have several lines
    return text[:1].lower() + text[1:].rstrip("."), meant or f"{ctx.command_path} --help"
