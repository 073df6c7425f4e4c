"""What a waiter tells its user: live on a terminal, a line per change and a heartbeat elsewhere.

In the background of a shell the terminal shows another program, so there it is as elsewhere, until
the waiter is brought to the foreground.

Imported only by a run that has to wait. It looks at the whole queue only when it is about to say
something, so that a silent waiter costs nothing.
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
"""Seconds between two lines that say the same, where there is no terminal."""
HINT_AFTER = _seconds("SANDRUN_HINT_AFTER", 300)
"""Seconds behind the same run after which the user is told how to look at it and end it."""
_LIVE = 1.0


class Progress:
    """Tells where `ticket` stands; nothing at all with --quiet. `project` as in the history,
    `name` the queue's, if it has one; `describe` explains an unkillable process."""

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
        self.said = ""
        self.said_at = 0.0
        self.behind = ""
        self.behind_since = time.monotonic()
        self.hinted = False
        self.expected: dict[str, float] | None = None

    def seconds_to_next(self, longest: float) -> float:
        """Seconds until there is something to say, at most `longest`."""
        if self.silent:
            return longest
        if self.terminal:  # nobody is told that it became the foreground
            return _LIVE
        return min(longest, max(0.0, self._pause()))

    def _pause(self) -> float:
        """Seconds until a line is due that is no news."""
        due = self.said_at + HEARTBEAT
        if self.behind and not self.hinted:
            due = min(due, self.behind_since + HINT_AFTER)
        return due - time.monotonic()

    def _is_due(self, mark: str) -> bool:
        return self._is_foreground() or mark != self.said or self._pause() <= 0

    def _is_foreground(self) -> bool:
        """Whether there is a terminal that is ours for a live line."""
        if sys.platform == "win32" or not self.terminal:
            return self.terminal
        try:
            return os.tcgetpgrp(2) == os.getpgrp()
        except OSError:  # it is not our controlling terminal: there is no job control on it
            return True

    def report_position(self, nearest: "list[Ticket]") -> None:
        """Say the position and who runs, if that is news or a heartbeat is due; StateGone.

        `nearest`: what we sleep on; while it is the same, nothing ahead of us changed.
        """
        if self.silent:
            return
        now = time.monotonic()
        # A change further ahead is told with the next heartbeat: it wakes nobody but its next.
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
            # First what a narrow terminal must not cut.
            text += f"; running for {span_text(age)}"
            text += self._expectation([Ticket(n) for n in names[: position - 1]], age)
            text += f": {head.command} (pid {head.pid}{self._where(head)}{self._memory(head.pid)})"
        self._say(text, mark)
        if self.behind and not self.hinted and now - self.behind_since >= HINT_AFTER:
            self._hint(head)

    def report_pause(self) -> None:
        """We would be the next, but the queue is paused."""
        resume = command_for("resume", self.name)
        self._once(f"waiting: the queue is paused; go on with: {resume}", "paused")

    def report_outside_holder(self, path: str, holder: int) -> None:
        """Another user, or a container, runs in the same checkout."""
        who = f"pid {holder}" if holder else "in another container, perhaps"
        self._once(f"waiting: {path} is held by a run that is not in this queue ({who})", path)

    def report_pool(self, text: str, ahead: "list[str]") -> None:
        """The pool has no room yet."""
        self._once(text, " ".join(ahead))

    def report_orphans(self, unkillable: "list[int]") -> None:
        """A run's supervisor is dead, its processes are not; the `unkillable` nobody can end."""
        text = "waiting: what an ended run left behind is still being ended"
        if unkillable:
            text = f"waiting for what an ended run left: {self.describe(unkillable[0])}"
        self._once(text, f"orphans {unkillable}")

    def clear_line(self) -> None:
        """Clear the live line, so that the command's output starts in a clean column."""
        if self.live and self._is_foreground():
            messages.write("\r\x1b[K")
        self.live = False

    def _once(self, text: str, mark: str) -> None:
        self.behind = ""  # there is no run to hint at
        if not self.silent and self._is_due(mark):
            self._say(text, mark)

    def _say(self, text: str, mark: str) -> None:
        self.said, self.said_at = mark, time.monotonic()
        self.live = self._is_foreground()
        if not self.live:
            messages.status(text)
            return
        line = f"sandrun: {plain(text)}"
        try:
            width = os.get_terminal_size(2).columns
        except OSError:
            width = 80
        messages.write("\r\x1b[K" + (_cut(line, width - 1) if width > 4 else line))

    def _hint(self, head: Ticket) -> None:
        self.hinted = True
        self.clear_line()
        messages.status(
            f"hint: behind the same run since {span_text(time.monotonic() - self.behind_since)}; "
            f"look at it: {command_for('status', self.name)}; end it: sandrun kill {head.id}"
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
        """How long we will wait, if history knows every run ahead."""
        if self.expected is None:  # history does not change by our waiting
            from sandrun import history

            self.expected = history.durations(self.project, ticket_text)
        spans = [self.expected.get(t.command, -1.0) for t in ahead]
        if not spans or min(spans) < 0:
            return ""
        running = sum(1 for t in ahead if t.running)
        left = sum(spans) - min(age, spans[0])
        return f", about {span_text(max(0.0, left) / max(1, running))} to go"


def _cut(line: str, columns: int) -> str:
    """As much of a line as fits into so many columns, of which some characters take two."""
    if len(line) <= columns and line.isascii():
        return line
    from unicodedata import east_asian_width

    ends = [0]  # the column in which each character ends
    for char in line:
        ends.append(ends[-1] + (2 if east_asian_width(char) in "WF" else 1))
    if ends[-1] <= columns:
        return line
    return line[: sum(end < columns for end in ends[1:])] + "…"
