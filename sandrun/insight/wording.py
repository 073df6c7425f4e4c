"""Words that several views share: counts, durations, moments, and how a run ended."""

import time

from sandrun.model import span_text

REASONS = {
    "memory": "memory limit",
    "outer-memory": "outer limit",
    "cpu-time": "cpu time",
    "parent": "parent died",
    "not-started": "not started",
    "left": "left queue",
}
"""Reasons of at most twelve characters, in words; those that are missing are words already."""


def count(number: int, noun: str) -> str:
    """`1 run`, `1,200 runs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def hours(seconds: float) -> str:
    """A sum of durations: in hours where it has some."""
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else span_text(seconds)


def short_span(seconds: float) -> str:
    """A duration in at most six characters: `0.4s`, `59s`, `3m20s`, `2h05m`, `3d04h`, `999d`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    days = whole // 86400
    return f"{days}d{whole % 86400 // 3600:02}h" if days < 100 else f"{min(days, 99999)}d"


def moment(seconds: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A local time."""
    try:
        return time.strftime(form, time.localtime(seconds))
    except (OverflowError, ValueError, OSError):  # beyond what localtime(3) can convert
        return f"{seconds:.0f} s after 1970"


def ending(reason: str, code: "int | None") -> str:
    """How a run ended: `ok`, `exit 2`, `signal 15`, `memory limit`; '' if it is not known."""
    if reason == "exit":
        return "ok" if code == 0 else f"exit {code}"
    if reason == "signal" and code is not None:
        return f"signal {code - 128}" if 128 < code < 256 else "signal"
    return REASONS.get(reason, reason)
