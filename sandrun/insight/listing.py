"""Past runs as JSON and as comma-separated values, for programs."""

import csv
import json
from collections.abc import Callable, Iterable
from datetime import datetime

from sandrun.insight.statistics import MEASURES, Group, Key, Statistics, summary
from sandrun.insight.suggest import Suggestion
from sandrun.model import command_text, plain
from sandrun.types import Record

VERSION = 1
COLUMNS = (
    *("id", "since", "project", "cwd", "command", "backend", "limit", "wait", "wall", "cpu"),
    *("exit", "reason", "peak", "peak_with_cache", "processes", "stalled", "waited_for"),
)
_TEXTS = ("id", "project", "cwd", "backend", "reason")


def write_json(records: "Iterable[Record]", page: "Callable[[str], None]") -> None:
    """One JSON object, with a line for each run, so that it needs no memory for all of them."""
    before = f'{{"v": {VERSION}, "runs": ['
    for record in records:
        page(before)
        known = {key: value for key, value in record.items() if value is not None}
        before = json.dumps(known) + ","
    if before.endswith(","):
        page(before[:-1] + "\n]}")
    else:
        page(before + "]}")


class _Lines:
    """A file, as `csv` sees it, which hands each line to `page`."""

    def __init__(self, page: "Callable[[str], None]") -> None:
        self.page = page

    def write(self, line: str) -> None:
        self.page(line.removesuffix("\n"))


def write_csv(records: "Iterable[Record]", page: "Callable[[str], None]") -> None:
    """RFC 4180 with a header. Sizes in bytes, times in seconds, `since` in ISO 8601."""
    writer = csv.writer(_Lines(page), lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerow([_cell(record, name) for name in COLUMNS])


def _cell(record: Record, name: str) -> object:
    value = record.get(name)
    if name == "command":
        return _harmless(command_text(record.get("command", [])))
    if name == "waited_for":
        return " ".join(plain(other["id"]) for other in record.get("waited_for", []))
    if name == "since" and "since" in record:
        return datetime.fromtimestamp(record["since"]).astimezone().isoformat(timespec="seconds")
    return _harmless(plain(str(value))) if name in _TEXTS and value is not None else value


def _harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula. As in GitLab's exports, an apostrophe comes
    before one (OWASP, "CSV injection")."""
    return "'" + text if text[:1] in tuple("=+-@") else text


def statistics_json(found: Statistics) -> str:
    """The statistics of all commands."""
    order = found.by_time()
    is_timed = found.since[0] <= found.since[1]
    return json.dumps(
        {
            "v": VERSION,
            "runs": sum(group.runs for _, group in order),
            "failed": sum(sum(group.failures.values()) for _, group in order),
            "waited": sum(group.total("wait") for _, group in order),
            "since": found.since[0] if is_timed else None,
            "until": found.since[1] if is_timed else None,
            "commands": [_command_json(key, group) for key, group in order],
            "waited_for": [
                {
                    "project": key[0],
                    "command": list(key[1]),
                    "for": text,
                    "runs": int(runs),
                    "seconds": seconds,
                }
                for (key, text), (runs, seconds) in sorted(
                    found.waits.items(), key=lambda item: -item[1][1]
                )
            ],
        }
    )


def _command_json(key: Key, group: Group) -> "dict[str, object]":
    return {
        "project": key[0],
        "command": list(key[1]),
        "runs": group.runs,
        "failures": group.failures,
        "waited": group.total("wait"),
        **{measure: summary(group.known(measure)) for measure in MEASURES},
    }


def suggestion_json(found: Suggestion, project: str) -> str:
    """A suggestion, with its evidence."""
    return json.dumps(
        {
            "v": VERSION,
            "project": project,
            "runs": found.runs,
            "commands": found.commands,
            "memory": found.memory,
            "timeout": found.timeout,
            "pids": found.pids,
            "evidence": found.evidence,
            "settings": found.values(),
        }
    )
