"""The messages about a run that did not simply exit: limits, leftovers, failures to start.

Imported only when there is something to report.
"""

import errno
import os
import signal
import sys
import time

from sandrun import messages
from sandrun.model import (
    EXIT_NOT_EXECUTABLE,
    EXIT_NOT_FOUND,
    EXIT_SANDRUN,
    MIB,
    QUIET_SIGNALS,
    Outcome,
    Process,
    size_text,
    span_text,
)
from sandrun.platform import processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.backends.protocol import Backend, Container
    from sandrun.config.settings import Settings


_BURST_SECONDS = 0.1
"""Seconds after which a burst of allocations is over."""


class MemoryWarning:
    """Reports once that half of the memory limit is in use, if the usage still grows: a burst that
    ends there needs no warning, and a run that soon reaches the limit is reported then. With -v, it
    reports at once."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.since = time.monotonic()
        self.settled = 0

    def report(self, current: int, container: "Container") -> bool:
        """Take note of the `current` usage. Returns whether it was reported."""
        if not self.settled and time.monotonic() >= self.since + _BURST_SECONDS:
            self.settled = current
        grows = self.settled and current > self.settled + self.limit // 50
        if not grows and messages.level < 1:
            return False
        top = container.top_consumers()
        most = f"; most by {top[0].command} (pid {top[0].pid})" if top else ""
        left = size_text(max(0, self.limit - current))
        messages.status(
            f"memory: {size_text(current)} of {size_text(self.limit)} in use "
            f"({current * 100 // self.limit} %), {left} left{most}"
        )
        return True


def end(outcome: Outcome, settings: "Settings", backend: "Backend") -> None:
    """Report why the run ended, unless the command simply exited, and its leftovers."""
    if outcome.reason in ("memory", "outer-memory"):
        _memory(outcome, settings, backend)
    elif outcome.reason in ("timeout", "cpu-time", "idle"):
        messages.error(*_time(outcome.reason, settings))
    elif outcome.reason == "parent":
        messages.error(
            "ended the run: the process that had started sandrun died",
            "to keep it running then: --detach, nohup or setsid",
        )
    elif (
        outcome.reason == "signal" and not outcome.forwarded and outcome.signal not in QUIET_SIGNALS
    ):
        messages.status(_signal(outcome))
    if outcome.escaped:
        write = messages.error if outcome.reason == "escaped" else messages.warn
        write(*_escaped(outcome, settings))
    if outcome.usage.failed_starts[0]:
        messages.warn(*_processes(*outcome.usage.failed_starts, settings))
    if outcome.code and outcome.reason in ("exit", "signal"):
        for kind, (had, most) in outcome.usage.near_limits.items():
            messages.warn(*_backstop(kind, had, most))
    ended = [process for process in outcome.leftovers if process.pid not in outcome.unkillable]
    if ended and outcome.reason in ("exit", "signal"):
        _left_behind(ended, settings)
    if outcome.outside:
        messages.warn(*_outside(outcome.outside))
    if outcome.shared[0]:
        messages.warn(*_shared(*outcome.shared))
    for pid in outcome.unkillable:
        way_out = f"it keeps the queue's run lock as long as it lives{way_to_end(pid)}"
        messages.warn(f"could not end {unkillable(pid)}", way_out)


def _left_behind(found: "list[Process]", settings: "Settings") -> None:
    from sandrun.supervise import daemons

    news = [process for process in found if not daemons.is_own_server(process, settings)]
    if not news:
        return
    messages.warn(
        f"{_did(settings)} {_count(news)} that the command left behind: "
        + ", ".join(f"{p.command} (pid {p.pid})" for p in news[:5]),
        "" if settings.leftovers == "leave" else daemons.ways_out(news),
    )


def _did(settings: "Settings") -> str:
    return {"wait": "waited for", "leave": "left alone"}.get(settings.leftovers, "ended")


def _escaped(outcome: Outcome, settings: "Settings") -> "tuple[str, str]":
    """Which processes left the container, to which group, what had started them, and whether they
    were ended; and a hint."""
    first = [escape for escape in outcome.escaped.values() if escape.is_first]
    texts = []
    for escape in first[:3]:
        of, by = escape.process, escape.parent
        started = f", started by {by.command[:_SHORT]} (pid {by.pid})" if by else ""
        texts.append(f"{of.command[:_SHORT]} (pid {of.pid}{started}), in {escape.group}")
    more = len(outcome.escaped) - len(texts)
    text = f"left the run's container, so its limits did not apply to: {'; '.join(texts)}"
    text += f"; and {more} more" if more else ""
    if any(escape.outlived_command for escape in outcome.escaped.values()):
        text += f"; {_did(settings)} at the end"
    if outcome.reason == "escaped":
        text = f"--require kernel: ended the run, because a process {text}"
    # podman puts the processes into a group inside its scope.
    names = [e.group.removesuffix("/container").rpartition("/")[2] for e in first]
    hints = (hint for start, hint in _KEEPS_INSIDE if any(n.startswith(start) for n in names))
    return text, next(hints, "start it in the run's own group, or with limits of its own")


_SHORT = 80
_KEEPS_INSIDE = (
    ("session-", "runuser -u USER or sudo -u USER stays inside; a login (su, sudo -i) does not"),
    ("tmux-spawn-", "start tmux outside of the run, or use screen: tmux makes each pane a scope"),
    ("libpod-", "podman 4.4 and newer stays inside with --cgroups=split"),
    ("snap.", "snap puts each into a scope; limit that by systemctl set-property"),
    ("run-", "without systemd-run --scope it stays inside; or limit the scope: -p MemoryMax="),
)
"""How to keep such processes in the run, by the start of their group's name."""


def _outside(found: "list[Process]") -> "tuple[str, str]":
    from sandrun.supervise import daemons

    who = ", ".join(f"{p.daemon} (pid {p.pid})" for p in found[:3])
    text = (
        f"{who} worked during the run but was started outside of it: the run's limits and end do "
        "not apply to it"
    )
    return text, f"{daemons.ways_out(found)}; to accept that: --daemons leave"


def _shared(texts: "list[str]", commands: "list[str]") -> "tuple[str, str]":
    shown = texts[:5] + ([f"{len(texts) - 5} more"] if len(texts) > 5 else [])
    text = "shared memory outlives the run: " + ", ".join(shown)
    return text, f"if it is the run's: {'; '.join(commands[:5])}" if commands else ""


def _signal(outcome: Outcome) -> str:
    """The message that a shell would print, which sees only our exit code."""
    try:
        name = signal.Signals(outcome.signal).name
    except ValueError:
        name = f"signal {outcome.signal}"
    words = [signal.strsignal(outcome.signal) or "", "core dumped" if outcome.dumped else ""]
    text = f"the command was ended by {name} ({', '.join(filter(None, words)).lower()})"
    if name == "SIGKILL":
        text += "; no limit of the run did that: it was a kill -9, or the host ran out of memory"
    return text


def _processes(refused: int, limit: int, settings: "Settings") -> "tuple[str, str]":
    times = f"refused {refused} time" + ("" if refused == 1 else "s")
    if limit < settings.pids or settings.pids <= 0:
        return (
            f"an enclosing limit of {limit} processes and threads was reached: {times} to start "
            "another",
            "check the container's pids limit and the TasksMax of the unit and the slice",
        )
    return (
        f"limit of {limit} processes and threads reached: {times} to start another",
        f"allow more: --pids {2 * limit}, or pids = {2 * limit} in sandrun.toml",
    )


def _backstop(kind: str, had: int, most: int) -> "tuple[str, str]":
    if kind == "data":
        return (
            f"it may have failed for lack of memory: a process had {size_text(had)} of data, and "
            f"your own limit allows each {size_text(most)} (RLIMIT_DATA)",
            "allow more: ulimit -d unlimited",
        )
    return (
        f"it may have failed for lack of processes: it had {had} processes and threads, and the "
        f"fallback allows about {most} (RLIMIT_NPROC)",
        "there is no such limit where a kernel enforces the limits: sandrun doctor",
    )


def _time(reason: str, settings: "Settings") -> "tuple[str, str]":
    if reason == "timeout":
        return (
            f"timeout: ended the run after {span_text(settings.timeout)}",
            "more time: --timeout TIME or TIMEOUT=SECONDS; none: --timeout 0",
        )
    if reason == "cpu-time":
        return (
            f"cpu-time: ended the run after {span_text(settings.cpu_time)} of CPU time",
            "more: --cpu-time TIME; none: --cpu-time 0",
        )
    return (
        f"idle-timeout: ended the run, {span_text(settings.idle_timeout)} without output "
        "and without use of the CPU",
        "more: --idle-timeout TIME; none: --idle-timeout 0",
    )


def unkillable(pid: int) -> str:
    """A process that survived SIGKILL, and why."""
    if sys.platform == "win32":
        named = processes.describe(pid)
        return f"{named.command if named else 'it'} (pid {pid}): it was terminated and still runs"
    try:
        stat = processes.Stat(pid)
        owner = processes.owner(pid)
    except OSError:
        if processes.has_exited(pid):
            return f"pid {pid} in time; it is gone now"
        return f"pid {pid}: /proc does not show it, perhaps because it hides other users' processes"
    if os.geteuid() not in (0, owner):
        why = f"it belongs to uid {owner}, and we may not signal it"
    elif stat.state == "D":
        why = "it is in uninterruptible sleep, waiting for a device or a file system"
    else:
        why = f"it is in state {stat.state}"
    process = processes.describe(pid)
    return f"{process.command if process else stat.name} (pid {pid}): {why}"


def way_to_end(pid: int) -> str:
    """A command that ends such a process, as the end of a sentence; '' if only waiting helps."""
    if sys.platform == "win32":
        return ""
    try:
        foreign = os.geteuid() not in (0, processes.owner(pid))
    except OSError:  # one that /proc hides
        foreign = False
    return f"; to end it: sudo kill {pid}" if foreign else ""


def _memory(outcome: Outcome, settings: "Settings", backend: "Backend") -> None:
    by = "the kernel" if backend.kernel else "polling"
    usage = outcome.usage
    label = " as sampled" if usage.sampled else ""
    kinds = "".join(f", {kind} {size_text(size)}" for kind, size in usage.breakdown.items())
    if usage.breakdown and max(usage.breakdown, key=usage.breakdown.__getitem__) == "kernel":
        kinds += " (such as inodes, dentries, pipes, sockets)"
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
        text = f"killed by an enclosing memory limit (the run's own limit is {own}; {facts})"
        hint = "check the container's memory limit, the slice's MemoryMax, and the host's memory"
    lines = [f"  {size_text(p.memory):>9}  pid {p.pid}  {p.command}" for p in outcome.top_consumers]
    messages.error(text, hint, lines)


def _count(found: "list[Process]") -> str:
    return f"{len(found)} process" + ("" if len(found) == 1 else "es")


def not_started(stage: str, number: int, command: "list[str]") -> Outcome:
    """Report why the command could not be started, as a shell would; return the outcome.

    `stage` is E when the child could not enter its container, X when exec failed.
    """
    if stage == "E":
        messages.error(
            f"cannot enter the container: {os.strerror(number)}; the command was not started",
            messages.shortage_hint(number)
            if number in (errno.EMFILE, errno.ENFILE)
            else "see sandrun doctor",
        )
        return Outcome("failed", EXIT_SANDRUN)
    name = command[0]
    missing = number in (errno.ENOENT, errno.ENOTDIR)
    hint = ""
    if missing:
        from sandrun.supervise import command_lookup

        hint = command_lookup.hint(command)
    found_nowhere = number == errno.ENOENT and "/" not in name
    why = "command not found" if found_nowhere else os.strerror(number)
    messages.error(f"{name}: {why}", hint)
    return Outcome("not-started", EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE)
