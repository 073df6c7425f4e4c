"""Which process holds a lock, as the kernel lists it; which waits are a deadlock."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sandrun.platform import linux_locks, processes
from sandrun.queue import Ticket, nesting


def test_the_kernel_reports_the_holder(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w") as file:
        assert linux_locks.lock_holder(os.fstat(file.fileno())) == 0
        fcntl.flock(file, fcntl.LOCK_EX)
        assert linux_locks.lock_holder(os.fstat(file.fileno())) == os.getpid()


@pytest.mark.parametrize(
    ("device", "claimed", "holder"),
    [
        ("same", 0, 77),
        ("same", 88, 77),  # the name's pid is another namespace's
        ("other", 77, 77),  # btrfs: stat shows another device, and the name agrees
        ("other", 88, 0),  # another file with the same inode number: not to be signalled
        ("other", 0, 77),
    ],
)
def test_an_inode_number_alone_is_no_proof(
    monkeypatch: pytest.MonkeyPatch, device: str, claimed: int, holder: int
) -> None:
    info = os.stat(os.curdir)
    major = os.major(info.st_dev) + (device == "other")
    where = f"{major:02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    lines = (
        f"1: POSIX  ADVISORY  WRITE 66 {where} 0 EOF\n"
        f"2: FLOCK  ADVISORY  WRITE 77 {where} 0 EOF\n"
        f"2: -> FLOCK  ADVISORY  WRITE 99 {where} 0 EOF\n"
        f"3: FLOCK  ADVISORY  WRITE 55 {where}0 0 EOF\n"
    )
    monkeypatch.setattr(processes, "read", lambda path: lines.encode())
    assert linux_locks.lock_holder(info, claimed) == holder


@pytest.mark.parametrize(("macos", "holder"), [(True, 77), (False, 0)])
def test_without_the_list_the_name_is_believed_on_macos(
    monkeypatch: pytest.MonkeyPatch, macos: bool, holder: int
) -> None:
    """On Linux that number may be another process, in another pid namespace."""

    def missing(path: str) -> bytes:
        raise FileNotFoundError(path)

    monkeypatch.setattr(processes, "read", missing)
    monkeypatch.setattr(linux_locks, "DARWIN", macos)
    assert linux_locks.lock_holder(os.stat(os.curdir), 77) == holder


def test_the_list_of_all_locks_is_not_read_for_a_holder_that_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it stops every process of the host that locks a file, for 10 ms."""
    reads: list[str] = []
    read = processes.read

    def noted(path: str) -> bytes:
        reads.append(path)
        return read(path)

    monkeypatch.setattr(processes, "read", noted)
    holder = "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(1); "
    path = tmp_path / "file"
    path.touch()
    words = [sys.executable, "-c", holder + "sys.stdout.flush(); input()", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline()
        assert linux_locks.lock_holder(path.stat(), other.pid) == other.pid
        assert not linux_locks.is_inherited_lock(path.stat(), [1, other.pid])
        assert f"{processes.PROC}/locks" not in reads
        assert linux_locks.lock_holder(path.stat(), 1) == other.pid  # not the one that is named
        other.communicate()


def test_only_the_open_file_that_holds_the_lock_proves_it(tmp_path: Path) -> None:
    """Not another one of the same file, nor one of our own, nor one unlocked since."""
    path = tmp_path / "file"
    with open(path, "w") as file, open(path) as other:
        for each in (file, other):
            os.set_inheritable(each.fileno(), True)
        info = os.fstat(file.fileno())
        assert not linux_locks.is_inherited_lock(info)
        fcntl.flock(file, fcntl.LOCK_EX)
        assert linux_locks.is_inherited_lock(info)
        os.set_inheritable(file.fileno(), False)
        assert not linux_locks.is_inherited_lock(info)
        os.set_inheritable(file.fileno(), True)
        fcntl.flock(file, fcntl.LOCK_UN)
        assert not linux_locks.is_inherited_lock(info)


def is_deadlock(
    monkeypatch: pytest.MonkeyPatch, slots: "dict[str, str]", waits: "list[str]"
) -> bool:
    """Whether the run O, inside which a run waits for the queue q, is in a deadlock. `slots`: the
    runs that hold the slots of each queue; `waits`: `A b` is a waiter inside A for the queue b."""

    def ticket(state: str, letter: str) -> Ticket:
        return Ticket(f"{state}{'1' * 20}.{letter * 8}.1.1.0.job")

    queues: dict[str, Any] = {name: nesting._Snapshot(f"/none/{name}") for name in slots}
    for name, letters in slots.items():
        queues[name].running = [ticket("r", letter) for letter in letters]
    for inside, name in (wait.split() for wait in ["O q", *waits]):
        enclosing = f"/none/any/{inside * 8}"
        waiter = nesting._NestedWaiter(queues[name], ticket("w", "f"), enclosing)
        queues[name].waiters.append(waiter)
    monkeypatch.setattr(nesting, "_snapshots", lambda enclosing: queues.values())
    here: Any = SimpleNamespace(path="/none/q")
    try:
        nesting.check_deadlock(here, ticket("w", "f"), f"/none/o/{'O' * 8}")
    except nesting.Deadlock:
        return True
    return False


@pytest.mark.parametrize(
    ("slots", "waits", "expected"),
    [
        ({"q": "A", "o": "O"}, ["A o"], True),
        ({"q": "A", "o": "O"}, [], False),
        ({"q": "AB", "o": "O"}, ["A o"], False),  # B ends
        ({"q": "AB", "o": "O"}, ["A o", "B o"], True),
        ({"q": "A", "o": "OX"}, ["A o"], False),  # X ends
        # A waits for B and C, which wait for the same third run.
        ({"q": "A", "b": "BC", "d": "D", "o": "O"}, ["A b", "B d", "C d", "D o"], True),
        ({"q": "AB", "d": "D", "o": "O"}, ["A d", "B d", "D o"], True),
        ({"q": "A", "b": "BC", "d": "D", "o": "O"}, ["A b", "B d", "D o"], False),  # C ends
        ({"q": "A", "b": "BC", "d": "DX", "o": "O"}, ["A b", "B d", "C d", "D o"], False),
        # A slot is held by a run that waits for A itself, the other by O.
        ({"q": "A", "b": "BO"}, ["A b", "B q"], True),
        ({"q": "A", "b": "BO"}, ["A b"], False),
        # A deadlock of others, which one of them ends.
        ({"q": "A", "b": "B", "o": "O"}, ["A b", "B q"], False),
        ({"q": "AB", "c": "C", "b": "B", "o": "O"}, ["A o", "B c", "C b"], False),
        # A has two waiters; one of them is enough.
        ({"q": "A", "x": "X", "o": "O"}, ["A x", "A o"], True),
    ],
)
def test_a_deadlock_blocks_every_slot(
    monkeypatch: pytest.MonkeyPatch, slots: "dict[str, str]", waits: "list[str]", expected: bool
) -> None:
    assert is_deadlock(monkeypatch, slots, waits) == expected
