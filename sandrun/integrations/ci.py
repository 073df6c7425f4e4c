"""What a CI service shows of a run: a limit that was hit, a long wait, and what the run needed.

GitHub Actions: a workflow command on stderr becomes an annotation, and a row is added to the file
GITHUB_STEP_SUMMARY. GitLab has neither, so there the same facts are one line of the job's log.
Only the outermost run is shown. A failure to show it does not affect the run.

Source: docs.github.com, "Workflow commands for GitHub Actions" (escapes, GITHUB_STEP_SUMMARY).
"""

import os

from sandrun import messages
from sandrun.model import command_text, plain, size_text, span_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.types import Reason, Record

LONG_WAIT = 60.0
"""Waits of at least so many seconds are annotated."""

_HEADER = """
| sandrun | result | waited | ran | peak memory | limit | backend |
|---|---|---|---|---|---|---|
"""
_LIMITS: "dict[Reason, str]" = {
    "memory": "memory limit reached",
    "outer-memory": "enclosing memory limit reached",
    "timeout": "wall time limit reached",
    "cpu-time": "CPU time limit reached",
    "idle": "idle for too long",
    "escaped": "left its container",
}


def queued(run_id: str) -> None:
    """Part of `messages.Subscriber`; nothing to show."""


def failed(text: str, hint: str, code: int) -> None:
    """Show a failure of sandrun itself."""
    if "GITHUB_ACTIONS" in os.environ:
        _annotate("error", "sandrun failed", f"{text}; {hint}")


def ended(record: "Record") -> None:
    """Show how a run ended."""
    if "GITHUB_ACTIONS" not in os.environ:
        _, result, waited, ran, peak, limit, _ = _cells(record)
        messages.status(f"{result}; waited {waited}; ran {ran}; peak memory {peak} of {limit}")
        return
    command = command_text(record["command"])
    limit_text = _LIMITS.get(record["reason"])
    if limit_text:
        peak = f"peak {size_text(record.get('peak'))} of {size_text(record.get('limit'))}"
        _annotate("error", f"sandrun: {limit_text}", f"{command} ({peak})")
    wait = record.get("wait", 0.0)
    if wait >= LONG_WAIT:
        text = f"{command} waited {span_text(wait)} for its turn"
        _annotate("notice", "sandrun: long wait", text)
    _summarise(_cells(record))


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

    # The whole line is ours: its text must start no other workflow command.
    title, text = plain(title), plain(text)
    messages.write(f"::{kind} title={escape(title, ':,')}::{escape(text)}\n")


def _summarise(cells: "list[str]") -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    try:
        flags = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | flags, 0o644)
        try:
            has_header = _HEADER.strip().encode() in os.read(fd, 1 << 20)
            os.write(fd, (row if has_header else _HEADER + row).encode())
        finally:
            os.close(fd)
    except OSError as error:
        messages.decision(f"cannot write {path}: {error.strerror}")
