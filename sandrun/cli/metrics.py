"""The subcommand metrics: figures for Prometheus."""

import click

from sandrun import messages
from sandrun.cli import extras
from sandrun.cli.answer import page
from sandrun.model import SandrunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.config.settings import Settings


@click.command(short_help="Print metrics for Prometheus, or write them to a file.")
@click.option(
    "--textfile",
    metavar="FILE",
    help="Write them to FILE, for the node exporter's textfile collector, instead.",
)
@click.option("--openmetrics", is_flag=True, help="Print them in the format OpenMetrics 1.0.")
@click.pass_obj
def metrics(
    obj: "tuple[str, Settings]", textfile: "str | None" = None, openmetrics: bool = False
) -> None:
    """Print metrics of your runs, queues and pool in Prometheus' text format.

    \b
    sandrun metrics --textfile /var/lib/prometheus/node-exporter/sandrun.prom

    The file is replaced atomically. Set metrics_textfile to have it written after each run.
    """
    extras.load("prometheus_client", extras.PROMETHEUS, "sandrun metrics")
    from sandrun.insight import metrics as found

    pool = obj[1].pool
    if openmetrics and textfile is not None:
        raise UsageError("the textfile collector does not read OpenMetrics: no --openmetrics here")
    if textfile is not None and not textfile.endswith(".prom"):
        messages.warn(f"{textfile}: the textfile collector reads only files named *.prom")
    try:
        if textfile is not None:
            found.write(textfile, pool)
            return
        text = found.text(pool, openmetrics)
    except OSError as error:
        file = error.filename or "a file without a name"
        raise SandrunError(f"cannot write {file}: {error.strerror}") from error
    page(text.decode().rstrip("\n"))


ALL: "tuple[click.Command, ...]" = (metrics,)
