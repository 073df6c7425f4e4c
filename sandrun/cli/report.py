"""The subcommand report: a page about past runs."""

import click

ALL: "tuple[click.Command, ...]" = ()
