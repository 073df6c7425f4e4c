"""Reports of a run to a CI service: a limit that was hit, a long wait, time and memory used.

GitHub Actions: a workflow command on stderr becomes an annotation, and a row is added to the file
GITHUB_STEP_SUMMARY. GitLab has neither, so there one line in the job's log has the same facts.
Only the outermost run is reported. A failure to report it does not affect the run. Callers hand in
the memory over time as a sparkline, and what past runs suggest; '' where there is nothing.

Source: docs.github.com, "Workflow commands for GitHub Actions" (escapes, GITHUB_STEP_SUMMARY).
"""

import os

from sandrun import messages
from sandrun.model import command_text, plain, size_text, span_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.types import Reason, Record

LONG_WAIT = 60.0
"""Seconds. A wait that is at least so long is annotated."""

_HEADER = """
| sandrun | result | waited | ran | peak memory | limit | backend | memory over time | suggested |
|---|---|---|---|---|---|---|---|---|
"""
_LIMITS: "dict[Reason, str]" = {
    "memory": "memory limit reached",
    "outer-memory": "enclosing memory limit reached",
    "timeout": "wall time limit reached",
    "cpu-time": "CPU time limit reached",
    "idle": "idle for too long",
    "escaped": "left its container",
}


def failed(text: str, hint: str) -> None:
    """Show a failure of sandrun itself."""
    if "GITHUB_ACTIONS" in os.environ:
        _annotate("error", "sandrun failed", f"{text}; {hint}")


def ended(record: "Record", curve: str = "", suggested: str = "") -> None:
    """Show how a run ended."""
    if "GITHUB_ACTIONS" not in os.environ:
        _, result, waited, ran, peak, limit, _ = _cells(record)
        text = f"{result}; waited {waited}; ran {ran}; peak memory {peak} of {limit}"
        text += f"; memory {curve}" if curve else ""
        messages.status(text + (f"; suggested: {suggested}" if suggested else ""))
        return
    command = command_text(record["command"])
    limit_text = _LIMITS.get(record["reason"])
    if limit_text:
        peak = f"peak {size_text(record.get('peak'))} of {size_text(record.get('limit'))}"
        advice = f"; suggested: {suggested}" if suggested else ""
        _annotate("error", f"sandrun: {limit_text}", f"{command} ({peak}){advice}")
    wait = record.get("wait", 0.0)
    if wait >= LONG_WAIT:
        text = f"{command} waited {span_text(wait)} for its turn"
        _annotate("notice", "sandrun: long wait", text)
    _summarise([*_cells(record), curve, f"`{suggested}`" if suggested else ""])


def _cells(record: "Record") -> "list[str]":
    """The cells of a row: command, result, waited, ran, peak, limit, backend."""
    return [
        "`" + command_text(record["command"])[:200].replace("`", "'") + "`",
        _LIMITS.get(record["reason"], f"exit {record['exit']}"),
        span_text(record.get("wait", 0.0)),
        span_text(record["wall"]),
        size_text(record.get("peak")),
        size_text(record.get("limit")),
        record.get("backend", "none"),
    ]


def _annotate(kind: str, title: str, text: str) -> None:
    def escape(value: str, more: str = "") -> str:
        for char in "%\r\n" + more:
            value = value.replace(char, f"%{ord(char):02X}")
        return value

    # The text comes from others: without control characters it cannot start another command.
    title, text = plain(title), plain(text)
    messages.write(f"::{kind} title={escape(title, ':,')}::{escape(text)}\n")


def _summarise(cells: "list[str]") -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    try:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        for name in ("O_CLOEXEC", "O_BINARY", "O_NONBLOCK"):  # a FIFO would block
            flags |= getattr(os, name, 0)
        fd = os.open(path, flags, 0o644)
        try:
            has_header = _HEADER.strip().encode() in os.read(fd, 1 << 20)
            os.write(fd, (row if has_header else _HEADER + row).encode())
        finally:
            os.close(fd)
    except OSError as error:
        messages.decision(f"cannot write {path}: {error.strerror}")
