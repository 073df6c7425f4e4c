"""The subcommand log: one past or current run."""

import click

ALL: "tuple[click.Command, ...]" = ()
