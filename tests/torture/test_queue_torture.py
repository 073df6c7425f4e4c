"""Many runs, random members of which get SIGKILL, SIGSTOP and SIGTERM at random instants.

The witness is independent of sandrun: each command takes a flock(2) of its own without waiting
and says so when it cannot, and notes its begin and its end under O_APPEND. Proved: never more
than `slots` at once, the order of those that nobody stopped, nobody lost, nothing left.

The seed is printed and SANDRUN_TORTURE_SEED replays its choices; SANDRUN_TORTURE_RUNS is how many
runs each case makes (default 40).
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from sandrun.platform import processes
from sandrun.queue import Ticket
from tests.harness import SCALE, Box, wait_for

RUNS = int(os.environ.get("SANDRUN_TORTURE_RUNS") or 40)
SEED = int(os.environ.get("SANDRUN_TORTURE_SEED") or random.SystemRandom().randrange(10**6))

# Descriptor 9 is the witness's lock; the sleep does not get it, so it is free when the shell dies.
WITNESS = r"""
name=$1 log=$2 seconds=$3; shift 3
for lock; do exec 9>>"$lock"; flock -n 9 && break; exec 9>&-; done
[ -e /dev/fd/9 ] || echo "overlap $name $$" >>"$log"
echo "begin $name $$" >>"$log"
sleep "$seconds" 9>&-
echo "end $name $$" >>"$log"
"""


class Member:
    """One run under torture."""

    def __init__(self, name: str, process: "subprocess.Popen[str]", after: int) -> None:
        self.name = name
        self.process = process
        self.after = after
        """How many of those started before certainly had their place when this one was started."""
        self.hit: set[str] = set()


class Torture:
    """Starts runs and does things to them; `random` decides everything that is decided."""

    def __init__(self, box: Box, seed: int, slots: int, backend: str) -> None:
        self.box = box
        self.random = random.Random(seed)
        self.slots = slots
        self.env = {"SANDRUN_SLOTS": str(slots), "SANDRUN_BACKEND": backend}
        self.members: list[Member] = []
        self.stopped: list[tuple[float, int]] = []
        self.placed = 0

    def start(self) -> None:
        name = f"run{len(self.members)}"
        span = f"{self.random.uniform(0.001, 0.06):.3f}"
        locks = [str(self.box.root / f"witness{n}") for n in range(self.slots)]
        words = ["sh", "-c", WITNESS, "job", name, str(self.box.log), span, *locks]
        process = self.box.start("-q", "--grace", "0.2", "--", *words, env=self.env)
        self.members.append(Member(name, process, self.placed))
        if self.random.random() < 0.4:
            wait_for(self.have_places, 30, "a place for all")
            self.placed = len(self.members)

    def have_places(self) -> bool:
        self.go_on()
        return all(self.has_place(member) for member in self.members[self.placed :])

    def has_place(self, member: Member) -> bool:
        return (
            member.process.poll() is not None
            or any(t.pid == member.process.pid for t in self.tickets())
            or any(name == member.name for _, name in self.box.events())
        )

    def tickets(self) -> list[Ticket]:
        names = [n for d in self.box.directories() for n in os.listdir(d)]
        return [Ticket(n) for n in sorted(names) if n[0] in "rw" and n[1:21].isdigit()]

    def strike(self) -> None:
        """Do something to a process: a run, a waiter, one that is just starting, a command."""
        living = [m for m in self.members if m.process.poll() is None]
        if not living:
            return
        running = {t.pid for t in self.tickets() if t.running}
        kinds = ["holder", "waiter", "newest", "command"]
        kind = self.random.choices(kinds, [3, 3, 1, 2])[0]
        holders = [m for m in living if m.process.pid in running]
        waiters = [m for m in living if m.process.pid not in running]
        chosen = {"holder": holders, "waiter": waiters, "command": holders}.get(kind, living[-1:])
        if not chosen:
            return
        member = self.random.choice(chosen)
        signum = self.random.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
        pids = [member.process.pid]
        if kind == "command":
            below = processes.descendants(member.process.pid)
            pids = [p for p in below if b"sandrun-keeper" not in _name(p)][:1]
        for pid in pids:
            member.hit.add(signum.name)
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                continue
            if signum == signal.SIGSTOP:
                self.stopped.append((time.monotonic() + self.random.uniform(0, 0.1), pid))

    def go_on(self, everything: bool = False) -> None:
        """Continue those whose time has come."""
        now = time.monotonic()
        for due, pid in [s for s in self.stopped if everything or s[0] <= now]:
            self.stopped.remove((due, pid))
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                pass

    def has_room(self) -> bool:
        self.go_on()
        return sum(m.process.poll() is None for m in self.members) < 12

    def run(self, count: int) -> None:
        while len(self.members) < count:
            self.start()
            if self.random.random() < 0.6:
                time.sleep(self.random.uniform(0, 0.05))  # the instant of the strike
                self.strike()
            wait_for(self.has_room, 60, "fewer in the queue")
        self.go_on(everything=True)
        for member in self.members:
            member.process.wait(60 * SCALE)

    def check(self) -> None:
        events = self.box.events()
        assert [name for what, name in events if what == "overlap"] == []
        begun = [name for what, name in events if what == "begin"]
        ended = [name for what, name in events if what == "end"]
        assert len(set(begun)) == len(begun), "nobody ran twice"
        for member in self.members:
            if not member.hit - {"SIGSTOP"}:  # nobody was lost
                assert member.process.returncode == 0, (member.name, self.box.heard(member.process))
                assert member.name in begun and member.name in ended
        print(f"{len(self.members)} runs: {len(begun)} begun, {len(ended)} ended, "
              f"{sum(bool(m.hit) for m in self.members)} hit")  # fmt: skip
        assert len(ended) >= len(self.members) // 4, "most were not hit before they began"
        if self.slots == 1:
            self.check_order(begun)
        assert self.tickets() == [] or self.box.status() == []
        wait_for(lambda: not self.box.leftovers(), 20, "nothing is left")

    def check_order(self, begun: "list[str]") -> None:
        """A run that certainly had its ticket before another was started ran before it."""
        position = {name: place for place, name in enumerate(begun)}
        unhurt = [m for m in self.members if not m.hit and m.name in position]
        for later in unhurt:
            for earlier in unhurt:
                if int(earlier.name[3:]) < later.after:
                    assert position[earlier.name] < position[later.name]


def _name(pid: int) -> bytes:
    try:
        return processes.read(f"/proc/{pid}/comm")
    except OSError:
        return b""


@pytest.mark.parametrize(
    ("backend", "slots"), [("auto", 1), ("rlimit", 1), ("none", 1), ("auto", 3), ("none", 2)]
)
def test_torture(make_box: "Callable[[str], Box]", backend: str, slots: int) -> None:
    print(f"SANDRUN_TORTURE_SEED={SEED}")
    torture = Torture(make_box("auto"), SEED, slots, backend)
    torture.run(RUNS)
    torture.check()
