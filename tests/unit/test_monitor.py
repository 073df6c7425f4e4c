"""The monitor's own reckoning: what a look costs, when the next is due, what memory is."""

import mmap
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import pytest

from sandrun.backends import memory_monitor
from sandrun.platform import processes
from tests.harness import wait_for

MIB = 1 << 20
SLEEP = ["sleep", "1000"]
TREE = ["sh", "-c", "sleep 1000 & sleep 1000 & sh -c 'sleep 1000 & wait' & wait"]


@pytest.fixture
def tree() -> "Iterator[int]":
    """A tree of six processes; its root's pid."""
    process = subprocess.Popen(TREE, start_new_session=True)
    wait_for(lambda: len(memory_monitor.walk(process.pid)) == 4, 10, "the tree is up")
    yield process.pid
    os.killpg(process.pid, 9)
    process.wait()


def test_no_interval_makes_it_sample_without_a_pause() -> None:
    samples = memory_monitor.Monitor(1 << 30, 1e-9)
    now = time.monotonic()
    samples.sample({}, now)
    assert (
        samples.sample_at >= now + memory_monitor.SHORTEST
    )  # a difference is rounded as the uptime wants


_opened: "list[str] | None" = None


def _audit(event: str, args: "tuple[object, ...]") -> None:
    if _opened is not None and event in ("open", "os.listdir", "os.scandir"):
        _opened.append(str(args[0]))


sys.addaudithook(_audit)


def opened_by_a_walk(root: int) -> list[str]:
    global _opened
    _opened = []
    try:
        memory_monitor.walk(root)
        return _opened
    finally:
        _opened = None


def test_a_samples_cost_depends_on_the_tree_alone(tree: int) -> None:
    alone = opened_by_a_walk(tree)
    others = [subprocess.Popen(SLEEP) for _ in range(100)]
    try:
        assert opened_by_a_walk(tree) == alone
        assert len(alone) <= 2 * len(memory_monitor.walk(tree)) + 1
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_parents_come_before_children(tree: int) -> None:
    members = memory_monitor.walk(tree)
    order = [tree, *members]
    assert all(order.index(info.parent) < order.index(pid) for pid, info in members.items())


def test_the_sum_of_the_tree_is_what_psutil_finds(tree: int) -> None:
    import psutil

    expected = {child.pid for child in psutil.Process(tree).children(recursive=True)}
    assert set(memory_monitor.walk(tree)) == expected


class Still(memory_monitor.Host):
    """A host whose memory does what the test says."""

    def __init__(self) -> None:
        self.used = self.next = 8 << 30
        self.shmem = 0

    def read(self) -> None:
        self.used = self.next


def reckoner(limit: int, memory: int, growth: float = 0.0) -> memory_monitor.Monitor:
    """A monitor that has just seen `memory`, growing by so many bytes a second."""
    reckoned = memory_monitor.Monitor(limit, 5.0)
    reckoned.host = Still()
    reckoned.current = memory
    reckoned._plan(time.monotonic(), growth, 0.0001)
    return reckoned


def until_sample(reckoned: memory_monitor.Monitor) -> float:
    return reckoned.sample_at - time.monotonic()


def test_the_interval_follows_head_room_and_growth() -> None:
    limit = 2048 * MIB
    calm = until_sample(reckoner(limit, 50 * MIB))
    half = until_sample(reckoner(limit, limit // 2))
    close = until_sample(reckoner(limit, limit - 20 * MIB))
    assert calm > half > close
    assert close < 0.1
    assert until_sample(reckoner(limit, limit // 2, growth=1 << 30)) < half
    assert until_sample(reckoner(limit, limit, growth=1 << 30)) <= memory_monitor.SHORTEST
    assert until_sample(reckoner(100 << 30, 0)) == pytest.approx(5.0, abs=0.1)  # CHECK_INTERVAL


def test_between_samples_the_hosts_memory_calls_for_one() -> None:
    reckoned = reckoner(2048 * MIB, 1500 * MIB)
    now = time.monotonic() + 0.01
    host = reckoned.host
    assert isinstance(host, Still)
    assert not reckoned.is_due(now)
    host.next += 100 * MIB
    assert not reckoned.is_due(now)
    host.next -= 400 * MIB  # somebody else gives back, then ours takes as much
    assert not reckoned.is_due(now)
    host.next += 150 * MIB
    assert reckoned.is_due(now)
    assert reckoned.due(now) <= memory_monitor.SHORTEST  # it grows: no more waiting


def test_an_expensive_sample_is_rarer() -> None:
    reckoned = reckoner(2048 * MIB, 2000 * MIB)
    reckoned._plan(time.monotonic(), 0.0, 0.02)
    assert until_sample(reckoned) > 2


def test_pss_is_not_asked_again_for_what_did_not_change() -> None:
    reckoned = reckoner(64 * MIB, 0)
    now = time.monotonic()
    first = reckoned._pss(os.getpid(), (12345, 0), (1, 7), now)
    global _opened
    _opened = []
    try:
        assert reckoned._pss(os.getpid(), (12345, 0), (1, 7), now + 0.5) == first
        assert not _opened
        # The pid of another process by now; it holds more; it has copied what it shared.
        for size, born in [(12345, (2, 7)), (12346, (2, 7)), (12346, (2, 8))]:
            _opened.clear()
            reckoned._pss(os.getpid(), (size, 0), born, now + 0.5)
            assert len(_opened) == 1
    finally:
        _opened = None


def test_stat_reads_any_name() -> None:
    program = "import sys, time; open('/proc/self/comm', 'w').write(') R 1 (x'); print(flush=True)"
    process = subprocess.Popen(
        [sys.executable, "-c", program + "; time.sleep(1000)"], stdout=subprocess.PIPE
    )
    assert process.stdout
    process.stdout.readline()
    info = processes.Stat(process.pid)
    assert (info.name, info.parent, info.threads) == (") R 1 (x", os.getpid(), 1)
    assert info.rss > MIB
    process.kill()
    process.communicate()


def test_a_leader_that_vanishes_during_a_sample_counts_nothing() -> None:
    """A dead leader whose threads lived when the tree was listed, reaped before its own look."""
    program = (
        "import ctypes, os, threading, time; threading.Thread(target=time.sleep, args=(1000,))."
        "start(); ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    wait_for(lambda: processes.Stat(process.pid).state == "Z", 10, "the leader is dead")
    info = processes.Stat(process.pid)
    assert info.threads == 2
    process.kill()
    process.wait()
    assert memory_monitor.Monitor(MIB, 5.0).sample({process.pid: info}, time.monotonic()) == 0


FORKER = """
import os, sys, time
kept = bytearray(b"x") * (60 << 20)
for line in sys.stdin:
    for i in range(int(line)):
        if not os.fork(): time.sleep(1000)
    print(flush=True)
"""


def test_new_sharers_of_what_was_measured_are_counted_once() -> None:
    """What a process had alone before it forked is its children's too, and no more memory."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    reckoned = memory_monitor.Monitor(100 * MIB, 5.0)
    reckoned.host = Still()
    try:
        for children in (2, 8):
            process.stdin.write(b"%d\n" % children)
            process.stdin.flush()
            process.stdout.readline()
            members = {process.pid: processes.Stat(process.pid), **memory_monitor.walk(process.pid)}
            memory = reckoned.sample(members, time.monotonic())
            assert 60 * MIB < memory < 85 * MIB
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


def test_a_copy_on_write_is_seen_though_the_rss_stays() -> None:
    """A page of a file goes and a private one comes."""
    pid, size = os.getpid(), 16 * MIB
    reckoned = memory_monitor.Monitor(1 << 40, 5.0)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as view:
            sum(view[at] for at in range(0, size, mmap.PAGESIZE))
            info = processes.Stat(pid)
            reckoned.sample({pid: info}, 1.0)
            before = reckoned._sizes[pid][0]
            for at in range(0, size, mmap.PAGESIZE):
                view[at] = 1
            after = processes.Stat(pid)
            after.rss = info.rss  # whatever else happens here
            reckoned.sample({pid: after}, 2.0)
            assert reckoned._sizes[pid][0] - before > size - MIB
