"""Descriptions of the command line, from click's tree of commands: the manual page."""

import click

from sandrun import __version__


def subcommands(group: click.Command) -> "dict[str, click.Command]":
    """The visible subcommands, by name."""
    if not isinstance(group, click.Group):
        return {}
    return {name: c for name, c in sorted(group.commands.items()) if not c.hidden}


def flags(command: click.Command) -> "list[click.Option]":
    """The visible options, including --help."""
    ctx = click.Context(command)
    return [p for p in command.get_params(ctx) if isinstance(p, click.Option) and not p.hidden]


def short_help(command: click.Command) -> str:
    """The description of a subcommand in one line."""
    return command.get_short_help_str(200).rstrip(".")


def flag_help(option: click.Option) -> str:
    """The description of an option in one line."""
    return (option.help or "").partition(". ")[0].rstrip(".")


def manual(root: click.Command) -> str:
    """The manual page, in man(7)'s macros."""
    lines = [f'.TH SANDRUN 1 "" "sandrun {__version__}" "User Commands"', ".SH NAME"]
    lines += ["sandrun \\- run one command at a time per project, with a memory limit"]
    lines += [".SH SYNOPSIS", ".B sandrun", "[OPTIONS] [--] COMMAND [ARGUMENTS]...", ".br"]
    lines += [".B sandrun", "SUBCOMMAND [ARGUMENTS]..."]
    lines += [".SH DESCRIPTION", *_prose(root.help or "")]
    lines += [".SH OPTIONS", *_option_lines(root)]
    lines += [".SH SUBCOMMANDS"]
    for name, command in subcommands(root).items():
        lines += _command_lines(name, command)
    lines += [*_blocks(root.epilog or "")]
    return "\n".join(lines)


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped[:1] in (".", "'") else escaped


def _prose(text: str) -> "list[str]":
    """Paragraphs as lines of roff. A paragraph that starts with \\b keeps its line breaks."""
    lines: list[str] = []
    for paragraph in text.strip().split("\n\n"):
        rows = paragraph.strip("\n").split("\n")
        if lines:
            lines.append(".PP")
        if rows[0].strip() == "\b":
            lines += [".nf", *(_roff(row.strip()) for row in rows[1:]), ".fi"]
        else:
            lines += [_roff(row.strip()) for row in rows]
    return lines


def _option_lines(command: click.Command) -> "list[str]":
    lines = []
    for option in flags(command):
        names = ", ".join(f"\\fB{_roff(name)}\\fR" for name in option.opts)
        plain = option.is_flag or option.count
        metavar = "" if plain else f" \\fI{_roff(option.metavar or 'VALUE')}\\fR"
        lines += [".TP", names + metavar, _roff(option.help or "")]
    return lines


def _command_lines(name: str, command: click.Command) -> "list[str]":
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    words = "".join(f" \\fI{_roff((p.name or '').upper())}\\fR" for p in arguments)
    lines = [f".SS {_roff(name)}{words}", *_prose(command.help or ""), *_option_lines(command)]
    for inner, sub in subcommands(command).items():
        lines += _command_lines(f"{name} {inner}", sub)
    return lines


def _blocks(epilog: str) -> "list[str]":
    """The parts of the epilog as sections, each headed by its first line."""
    lines = []
    for block in epilog.split("\b\n")[1:]:
        title, _, rest = block.strip().partition(":")
        lines += [f".SH {_roff(title.upper())}", ".nf"]
        lines += [_roff(row.strip()) for row in rest.strip().split("\n")] + [".fi"]
    return lines
