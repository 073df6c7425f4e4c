"""The queues as they are now: runs with their figures, waiters with their expected start, pools.

Promises
- A snapshot only reads. It removes no dead ticket, writes no queue.txt, notifies no process, makes
  no directory, and takes no lock except a shared one on an unlocked ticket, which is dead.
- A snapshot is cheap: a directory is listed again only after it has changed, and a ticket's file
  name has all its data. At most `_CHECKED` waiters are examined in each snapshot, in turn. So where
  thousands wait, it takes some seconds to notice that a waiter was killed or stopped.

Root sees the queues of all users. Their names and owners are checked, and texts from them are only
displayed.
"""

import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from sandrun import history
from sandrun.config import project as projects
from sandrun.insight.figures import Figures, Gauges
from sandrun.lifecycle import status
from sandrun.model import SandrunError
from sandrun.platform import folders
from sandrun.queue import Queue, Ticket, holder, is_stopped, ticket_text
from sandrun.queue.progress import seconds_to_turn
from sandrun.queue.state import all_states, pool_path, state_path, state_root
from sandrun.supervise import report

_CHECKED = 50
"""How many waiters a snapshot examines."""
_SETTLED = 0.05
"""Seconds after which a directory's time of change is trusted: the clock of a file system is
coarse, and a change within its resolution leaves the time as it is."""
_OUTSIDE_SECONDS = 5.0
"""Seconds for which a holder of the run lock that has no ticket is shown without a new check."""
_EXPECTATION_SECONDS = 30.0
"""Seconds for which the expected durations of a project's commands are used again."""
_NAMES = re.compile(r"(?:seq-exec-[0-9a-f]{8}|sandrun-pool)-([0-9]+)")


class ReadingQueue(Queue):
    """A queue that is only read: its dead tickets stay. Raises OSError, SandrunError."""

    if sys.platform != "win32":

        def __init__(self, path: str, uid: int) -> None:
            self.path = path
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            self.dir = os.open(path, flags)
            owner = os.fstat(self.dir).st_uid
            if owner != uid and not folders.is_own(owner):
                os.close(self.dir)
                raise SandrunError(f"{path} belongs to uid {owner}")

    else:

        def __init__(self, path: str, uid: int) -> None:
            super().__init__(path)

    def remove(self, name: str) -> bool:
        return False


@dataclass(frozen=True)
class Row:
    """A run or a waiter. `stopped` is the stopped process that delays it, 0 for none. `starts_in`:
    the seconds until it is expected to start; None: it runs, or that is not known."""

    ticket: Ticket
    position: int
    stopped: int
    waits_for_memory: bool
    cwd: str
    figures: Figures | None
    starts_in: float | None

    @property
    def id(self) -> str:
        return self.ticket.id


@dataclass(frozen=True)
class PoolView:
    """The memory pool of a user: its tickets, whose `extra` is a run's reservation in bytes."""

    uid: int
    tickets: list[Ticket]

    def reserved(self) -> int:
        return sum(ticket.extra for ticket in self.tickets if ticket.running)


@dataclass
class QueueView:
    """One queue. `title` is its project or its name. `tickets` are in order; a waiter's row is made
    only when it is shown (`row`)."""

    path: str
    uid: int
    title: str = ""
    paused: bool = False
    note: str = ""
    tickets: list[Ticket] = field(default_factory=list)
    rows: dict[str, Row] = field(default_factory=dict)
    stopped: dict[str, int] = field(default_factory=dict)
    ahead: list[float] = field(default_factory=list)
    """For each ticket, the expected seconds of all runs ahead of it together. The list ends at the
    first ticket for which that is not known."""

    @property
    def running(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        """The run or waiter at an index of `tickets`."""
        ticket = self.tickets[index]
        return self.rows.get(ticket.id) or Row(
            ticket,
            index + 1,
            self.stopped.get(ticket.id, 0),
            False,
            _directory(ticket),
            None,
            self._starts_in(index),
        )

    def _starts_in(self, index: int) -> float | None:
        if self.paused or not index or index >= len(self.ahead):
            return None
        age = max(0.0, time.time() - self.tickets[0].since)
        return seconds_to_turn(self.ahead[index], self.ahead[1], age, self.running)


@dataclass(frozen=True)
class Snapshot:
    """All queues that have tickets or are paused, and the pools that are used."""

    queues: list[QueueView]
    pools: list[PoolView]

    def find(self, run_id: str) -> tuple[QueueView, Row] | None:
        """The queue and the row of a run or waiter."""
        for queue in self.queues:
            for index, ticket in enumerate(queue.tickets):
                if ticket.id == run_id:
                    return queue, queue.row(index)
        return None


if sys.platform == "win32":

    def own_uid() -> int:
        """0: all queues that can be seen are the user's own."""
        return 0

else:

    def own_uid() -> int:
        """Our user."""
        return os.geteuid()


def user_name(uid: int) -> str:
    """The name of a user, or the number."""
    if sys.platform != "win32":
        import pwd

        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            pass
    return f"uid {uid}"


class Watch:
    """Takes snapshots, and caches what is unlikely to change before the next one.

    `here` is the project of the caller and the name of its queue, which comes first.
    """

    def __init__(self, here: tuple[str, str] = ("", "")) -> None:
        self._readers: dict[str, _Reader] = {}
        self._gauges = Gauges()
        self._here = state_path(*here) if here[0] else ""
        self._titles = {self._here: here[1] or here[0]} if here[0] else {}

    def take(self) -> Snapshot:
        """The state of all queues. The note of a queue that cannot be read gives the reason."""
        paths = dict(_paths())
        self._readers = {
            path: self._readers.get(path) or _Reader(path, uid) for path, uid in paths.items()
        }
        pools, waiting = [], set()
        for path, reader in self._readers.items():
            if _is_pool(path):
                tickets = reader.read()
                waiting |= {ticket.id for ticket in tickets if not ticket.running}
                pools.append(PoolView(reader.uid, tickets))
        queues = [
            self._view(path, reader, waiting)
            for path, reader in self._readers.items()
            if not _is_pool(path)
        ]
        self._gauges.keep({run_id for queue in queues for run_id in queue.rows})
        queues = [queue for queue in queues if queue.tickets or queue.paused or queue.note]
        queues.sort(key=lambda q: (q.path != self._here, q.uid, q.title or q.path))
        return Snapshot(queues, [pool for pool in pools if pool.tickets])

    def _view(self, path: str, reader: "_Reader", waiting: set[str]) -> QueueView:
        view = QueueView(path, reader.uid, tickets=reader.read())
        view.paused, view.note, view.stopped = reader.paused, reader.note, reader.stopped
        if not view.tickets:
            view.title = self._titles.get(path, "")
            return view
        for index, ticket in enumerate(view.tickets):
            if not ticket.running:
                break
            known = reader.holders.get(ticket.id)
            figures = self._gauges.read(ticket, known, reader.uid)
            cwd = known.cwd if known else _directory(ticket)
            stopped = status.stopped_process(ticket)
            view.rows[ticket.id] = Row(
                ticket, index + 1, stopped, ticket.id in waiting, cwd, figures, None
            )
        if path not in self._titles or (view.rows and not self._titles[path]):
            self._titles[path] = _find_title(path, reader)
        view.title = self._titles[path]
        view.ahead = reader.expect(view.title)
        view.note = view.note or ("" if view.rows else reader.outside_holder(view.title))
        return view


def _find_title(path: str, reader: "_Reader") -> str:
    """The project or the name of a queue, of which the path has only a hash; '': not known yet."""
    for known in reader.holders.values():
        return str(known.record.get("project", ""))
    directory = _directory(reader.tickets[0]) if reader.uid == own_uid() else ""
    found = projects.find(directory) if directory else ""
    return found if found and state_path(found) == path else ""


class _Reader:
    """The cached state of one queue."""

    def __init__(self, path: str, uid: int) -> None:
        self.path = path
        self.uid = uid
        self.paused = False
        self.note = ""
        self.tickets: list[Ticket] = []
        self.stopped: dict[str, int] = {}
        self.holders: dict[str, holder.Holder] = {}
        """The holder's line in the run lock's file, by the id of the run."""
        self._changed = 0
        self._next = 0
        self._expected: dict[str, float] = {}
        self._expected_for = ("", 0.0)
        self._outside = ""
        self._check_at = 0.0

    def read(self) -> list[Ticket]:
        """The live tickets in order, the running ones first."""
        try:
            changed = os.stat(self.path, follow_symlinks=False).st_mtime_ns
            if changed != self._changed or self.tickets:
                self._open(changed)
        except FileNotFoundError:
            self.tickets = []
            self.paused, self.note = False, ""
        except (OSError, SandrunError) as error:
            self.tickets = []
            self.note = str(error)
        return self.tickets

    def _open(self, changed: int) -> None:
        queue = ReadingQueue(self.path, self.uid)
        try:
            if changed != self._changed:
                self._list(queue)
                # A later change within the clock's resolution would not be seen.
                is_settled = time.time() - changed / 1e9 > _SETTLED
                self._changed = changed if is_settled else 0
            self._check(queue)
            running = {ticket.id for ticket in takewhile(lambda t: t.running, self.tickets)}
            if not running or not running <= self.holders.keys():
                self._read_holders(queue)
        finally:
            queue.close()

    def _list(self, queue: Queue) -> None:
        known = {ticket.name: ticket for ticket in self.tickets}
        names = queue.names()
        self.paused = queue.paused
        self.tickets = [
            known.get(name) or Ticket(name)
            for name in names
            if name in known or len(names) > _CHECKED or queue.is_live(name)
        ]

    def _check(self, queue: Queue) -> None:
        """Drop tickets that died, and find the stopped waiters."""
        count = len(self.tickets)
        turn = {(self._next + offset) % count for offset in range(min(_CHECKED, count))}
        self._next = (self._next + _CHECKED) % count if count else 0
        dead = set()
        for index, ticket in enumerate(self.tickets):
            if not ticket.running and index not in turn:
                continue
            if not queue.is_live(ticket.name):
                dead.add(ticket.id)
            elif not ticket.running:
                self.stopped[ticket.id] = ticket.pid if is_stopped(ticket.pid) else 0
        if dead:
            self.tickets = [ticket for ticket in self.tickets if ticket.id not in dead]
        if len(self.stopped) > 2 * len(self.tickets) + _CHECKED:
            alive = {ticket.id for ticket in self.tickets}
            self.stopped = {key: pid for key, pid in self.stopped.items() if key in alive}

    def _read_holders(self, queue: Queue) -> None:
        lines = [line for _, line in holder.lines(queue)]
        found = filter(None, map(holder.parse, lines))
        self.holders = {one.id: one for one in found}
        kept = [pid for line in lines for pid in holder.unkillable(line)]
        self.note = f"the run lock is kept for {report.unkillable(kept[0])}" if kept else ""

    def outside_holder(self, title: str) -> str:
        """The holder of the run lock that has no ticket here, such as another user's run."""
        now = time.monotonic()
        if sys.platform != "win32" and title and self.uid == own_uid() and now >= self._check_at:
            from sandrun.queue import lock_holders

            self._check_at = now + _OUTSIDE_SECONDS
            where = (title, "") if os.path.isabs(title) else ("", title)
            rows = lock_holders.foreign(None, *where, probe=False)
            self._outside = f"held: {status.holder_text(rows[0])}" if rows else ""
        return self._outside

    def expect(self, project: str) -> list[float]:
        """For each ticket the expected seconds of all runs ahead, as far as they are known."""
        of, at = self._expected_for
        if of != project or time.monotonic() - at > _EXPECTATION_SECONDS:
            # The history of another user is not read.
            own = folders.is_own(self.uid)
            self._expected = history.durations(project, ticket_text) if own and project else {}
            self._expected_for = project, time.monotonic()
        sums = [0.0]
        for ticket in self.tickets[:-1]:
            if (seconds := self._expected.get(ticket.command)) is None:
                break
            sums.append(sums[-1] + seconds)
        return sums


def _directory(ticket: Ticket) -> str:
    from sandrun.platform import processes

    try:
        return processes.working_directory(ticket.pid)
    except OSError:
        return ""


def _is_pool(path: str) -> bool:
    return os.path.basename(path).startswith("sandrun-pool")


def _paths() -> Iterator[tuple[str, int]]:
    """The state directories of this user's queues and of the pool; for root, those of all users."""
    me = own_uid()
    yield from ((path, me) for path in (pool_path(), *all_states()))
    if me or sys.platform == "win32":
        return
    try:
        names = os.listdir(state_root())
    except OSError:
        return
    for name in names:
        found = _NAMES.fullmatch(name)
        if found and int(found[1]) != me:
            yield os.path.join(state_root(), name), int(found[1])
