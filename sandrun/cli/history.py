"""The subcommands history, stats, suggest, schema: what past runs needed."""

import click

ALL: "tuple[click.Command, ...]" = ()
