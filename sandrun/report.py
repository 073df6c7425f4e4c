"""What sandrun says about a run that did not simply end: limits, leftovers, failures to start.

Imported only when there is something to say.
"""

import errno
import os

from sandrun import messages
from sandrun.model import (
    EXIT_NOT_EXECUTABLE,
    EXIT_NOT_FOUND,
    EXIT_SANDRUN,
    MIB,
    Outcome,
    Process,
    size_text,
    span_text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.protocol import Backend
    from sandrun.settings import Settings


def half(current: int, limit: int, top: "list[Process]") -> None:
    """Warn, once a run, that half of the memory limit is in use."""
    biggest = f"; most by {top[0].command} (pid {top[0].pid})" if top else ""
    messages.warn(
        f"memory: {size_text(current)} of {size_text(limit)} in use "
        f"({current * 100 // limit} %){biggest}"
    )


def end(outcome: Outcome, settings: "Settings", backend: "Backend") -> None:
    """Say why the run ended, unless it ended by itself, and what it left behind."""
    if outcome.reason in ("memory", "outer-memory"):
        _memory(outcome, settings, backend)
    elif outcome.reason == "timeout":
        messages.error(
            f"timeout: ended the run after {span_text(settings.timeout)}",
            "more time: --timeout TIME or TIMEOUT=SECONDS; none: --timeout 0",
        )
    if outcome.leftovers and outcome.reason in ("exit", "signal"):
        did = "waited for" if settings.leftovers == "wait" else "ended"
        messages.warn(
            f"{did} {_count(outcome.leftovers)} that the command left behind: "
            + ", ".join(f"{p.command} (pid {p.pid})" for p in outcome.leftovers[:5])
        )


def _memory(outcome: Outcome, settings: "Settings", backend: "Backend") -> None:
    by = "the kernel" if backend.kernel else "polling"
    usage = outcome.usage
    label = " as sampled" if usage.sampled else ""
    kinds = "".join(f", {kind} {size_text(size)}" for kind, size in usage.kinds.items())
    facts = f"peak {size_text(usage.peak)}{label}{kinds}; enforced by {by}, {backend.name}"
    own = size_text(settings.memory)
    twice = max(2 * settings.memory // MIB, 1)
    if outcome.reason == "memory":
        text = f"memory limit of {own} reached: ended the run ({facts})"
        hint = (
            f"allow more: --memory {twice}M, MEMORY_LIMIT_MB={twice}, "
            f'or memory = "{twice}M" in sandrun.toml'
        )
    else:
        text = f"a memory limit around the run struck, not its own of {own}: ended it ({facts})"
        hint = "look at the container's memory limit, the slice's MemoryMax, or the host's memory"
    lines = [f"  {size_text(p.memory):>9}  pid {p.pid}  {p.command}" for p in outcome.top]
    messages.error("\n".join([text, *lines]), hint)


def _count(processes: "list[Process]") -> str:
    return f"{len(processes)} process" + ("" if len(processes) == 1 else "es")


def not_started(stage: str, number: int, name: str) -> Outcome:
    """Say why the command could not be started, as a shell would; the outcome.

    `stage` is E when the child could not enter its container, X when exec failed.
    """
    if stage == "E":
        messages.error(
            f"cannot enter the container: {os.strerror(number)}; the command was not started",
            "see sandrun doctor",
        )
        return Outcome("failed", EXIT_SANDRUN)
    if number == errno.ENOENT and "/" not in name:
        messages.error(f"{name}: command not found")
        return Outcome("not-started", EXIT_NOT_FOUND)
    missing = number in (errno.ENOENT, errno.ENOTDIR)
    messages.error(f"{name}: {os.strerror(number)}")
    return Outcome("not-started", EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE)
