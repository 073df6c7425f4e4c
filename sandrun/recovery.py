"""Cleaning up after a supervisor that was killed.

Whoever finds the run does it: its keeper at once, else the next run of the queue, which reads
the holder's line in the run lock's file. Ending processes may be done by several at once and does
no harm; the record is written only by who holds the run lock, so it is written once.
"""

import time

from sandrun import history, messages
from sandrun.model import SandrunError
from sandrun.queue import Queue
from sandrun.runlock import RunLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandrun.protocol import Container


def each_slot(queue: Queue) -> "Iterator[tuple[RunLock, bool]]":
    """Each slot that was ever taken in a state directory, and whether it was free: it is ours
    then, until dropped or released."""
    for slot in queue.slots():
        lock = RunLock(queue, slot, first=slot)
        yield lock, lock.try_take()
        lock.drop()


def end_orphans(queue: Queue, line: bytes) -> bool:
    """End what is left of the run that `line` tells of, if its supervisor is dead.

    False: it is alive, or the line is not readable.
    """
    holder = parse(line)
    if not holder or any(ticket.id == holder["id"] for ticket in queue.tickets()):
        return False
    _end(_container(holder), holder)
    return True


def parse(line: bytes) -> "dict[str, object] | None":
    """What a holder wrote about itself; None: it is not readable, or nothing."""
    import json

    try:
        holder = json.loads(line)
        return holder if isinstance(holder["id"], str) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _container(holder: "dict[str, object]") -> "Container | None":
    from sandrun import backends

    try:
        return backends.named(str(holder["backend"])).attach(str(holder["container"]))
    except (SandrunError, KeyError, ImportError):
        return None


def _end(container: "Container | None", holder: "dict[str, object]") -> bool:
    if container is None:
        return True
    try:
        container.kill()
        return True
    except TimeoutError as error:
        messages.warn(f"processes of the ended run {holder['id']} do not die: {error}")
        return False


def finish(container: "Container | None", line: bytes) -> bool:
    """End a lost run for good: processes, container, record; whether its processes are dead.

    The caller holds the run lock.
    """
    holder = parse(line)
    if holder is None:
        return True
    dead = _end(container, holder)
    if container is not None:
        container.close()
    since = holder.get("since")
    wall = time.time() - since if isinstance(since, int | float) else 0.0
    if dead and holder.get("leftovers") != "leave" and holder.get("backend") != "none":
        from sandrun import gitguard

        gitguard.heal_after(str(holder.get("cwd")), time.time() - wall, str(holder["id"]))
    _record_lost(holder, wall)
    return dead


def _record_lost(holder: "dict[str, object]", wall: float) -> None:
    """Record the run as lost, unless its supervisor was killed after its own record."""
    own = ("container", "leftovers", "state")
    record = {key: value for key, value in holder.items() if key not in own}
    record |= {"wall": wall, "exit": 137, "reason": "lost"}
    try:
        if not history.recorded(str(holder["id"])):
            history.append(record, str(holder["state"]))
    except OSError:
        messages.decision("cannot record the lost run")


def take_over(lock: RunLock) -> None:
    """After taking the run lock: clean up after a holder that did not end by itself."""
    line = lock.read_holder()
    if not line:
        return
    holder = parse(line)
    if holder:
        messages.status(
            f"cleaning up after run {holder['id']}: "
            f"its sandrun (pid {holder.get('pid')}) was killed"
        )
        finish(_container(holder), line)
