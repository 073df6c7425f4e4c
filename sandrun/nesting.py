"""Whether we run inside a run of the same queue, proved and not believed.

The environment says where to look, but it leaks into daemons and terminal multiplexers that
outlive their run. The proof is a ticket that is locked (the run is alive) AND that its supervisor
is among our ancestors, or that we are in its cgroup (a daemon of the run).
"""

import os

from sandrun import kernel
from sandrun.queue import Queue


def is_inside(around: str, state: str) -> bool:
    """Whether a live run of the queue in the state directory `state` contains this process."""
    ids = [entry.rpartition("/")[2] for entry in around.split(":") if _names(entry, state)]
    if not ids:
        return False
    ticket = next((t for t in Queue(state).tickets() if t.id in ids), None)
    if ticket is None:
        return False
    return ticket.pid in kernel.ancestors(os.getpid()) or _in_group(ticket.id)


def _names(entry: str, state: str) -> bool:
    return entry.rpartition("/")[0] == state


def _in_group(run_id: str) -> bool:
    try:
        return f"sandrun-{run_id}".encode() in kernel.read("/proc/self/cgroup")
    except OSError:
        return False
