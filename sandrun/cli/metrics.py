"""The subcommand metrics: figures for Prometheus."""

import click

ALL: "tuple[click.Command, ...]" = ()
