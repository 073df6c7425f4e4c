"""What a waiter reports to its user: a live line on a terminal; elsewhere a line for each change,
and a heartbeat.

While a waiter is in the background of a shell, another program uses the terminal. Then the waiter
reports as without a terminal, until it is brought to the foreground.

Imported only by a run that has to wait. The whole queue is read only when a message is due, so a
waiter without messages costs nothing.
"""

import os
import sys
import time

from sandrun import messages
from sandrun.errors import command_for
from sandrun.model import plain, size_text, span_text
from sandrun.queue import Queue, Ticket, ticket_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def _seconds(name: str, default: float) -> float:
    try:
        return max(0.01, float(os.environ.get(name) or default))
    except ValueError:
        return default


HEARTBEAT = _seconds("SANDRUN_HEARTBEAT", 30)
"""Seconds after which an unchanged line is repeated where there is no terminal."""
HINT_AFTER = _seconds("SANDRUN_HINT_AFTER", 300)
"""Seconds of waiting behind the same run after which a hint says how to inspect and end it."""
_LIVE = 1.0
"""Seconds between two live lines."""


class Progress:
    """Reports the position of `ticket` in `queue`; with --quiet nothing.

    `project` is the project's name in the history, `name` that of the queue ('': none). `describe`
    explains why a process is unkillable.
    """

    def __init__(
        self,
        queue: Queue,
        ticket: Ticket,
        project: str,
        name: str,
        describe: "Callable[[int], str]",
    ) -> None:
        self.queue = queue
        self.name = name
        self.describe = describe
        self.project = project
        self.ticket = ticket
        self.silent = messages.level < 0
        self.terminal = messages.is_terminal() and os.environ.get("TERM", "dumb") != "dumb"
        self.live = False
        self.reported = ""
        self.reported_at = 0.0
        self.behind = ""
        self.behind_since = time.monotonic()
        self.hinted = False
        self.expected: dict[str, float] | None = None

    def seconds_to_next(self, longest: float) -> float:
        """Seconds until a message is due, at most `longest`."""
        if self.silent:
            return longest
        if self.terminal:  # the kernel does not notify us when we are brought to the foreground
            return _LIVE
        return min(longest, max(0.0, self._pause()))

    def _pause(self) -> float:
        """Seconds until a message is due even if nothing has changed."""
        due = self.reported_at + HEARTBEAT
        if self.behind and not self.hinted:
            due = min(due, self.behind_since + HINT_AFTER)
        return due - time.monotonic()

    def _is_due(self, mark: str) -> bool:
        return self._is_foreground() or mark != self.reported or self._pause() <= 0

    def _is_foreground(self) -> bool:
        """Whether there is a terminal, and we may use it for a live line."""
        if sys.platform == "win32" or not self.terminal:
            return self.terminal
        try:
            return os.tcgetpgrp(2) == os.getpgrp()
        except OSError:  # not our controlling terminal: it has no job control
            return True

    def report_position(self, nearest: "list[Ticket]") -> None:
        """Report the position and the running command if they changed or a heartbeat is due.

        `nearest` are the tickets on which the waiter blocks. While they are the same, our position
        has not changed. Raises StateGone.
        """
        if self.silent:
            return
        now = time.monotonic()
        # A change further ahead wakes up only the waiters next to it; a heartbeat reports it to us.
        mark = " ".join(t.name[0] + t.id for t in nearest)
        if not self._is_due(mark):
            return
        names = self.queue.names()
        position = 1 + self.queue.find(self.ticket, names)
        head = Ticket(names[0]) if names else self.ticket
        text = f"waiting, position {position} of {len(names)}"
        if not head.running:
            self.behind = ""
            text += f"; next: {head.command} (pid {head.pid})"
        else:
            if head.id != self.behind:
                self.behind, self.behind_since, self.hinted = head.id, now, False
            age = max(0.0, time.time() - head.since)
            # A narrow terminal cuts the end, so the important facts come first.
            text += f"; running for {span_text(age)}"
            text += self._expectation([Ticket(n) for n in names[: position - 1]], age)
            text += f": {head.command} (pid {head.pid}{self._where(head)}{self._memory(head.pid)})"
        self._write(text, mark)
        if self.behind and not self.hinted and now - self.behind_since >= HINT_AFTER:
            self._hint(head)

    def report_pause(self) -> None:
        """Report that we are the head of the queue, but the queue is paused."""
        resume = command_for("resume", self.name)
        self._once(f"waiting: the queue is paused; go on with: {resume}", "paused")

    def report_outside_holder(self, path: str, holder: int) -> None:
        """Report that a run of another user, or in a container, holds the lock file `path`."""
        who = f"pid {holder}" if holder else "in another container, perhaps"
        self._once(f"waiting: {path} is held by a run that is not in this queue ({who})", path)

    def report_pool(self, text: str, ahead: "list[str]") -> None:
        """Report that the pool has no room yet."""
        self._once(text, " ".join(ahead))

    def report_orphans(self, unkillable: "list[int]") -> None:
        """Report that a run's supervisor is dead, but not all of its processes. SIGKILL does not
        end the `unkillable` ones."""
        text = "waiting: processes that a terminated run left are still being ended"
        if unkillable:
            text = f"waiting for a process of a terminated run: {self.describe(unkillable[0])}"
        self._once(text, f"orphans {unkillable}")

    def clear_line(self) -> None:
        """Clear the live line, so that the command's output starts in the first column."""
        if self.live and self._is_foreground():
            messages.write("\r\x1b[K")
        self.live = False

    def _once(self, text: str, mark: str) -> None:
        self.behind = ""  # no run ahead: no hint
        if not self.silent and self._is_due(mark):
            self._write(text, mark)

    def _write(self, text: str, mark: str) -> None:
        self.reported, self.reported_at = mark, time.monotonic()
        self.live = self._is_foreground()
        if not self.live:
            messages.status(text)
            return
        line = f"sandrun: {plain(text)}"
        try:
            width = os.get_terminal_size(2).columns
        except OSError:
            width = 80
        messages.write("\r\x1b[K" + (cut(line, width - 1) if width > 4 else line))

    def _hint(self, head: Ticket) -> None:
        self.hinted = True
        self.clear_line()
        messages.status(
            f"hint: behind the same run since {span_text(time.monotonic() - self.behind_since)}; "
            f"inspect it: {command_for('status', self.name)}; end it: sandrun kill {head.id}"
        )

    def _where(self, head: Ticket) -> str:
        from sandrun.queue import holder

        found = holder.directory(self.queue, head)
        return f", in {found}" if found else ""

    def _memory(self, pid: int) -> str:
        if not self._is_foreground():
            return ""
        from sandrun.platform import processes

        used = sum(p.memory for p in map(processes.describe, processes.descendants(pid)) if p)
        return f", {size_text(used)}" if used else ""

    def _expectation(self, ahead: "list[Ticket]", age: float) -> str:
        """How long we will wait, if the history contains every run ahead."""
        if self.expected is None:  # the history does not change while we wait
            from sandrun import history

            self.expected = history.durations(self.project, ticket_text)
        spans = [self.expected.get(t.command, -1.0) for t in ahead]
        if not spans or min(spans) < 0:
            return ""
        running = sum(1 for t in ahead if t.running)
        return f", about {span_text(seconds_to_turn(sum(spans), spans[0], age, running))} to go"


def seconds_to_turn(total: float, head: float, age: float, running: int) -> float:
    """The expected wait behind runs that take `total` seconds together. The first of them takes
    `head` seconds and is `age` seconds old; the first `running` run at once."""
    return max(0.0, total - min(age, head)) / max(1, running)


def cut(line: str, columns: int) -> str:
    """A line, cut to at most `columns`; some characters take two columns."""
    if len(line) <= columns and line.isascii():
        return line
    from unicodedata import east_asian_width

    ends = [0]  # the column in which each character ends
    for char in line:
        ends.append(ends[-1] + (2 if east_asian_width(char) in "WF" else 1))
    if ends[-1] <= columns:
        return line
    return line[: sum(end < columns for end in ends[1:])] + "…"
