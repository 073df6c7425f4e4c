"""One run, past or current, from the queue, the history and its file of samples.

Promises to find a run by its id or by a unique start of that, and to name similar ids if there is
no such run. A run that is not recorded yet is described by its ticket and the holder's line. So
current runs, waiters, and runs whose sandrun was killed are found, too.
"""

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sandrun import history
from sandrun.insight import post_mortem, records, samples
from sandrun.lifecycle import status
from sandrun.model import SandrunError, command_text, is_run_id, plain
from sandrun.platform.folders import state_home
from sandrun.queue import Queue, Ticket, holder
from sandrun.queue.state import all_states
from sandrun.types import Record

VERSION = 1

State = Literal["waits", "runs", "ended", "lost"]
"""`lost`: its sandrun was killed, and no later run of the queue has recorded that yet."""


@dataclass(frozen=True)
class RunLog:
    """A run. `record` has what is known of it; `wall` is the time so far if it still runs.
    `position` is its place in the queue if it waits. `samples` is None for a run that was too
    short to be sampled."""

    id: str
    state: State
    record: Record
    samples: samples.Samples | None
    position: int = 0

    def as_json(self, most: int = 0) -> "dict[str, Any]":
        """The run as `sandrun log --json` prints it (the schema `log`), with at most `most` points;
        0: all."""
        seen, advice = self.samples, post_mortem.advice(self.record)
        return {
            "v": VERSION,
            "state": self.state,
            "position": self.position,
            "run": self.record,
            "samples": None if seen is None else points_json(seen.points, most),
            "events": [] if seen is None else [_event(event) for event in seen.events],
            "suggestion": None
            if advice is None
            else {"options": advice.options, "why": advice.why},
        }


_FIELDS = ("t", "memory", "cpu", "processes", "stalled")


def points_json(points: "Sequence[samples.Point]", most: int) -> "dict[str, Any]":
    rows = [[getattr(point, field) for field in _FIELDS] for point in points]
    if most and len(rows) > most:  # of each group the most memory, and the last of the others
        ends = [len(rows) * (index + 1) // most for index in range(most)]
        groups = [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        rows = [[g[-1][0], max(r[1] or 0 for r in g), *g[-1][2:]] for g in groups]
    return {"fields": list(_FIELDS), "points": rows}


def _event(event: samples.Event) -> "dict[str, Any]":
    return {**event.details, "t": event.t, "event": event.kind}


def find(run: "str | None", state: str, project: str) -> RunLog:
    """The run whose id is `run`, or the only one whose id begins with it. None: the run that is
    running in the queue at `state`, or else the last run of `project` (its path, or the queue's
    name). Raises SandrunError with exit code 1 if there is none, or more than one.
    """
    if run is None:
        return _latest(state, project)
    if not is_run_id(run):
        run = _completed(run.lower())
    found = _by_id(run)
    if found is None:
        near = records.nearest(run)
        raise SandrunError(
            f"no such run: {run}",
            f"the nearest: {', '.join(near)}" if near else "sandrun history",
            exit_code=1,
        )
    return found


def _latest(state: str, project: str) -> RunLog:
    for queue, ticket, _ in _tickets([state]):
        if ticket.running:
            return _current(queue, ticket, 0)
    record = next(records.newest_first(project=project), None)
    if record is None:
        raise SandrunError(f"no run of {project} is known", "sandrun history", exit_code=1)
    return of_record(record)


def _by_id(run: str) -> "RunLog | None":
    if record := records.find(run):
        return of_record(record)
    for queue, ticket, position in _tickets(all_states()):
        if ticket.id == run:
            return _current(queue, ticket, position)
    seen = samples.read(run)
    return None if seen is None else RunLog(run, "lost", _of_samples(seen), seen)


def _completed(start: str) -> str:
    """The only id that begins with `start`; `start` if none does. Raises SandrunError if several
    do."""
    if not start or not _HEX.issuperset(start):
        return start
    found: dict[str, None] = {}
    for run in _ids(start):
        if run.startswith(start):
            found[run] = None
        if len(found) > _OFFERED_ALIKE:
            break  # enough to choose from, and many more would take time
    if len(found) > 1:
        raise SandrunError(
            f"several ids begin with {start}", f"such as {', '.join(found)}", exit_code=1
        )
    return next(iter(found), start)


_HEX = frozenset("0123456789abcdef")
_OFFERED_ALIKE = 5


def _ids(start: str) -> "Iterator[str]":
    """The ids of all known runs that begin with `start`, and others; some several times."""
    for _, ticket, _ in _tickets(all_states()):
        yield ticket.id
    try:
        yield from (name.partition(".")[0] for name in os.listdir(f"{state_home()}/runs"))
    except OSError:
        pass
    # Decode only lines that may have such an id: there may be a million others.
    mark = f'"id": "{start}'.encode()
    for path in records.files():
        for line in records.lines(path, backward=True):
            if mark in line and (record := records.decode(line)):
                yield record.get("id", "")


def of_record(record: Record) -> RunLog:
    run = record.get("id", "")
    return RunLog(run, "ended", record, samples.read(run))


def _tickets(states: "list[str]") -> "Iterator[tuple[Queue, Ticket, int]]":
    """The tickets in state directories, in order, each with its queue and its position."""
    for path in states:
        try:
            queue = status.open_queue(path)
        except SandrunError:
            continue
        if queue is None:
            continue
        try:
            for position, ticket in enumerate(queue.tickets(), 1):
                yield queue, ticket, position
        finally:
            queue.close()


def _current(queue: Queue, ticket: Ticket, position: int) -> RunLog:
    seen = samples.read(ticket.id)
    now = time.time()
    record: Record = {"id": ticket.id, "pid": ticket.pid, "since": float(ticket.since)}
    if not ticket.running:
        record |= {"command": [ticket.command], "wait": max(0.0, now - ticket.since)}
        record["cwd"] = holder.directory(queue, ticket)
        return RunLog(ticket.id, "waits", record, None, position)
    if seen:
        record |= _of_samples(seen)
    else:
        record["command"] = [ticket.command]
        for known in history.records(line for _, line in holder.lines(queue)):
            if known.get("id") == ticket.id:
                record |= known
    record["wall"] = max(0.0, now - record["since"])
    return RunLog(ticket.id, "runs", record, seen)


def _of_samples(seen: samples.Samples) -> Record:
    """The fields of a record that the header and the points contain."""
    known: Record = {
        "id": seen.id,
        "pid": seen.pid,
        "project": seen.project,
        "cwd": seen.cwd,
        "command": seen.command,
        "backend": seen.backend,
        "limit": seen.limit,
        "since": seen.since,
        "wait": seen.wait,
    }
    if seen.points:
        last = seen.points[-1]
        known |= {"wall": last.t, "stalled": last.stalled}
        if last.cpu is not None:
            known["cpu"] = last.cpu
        known["peak"] = max(point.memory for point in seen.points)
    return known


_OFFERED = 50


def recent() -> "Iterator[str]":
    """The ids of current and recent runs, each with a description, for completions."""
    for _, ticket, _ in _tickets(all_states()):
        yield f"{ticket.id}\t{'runs' if ticket.running else 'waits'}: {plain(ticket.command)}"
    for record in itertools.islice(records.newest_first(), _OFFERED):
        command = plain(command_text(record.get("command", [])))[:80]
        yield f"{plain(record.get('id', ''))}\t{command}"
