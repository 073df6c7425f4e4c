"""What sandrun says about a run that did not simply end: limits, leftovers, failures to start.

Imported only when there is something to say.
"""

import errno
import os
import sys

from sandrun import kernel, messages
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
    elif outcome.reason in ("timeout", "cpu-time", "idle"):
        messages.error(*_time(outcome.reason, settings))
    elif outcome.reason == "parent":
        messages.error(
            "ended the run: the process that had started sandrun died",
            "to go on all the same: --detach, nohup or setsid",
        )
    if outcome.leftovers and outcome.reason in ("exit", "signal"):
        did = {"wait": "waited for", "leave": "left alone"}.get(settings.leftovers, "ended")
        messages.warn(
            f"{did} {_count(outcome.leftovers)} that the command left behind: "
            + ", ".join(f"{p.command} (pid {p.pid})" for p in outcome.leftovers[:5])
        )
    for pid in outcome.undead:
        messages.warn(f"could not end {_describe_undead(pid)}")


def _time(reason: str, settings: "Settings") -> "tuple[str, str]":
    if reason == "timeout":
        return (
            f"timeout: ended the run after {span_text(settings.timeout)}",
            "more time: --timeout TIME or TIMEOUT=SECONDS; none: --timeout 0",
        )
    if reason == "cpu-time":
        return (
            f"cpu-time: ended the run after {span_text(settings.cpu_time)} on the processors",
            "more: --cpu-time TIME; none: --cpu-time 0",
        )
    return (
        f"idle-timeout: ended the run, {span_text(settings.idle_timeout)} without output "
        "and without use of the CPU",
        "more: --idle-timeout TIME; none: --idle-timeout 0",
    )


def _describe_undead(pid: int) -> str:
    """A process that survived SIGKILL, and why it could."""
    if sys.platform == "win32":
        named = kernel.describe(pid)
        return f"{named.command if named else 'it'} (pid {pid}): it was terminated, and lives"
    try:
        stat = kernel.Stat(pid)
        owner = kernel.owner(pid)
    except OSError:
        return f"pid {pid} in time; it is gone now"
    if os.geteuid() not in (0, owner):
        why = f"it belongs to uid {owner}, and we may not signal it"
    elif stat.state == "D":
        why = "it is in uninterruptible sleep, waiting for a device or a file system"
    else:
        why = f"it is in state {stat.state}"
    process = kernel.describe(pid)
    return f"{process.command if process else stat.name} (pid {pid}): {why}"


def _memory(outcome: Outcome, settings: "Settings", backend: "Backend") -> None:
    by = "the kernel" if backend.kernel else "polling"
    usage = outcome.usage
    label = " as sampled" if usage.sampled else ""
    kinds = "".join(f", {kind} {size_text(size)}" for kind, size in usage.kinds.items())
    stalled = usage.stalled or 0.0
    waited = f", waited {span_text(stalled)} for memory" if stalled >= 0.1 else ""
    facts = f"peak {size_text(usage.peak)}{label}{kinds}{waited}; enforced by {by}, {backend.name}"
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
    messages.error(text, hint, lines)


def _count(processes: "list[Process]") -> str:
    return f"{len(processes)} process" + ("" if len(processes) == 1 else "es")


def not_started(stage: str, number: int, command: "list[str]") -> Outcome:
    """Say why the command could not be started, as a shell would; the outcome.

    `stage` is E when the child could not enter its container, X when exec failed.
    """
    if stage == "E":
        messages.error(
            f"cannot enter the container: {os.strerror(number)}; the command was not started",
            messages.more_of(number)
            if number in (errno.EMFILE, errno.ENFILE)
            else "see sandrun doctor",
        )
        return Outcome("failed", EXIT_SANDRUN)
    name = command[0]
    missing = number in (errno.ENOENT, errno.ENOTDIR)
    hint = ""
    if missing:
        from sandrun import lookup

        hint = lookup.hint(command)
    found_nowhere = number == errno.ENOENT and "/" not in name
    why = "command not found" if found_nowhere else os.strerror(number)
    messages.error(f"{name}: {why}", hint)
    return Outcome("not-started", EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE)
