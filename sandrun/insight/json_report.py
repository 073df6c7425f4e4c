"""The report of one run in a file for CI (`--json-report FILE`): its outcome, its figures, and its
samples in short. The schema is `json-report`.

Promises that the file is replaced atomically, and that it is written after every end of the run
that sandrun survives: also when a limit, a timeout or a signal ended the run, and when the command
could not be started.
"""

import json
from typing import Any

from sandrun.insight import run_text
from sandrun.insight.output import replaceable
from sandrun.insight.run_log import RunLog
from sandrun.platform.small_files import replace

VERSION = 1
_POINTS = 60


def of_run(log: RunLog) -> "dict[str, Any]":
    """The report of a run that has a record."""
    whole = log.as_json(_POINTS)
    record = log.record
    return {
        "v": VERSION,
        "id": log.id,
        "exit": record.get("exit"),
        "reason": record.get("reason"),
        "result": run_text.result(record),
        "error": None,
        **{key: whole[key] for key in ("run", "samples", "events", "suggestion")},
    }


def of_failure(run_id: str, text: str, hint: str, code: int) -> "dict[str, Any]":
    """The report of a run without a record: sandrun failed, or the wait ended without a turn."""
    error = {"text": text, "hint": hint}
    nothing: dict[str, Any] = {"run": None, "samples": None, "events": [], "suggestion": None}
    return {
        "v": VERSION,
        "id": run_id,
        "exit": code,
        "reason": "failed",
        "result": text,
        "error": error,
        **nothing,
    }


def write(path: str, report: "dict[str, Any]") -> None:
    """Write a report. Raises OSError."""
    replace(replaceable(path), json.dumps(report, indent=1).encode() + b"\n")
