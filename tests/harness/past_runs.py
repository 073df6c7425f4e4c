"""Histories of runs that nobody ran, with samples, as realistic as a test needs them."""

import json
import random
from pathlib import Path
from typing import Any

HOSTILE = (
    "</script><script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    "</style><style>*{display:none}",
    "]]> --> <!-- <![CDATA[",
    "\"'&amp;<b>&#60;",
    "\x1b[31mred\x07\r\n\0\x7f\x85",
    "\udcff\udc80bytes",
    "\ud800",
    "\u202egnp.exe\u2066\u200b\ufeff",
    "\u05e9\u05dc\u05d5\u05dd",
    "\U0001f600" * 60,
    "x" * 4000,
    "http://example.invalid/a?b=c",
    "javascript:alert(1)",
)
"""Words of a command line that a page must show and never interpret."""
_COMMANDS = (
    ("make test", 180, 1.2),
    ("make -j8", 60, 1.7),
    ("pytest -x tests/unit", 40, 0.4),
    ("npm ci", 75, 0.9),
    ("cargo build --release", 240, 1.9),
    ("git gc", 8, 0.2),
)
GIB = 1 << 30


def write(folder: Path, runs: int, hostile: bool = False, samples: bool = True) -> None:
    """Write a history of so many runs in a queue, and their samples, to `folder`, which is
    `folders.state_home`."""
    choose = random.Random(7)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    free = 1_600_000_000.0  # in 2020
    before: dict[str, Any] = {}
    with open(folder / "history.jsonl", "a") as history:
        for number in range(runs):
            record = _record(choose, number, free, before)
            if hostile:
                record["command"].append(HOSTILE[number % len(HOSTILE)])
            history.write(json.dumps({"v": 1, **record}) + "\n")
            if samples:
                _write_samples(choose, folder / "runs", record)
            free = record["since"] + record["wall"] + (40_000 if number % 60 == 59 else 0)
            before = record


def _record(
    choose: random.Random, number: int, free: float, before: "dict[str, Any]"
) -> "dict[str, Any]":
    command, typical, memory = choose.choice(_COMMANDS)
    queued = free - choose.expovariate(1 / 90) + 30
    since = max(queued, free)
    peak = int(memory * GIB * choose.lognormvariate(0, 0.25))
    ends = [("exit", 0)] * 17 + [("exit", 2), ("timeout", 124), ("left", 130)]
    reason, code = choose.choice(ends)
    if peak > 2 * GIB:
        peak, reason, code = 2 * GIB, "memory", 137
    wait = since - queued
    record = {
        "id": f"{number * 2654435761 % (1 << 32):08x}", "pid": 1000 + number,
        "project": "/home/ada/engine", "cwd": "/home/ada/engine", "command": command.split(),
        "backend": "cgroup2", "limit": 2 * GIB, "since": since, "wait": wait,
        "wall": typical * choose.lognormvariate(0, 0.35), "exit": code, "reason": reason,
        "cpu": typical * 1.5, "peak": peak, "stalled": 0.1, "processes": 14,
    }  # fmt: skip
    if before and wait >= 1:
        other = {"id": before["id"], "command": " ".join(before["command"])[:80], "seconds": wait}
        record["waited_for"] = [other]
    return record


def _write_samples(choose: random.Random, folder: Path, record: "dict[str, Any]") -> None:
    keys = ("id", "pid", "project", "cwd", "command", "backend", "limit", "since", "wait")
    header = {"v": 1, **{key: record[key] for key in keys}, "waited_for": []}
    lines: list[Any] = [{**header, "fields": ["t", "memory", "cpu", "processes", "stalled"]}]
    count = 200
    highest = choose.randrange(count // 2, count)
    for number in range(count):
        share = 0.95 * (number / count) ** 0.5 * choose.uniform(0.8, 1)
        share = 1.0 if number == highest else share
        t = number * record["wall"] / count
        lines.append([t, int(record["peak"] * share), t * 1.5, choose.randrange(2, 20), 0.0])
    if record["reason"] == "memory":
        top = [{"pid": 7, "command": " ".join(record["command"]), "memory": record["peak"]}]
        lines.append({"t": record["wall"], "event": "limit", "whose": "own", "top": top})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{record['id']}.jsonl").write_text(text)
