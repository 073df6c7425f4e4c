"""The table of options: one corpus of command lines through both parsers, and the converters."""

import click
import pytest

from sandrun import cli
from sandrun.cli import app
from sandrun.config import options, values
from sandrun.model import MIB, UsageError

CORPUS = [
    "true",
    "make test",
    "make -j4 --memory 3G test",
    "-- make -v",
    "-v make",
    "-vv -- make",
    "-qq make",
    "-vq make",
    "--verbose --verbose make",
    "-m 4G make",
    "-m4G make",
    "-vm4G make",
    "-m=4G make",
    "--memory 4G make",
    "--memory=4G make",
    "--memory= make",
    "--memory make",
    "--memory",
    "-m",
    "--memory 4G --memory 5G make",
    "--mem 4G make",
    "--timeout 90 make",
    "-t 1.5m make",
    "-t -5 make",
    "--timeout=nan make",
    "--check-interval 0 make",
    "--backend rlimit make",
    "--backend magic make",
    "--verbose=2 make",
    "-x make",
    "-vx make",
    "--no-such make",
    "--queue device make",
    "--queue= make",
    "-C /tmp make",
    "-C/tmp make",
    "--pids 10 --cpus 1.5 --cpu-weight 50 make",
    "--cpu-weight 0 make",
    "--io-read-bps 20M make",
    "--color always -- -v",
    "-- --",
    "- a",
    "-",
    "-v -",
    "status",
    "-v status --json",
    "status --queue x --json",
    "status --json --queue=x",
    "status -C ..",
    "-C /tmp status -C ..",
    "status -C/tmp -vq",
    "kill -q",
    "-q kill -qv ID",
    "kill ID -q --grace 2",
    "kill -- -q",
    "kill -",
    "doctor -v",
    "doctor -vx",
    "doctor --json -m4G",
    "status --memory lots",
    "status --queue",
    "status --no-such",
    "status --memroy 4G",
    "queue -v",
    "queue --queue x move ID --priority high -v",
    "queue move --priority high ID --queue x",
    "queue move ID -p low",
    "queue move ID --priority=low",
    "-p high queue move ID --priority low",
    "queue cancel ID -C /tmp",
    "queue mvoe ID",
    "shims add make -v",
    "shims -q list",
    "completions bash -q",
    "git -C x status --queue y",
    "git commit -q",
    "status -h",
    "init --undo -C /tmp",
]


def ours(argv: "list[str]") -> object:
    try:
        parsed = cli.parse(argv)
    except UsageError:
        return "refused"
    own = parsed.arguments
    if parsed.subcommand not in ("", "git"):
        # Whether a subcommand takes its own words only click knows.
        try:
            above = click.Context(app.cli, help_option_names=["-h", "--help"])
            inner(app.cli.commands[parsed.subcommand], parsed.subcommand, own, above)
        except click.ClickException:
            return "refused"
    return parsed.flags, parsed.command or [parsed.subcommand, *own]


def inner(command: click.Command, name: str, words: "list[str]", parent: click.Context) -> None:
    """Have click parse a subcommand's words, to the last one. Raises click's exceptions."""
    try:
        context = command.make_context(name, list(words), parent=parent)
    except click.exceptions.Exit:  # --help
        return
    if isinstance(command, click.Group) and (rest := remaining(context)):
        found, sub, more = command.resolve_command(context, rest)
        assert found and sub
        inner(sub, found, more, context)


def remaining(context: click.Context) -> "list[str]":
    name = "_protected_args" if hasattr(context, "_protected_args") else "protected_args"
    return [*getattr(context, name, ()), *context.args]


def clicks(argv: "list[str]") -> object:
    try:
        context = app.cli.make_context("sandrun", list(argv))
        words = remaining(context)
        before = argv[: argv.index(words[0])] if words else []
        is_ours = words and words[0] in app.cli.commands and "--" not in before
        if is_ours and words[0] != "git":
            inner(app.cli.commands[words[0]], words[0], words[1:], context)
    except click.ClickException:
        return "refused"
    flags = {key: value for key, value in context.params.items() if value not in (None, 0)}
    return flags, words


@pytest.mark.parametrize("line", CORPUS)
def test_both_parsers_agree_on_a_command_line(line: str) -> None:
    assert ours(line.split()) == clicks(line.split())


@pytest.mark.parametrize(
    ("line", "subcommand"),
    [
        ("status", "status"),
        ("-v status --json", "status"),
        ("-- status", ""),
        ("make status", ""),
        ("--help", "--help"),
        ("-h", "--help"),
        ("-v --version", "--version"),
        ("make --help", ""),
        ("make status --queue x", ""),
    ],
)
def test_subcommands_are_recognized(line: str, subcommand: str) -> None:
    assert cli.parse(line.split()).subcommand == subcommand


def test_the_table_of_subcommands_is_clicks() -> None:
    assert set(app.cli.commands) == options.SUBCOMMANDS


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB),
        ("512M", 512 * MIB),
        ("1.5GiB", 1536 * MIB),
        ("2gb", 2048 * MIB),
        ("4096k", 4 * MIB),
        ("1t", 1 << 40),
        (" 64 ", 64 * MIB),
        ("2097152B", 2 * MIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert values.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "0", "nan", "inf", "1e30", "64K", "4 GB B", "2e6T"]
)
def test_invalid_sizes(text: str) -> None:
    with pytest.raises(ValueError):
        values.parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("200ms", 0.2),
        ("1.5s", 1.5),
        ("10m", 600),
        ("2h", 7200),
        ("1d", 86400),
        ("1e15d", 10 * 365 * 86400),
    ],
)
def test_spans(text: str, seconds: float) -> None:
    assert values.parse_span(text) == seconds


def test_every_option_describes_its_valid_values() -> None:
    """The message for a refused value is ours, never Python's."""
    for option in options.OPTIONS:
        if option.kind in ("text", "name", "count"):
            continue
        with pytest.raises(ValueError, match=r"^(a|one of|high|off)\b"):
            option.convert("!")
