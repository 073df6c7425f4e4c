"""The reports of a run's end: the post-mortem of a memory limit, files, a CI service's page.

Imported only if one of these is wanted. The failure of one affects neither the others nor the exit
code.
"""

from sandrun import messages
from sandrun.insight import json_report, plots, post_mortem, run_log
from sandrun.insight.run_log import RunLog
from sandrun.integrations import ci
from sandrun.model import SandrunError, span_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.cli import End
    from sandrun.types import Record

_CURVE = 40
"""A sparkline has at most so many characters."""
_MINUTE = 60.0


def report(end: "End", record: "Record") -> None:
    """Report a run that is recorded."""
    log = run_log.of_record(record)
    if record["reason"] in ("memory", "outer-memory"):
        _try(lambda: _post_mortem(log))
    if end.json_report:
        _try(lambda: json_report.write(end.json_report, json_report.of_run(log)))
    if end.has_ci_page:
        _try(lambda: _show_on_page(log))
    if end.metrics_textfile:
        _try(lambda: _write_metrics(end.metrics_textfile, end.pool))


def failed(end: "End", text: str, hint: str, code: int) -> None:
    """Report that sandrun failed, or that the wait ended without a turn."""
    if end.json_report:
        content = json_report.of_failure(end.run_id, text, hint, code)
        _try(lambda: json_report.write(end.json_report, content))
    if end.has_ci_page:
        ci.failed(text, hint)


def _try(step: "Callable[[], None]") -> None:
    try:
        step()
    except OSError as error:
        messages.warn(f"cannot write {error.filename}: {error.strerror}")
    except SandrunError as error:
        messages.warn(error.text, error.hint)


def _post_mortem(log: RunLog) -> None:
    """After the message about the limit, print the memory of the last minute and the command that
    shows the rest."""
    if log.samples is None:
        return
    curve = _sparkline(log, _MINUTE, plots.can_show_blocks(2))
    span = span_text(min(_MINUTE, log.record.get("wall", 0.0)))
    text = f"memory in the last {span}: {curve}; " if curve else ""
    messages.status(f"{text}more: sandrun log {log.id}")


def _show_on_page(log: RunLog) -> None:
    advice = post_mortem.advice(log.record)
    curve = _sparkline(log, float("inf"), blocks=True)
    ci.ended(log.record, curve, advice.options if advice else "")


def _sparkline(log: RunLog, seconds: float, blocks: bool) -> str:
    """The memory in the last `seconds` of a run, against its limit; '' without samples."""
    points = log.samples.points if log.samples else []
    if len(points) < 2:
        return ""
    end = points[-1].t
    start = max(0.0, end - seconds)
    series = [(point.t, float(point.memory)) for point in points if point.t >= start]
    values = plots.columns(series, start, end, min(_CURVE, len(series)))
    return plots.sparkline(values, float(log.record.get("limit", 0)), blocks)


def _write_metrics(path: str, pool: str) -> None:
    from sandrun.cli import extras

    extras.load("prometheus_client", extras.PROMETHEUS, "metrics_textfile")
    from sandrun.insight import metrics as found

    found.write(path, pool)
