"""The subcommand top: queues and runs on a full screen."""

import click

ALL: "tuple[click.Command, ...]" = ()
