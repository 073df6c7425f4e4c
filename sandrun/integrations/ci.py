"""What a CI's pages show of a run: a limit that was hit, a long wait, and what the run needed.

GitHub Actions: a workflow command on stderr becomes an annotation, and a row is added to the file
GITHUB_STEP_SUMMARY. GitLab has neither, so there the same facts are one line of the job's log.
Only the outermost run is shown; one that cannot be shown goes on as it is.

Source: docs.github.com, "Workflow commands for GitHub Actions" (escapes, GITHUB_STEP_SUMMARY).
"""

import os

from sandrun import messages
from sandrun.model import command_text, plain, size_text, span_text

LONG_WAIT = 60.0
"""Seconds of waiting that are worth an annotation."""

_HEADER = """
| sandrun | result | waited | ran | peak memory | limit | backend |
|---|---|---|---|---|---|---|
"""
_STRUCK = {
    "memory": "memory limit reached",
    "outer-memory": "out of memory around the run",
    "timeout": "wall time limit reached",
    "cpu-time": "CPU time limit reached",
    "idle": "idle for too long",
    "escaped": "left its container",
}


def report(event: str, facts: "dict[str, object]") -> None:
    """Show an event of a run (see `messages.tell`)."""
    github = "GITHUB_ACTIONS" in os.environ
    if event == "failed" and github:
        _annotate("error", "sandrun failed", f"{facts['text']}; {facts['hint']}")
    elif event == "ended":
        if not github:
            _, result, waited, ran, peak, limit, _ = _cells(facts)
            messages.status(f"{result}; waited {waited}; ran {ran}; peak memory {peak} of {limit}")
            return
        command = command_text(_words(facts))
        reason = str(facts.get("reason"))
        if reason in _STRUCK:
            peak = f"peak {_size(facts, 'peak')} of {_size(facts, 'limit')}"
            _annotate("error", f"sandrun: {_STRUCK[reason]}", f"{command} ({peak})")
        if _seconds(facts, "wait") >= LONG_WAIT:
            text = f"{command} waited {span_text(_seconds(facts, 'wait'))} for its turn"
            _annotate("notice", "sandrun: long wait", text)
        _summarise(_cells(facts))


def _words(facts: "dict[str, object]") -> "list[str]":
    command = facts.get("command")
    return command if isinstance(command, list) else []


def _seconds(facts: "dict[str, object]", key: str) -> float:
    value = facts.get(key)
    return value if isinstance(value, int | float) else 0.0


def _size(facts: "dict[str, object]", key: str) -> str:
    value = facts.get(key)
    return size_text(value if isinstance(value, int) else None)


def _cells(facts: "dict[str, object]") -> "list[str]":
    """The cells of a row: command, result, waited, ran, peak, limit, backend."""
    reason = str(facts.get("reason"))
    return [
        "`" + command_text(_words(facts))[:200].replace("`", "'") + "`",
        _STRUCK.get(reason, f"exit {facts.get('exit')}"),
        span_text(_seconds(facts, "wait")),
        span_text(_seconds(facts, "wall")),
        _size(facts, "peak"),
        _size(facts, "limit"),
        str(facts.get("backend", "none")),
    ]


def _annotate(kind: str, title: str, text: str) -> None:
    def escape(value: str, more: str = "") -> str:
        for char in "%\r\n" + more:
            value = value.replace(char, f"%{ord(char):02X}")
        return value

    # Our own line starts it; what is in it must not.
    title, text = plain(title), plain(text)
    messages.write(f"::{kind} title={escape(title, ':,')}::{escape(text)}\n")


def _summarise(cells: "list[str]") -> None:
    path = os.environ.get("GITHUB_STEP_SUMMARY")
    if not path:
        return
    row = "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    try:
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            mine = _HEADER.strip().encode() in os.pread(fd, 1 << 20, 0)
            os.write(fd, (row if mine else _HEADER + row).encode())
        finally:
            os.close(fd)
    except OSError as error:
        messages.decision(f"cannot write {path}: {error.strerror}")
