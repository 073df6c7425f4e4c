"""A finished run with a file of samples, as sandrun writes them, without the time that it takes."""

import json
import time
from pathlib import Path
from typing import Any

from tests.harness import Box

MIB = 1 << 20


def write(
    box: Box,
    run: str,
    *,
    seconds: int = 100,
    limit: int = 2048 * MIB,
    peak: int = 1024 * MIB,
    command: "list[str] | None" = None,
    events: "list[dict[str, Any]] | None" = None,
    record: "dict[str, Any] | None" = None,
    recorded: bool = True,
) -> Path:
    """A run that ended now, whose memory grew evenly to `peak`, with a point each second."""
    home = box.home / "state/sandrun"
    (home / "runs").mkdir(mode=0o700, parents=True, exist_ok=True)
    known: dict[str, Any] = {
        "id": run,
        "pid": 4711,
        "project": str(box.project),
        "cwd": str(box.project),
        "command": command or ["make", "test"],
        "backend": "cgroup2",
        "limit": limit,
        "since": time.time() - seconds,
        "wait": 0.0,
    }
    fields = ["t", "memory", "cpu", "processes", "stalled"]
    points = [
        [float(t), peak * t // seconds, t * 1.5, 1 + t % 7, 0.0] for t in range(1, seconds + 1)
    ]
    header = {"v": 1, **known, "waited_for": [], "fields": fields}
    lines: list[Any] = [header, *points, *(events or [])]
    file = home / "runs" / f"{run}.jsonl"
    file.touch(0o600)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    end = {"wall": float(seconds), "exit": 0, "reason": "exit", "cpu": 1.5 * seconds, "peak": peak}
    if recorded:
        with open(home / "history.jsonl", "a") as history:
            line = {"v": 1, **known, **end, "peak_with_cache": peak, "stalled": 0.0}
            history.write(json.dumps(line | (record or {})) + "\n")
    return file


def limit_event(at: float, whose: str = "own") -> "dict[str, Any]":
    """The event of a memory limit that was reached."""
    return {
        "t": at,
        "event": "limit",
        "whose": whose,
        "top": [
            {"pid": 4719, "command": "build/hog 3072 0", "memory": 900 * MIB},
            {"pid": 4717, "command": "make test", "memory": 3 * MIB},
        ],
        "kinds": {"anon": 1000 * MIB, "file": 0, "shmem": 0, "kernel": 5 * MIB},
        "counters": {"max": 57, "oom": 1, "oom_kill": 1},
    }
