"""The monitor's calculations: the cost of a sample, when the next one is due, what counts."""

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


def test_there_is_a_pause_between_samples_with_any_interval() -> None:
    samples = memory_monitor.Monitor(1 << 30, 1e-9)
    now = time.monotonic()
    samples.sample({}, now)
    assert (
        samples.sample_at >= now + memory_monitor.SHORTEST
    )  # not the difference, which is rounded


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


def test_the_cost_of_a_sample_depends_only_on_the_tree(tree: int) -> None:
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


def test_a_walk_finds_what_psutil_finds(tree: int) -> None:
    import psutil

    expected = {child.pid for child in psutil.Process(tree).children(recursive=True)}
    assert set(memory_monitor.walk(tree)) == expected


class FakeHost(memory_monitor.Host):
    """A host whose memory the test sets."""

    def __init__(self) -> None:
        self.used = self.next = 8 << 30
        self.shmem = 0

    def read(self) -> None:
        self.used = self.next


def monitor_after(limit: int, memory: int, growth: float = 0.0) -> memory_monitor.Monitor:
    """A monitor that has just measured `memory`, growing by `growth` bytes a second."""
    monitor = memory_monitor.Monitor(limit, 5.0)
    monitor.host = FakeHost()
    monitor.current = memory
    monitor._plan(time.monotonic(), growth, 0.0001)
    return monitor


def until_sample(monitor: memory_monitor.Monitor) -> float:
    return monitor.sample_at - time.monotonic()


def test_the_interval_follows_the_memory_left_and_the_growth() -> None:
    limit = 2048 * MIB
    calm = until_sample(monitor_after(limit, 50 * MIB))
    half = until_sample(monitor_after(limit, limit // 2))
    close = until_sample(monitor_after(limit, limit - 20 * MIB))
    assert calm > half > close
    assert close < 0.1
    assert until_sample(monitor_after(limit, limit // 2, growth=1 << 30)) < half
    assert until_sample(monitor_after(limit, limit, growth=1 << 30)) <= memory_monitor.SHORTEST
    assert until_sample(monitor_after(100 << 30, 0)) == pytest.approx(
        5.0, abs=0.1
    )  # CHECK_INTERVAL


def test_growth_of_the_hosts_memory_makes_a_sample_due() -> None:
    monitor = monitor_after(2048 * MIB, 1500 * MIB)
    now = time.monotonic() + 0.01
    host = monitor.host
    assert isinstance(host, FakeHost)
    assert not monitor.is_due(now)
    host.next += 100 * MIB
    assert not monitor.is_due(now)
    host.next -= 400 * MIB  # another process frees memory, then ours allocates as much
    assert not monitor.is_due(now)
    host.next += 150 * MIB
    assert monitor.is_due(now)
    assert monitor.due(now) <= memory_monitor.SHORTEST  # it grows, so readings are frequent


def test_an_expensive_sample_is_rarer() -> None:
    monitor = monitor_after(2048 * MIB, 2000 * MIB)
    monitor._plan(time.monotonic(), 0.0, 0.02)
    assert until_sample(monitor) > 2


def test_the_pss_of_an_unchanged_process_is_not_read_again() -> None:
    monitor = monitor_after(64 * MIB, 0)
    now = time.monotonic()
    first = monitor._pss(os.getpid(), (12345, 0), (1, 7), now)
    global _opened
    _opened = []
    try:
        assert monitor._pss(os.getpid(), (12345, 0), (1, 7), now + 0.5) == first
        assert not _opened
        # The pid is another process's by now; it has more memory; it has copied a shared page.
        for size, born in [(12345, (2, 7)), (12346, (2, 7)), (12346, (2, 8))]:
            _opened.clear()
            monitor._pss(os.getpid(), (size, 0), born, now + 0.5)
            assert len(_opened) == 1
    finally:
        _opened = None


def test_stat_parses_any_process_name() -> None:
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


def test_a_leader_reaped_during_a_sample_counts_nothing() -> None:
    """The leader is dead and had live threads when the tree was listed; then it is reaped."""
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


def test_pages_shared_with_new_children_are_counted_once() -> None:
    """The private memory of a process is shared with its children after a fork, and no more."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", FORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdin
    assert process.stdout
    monitor = memory_monitor.Monitor(100 * MIB, 5.0)
    monitor.host = FakeHost()
    try:
        for children in (2, 8):
            process.stdin.write(b"%d\n" % children)
            process.stdin.flush()
            process.stdout.readline()
            members = {process.pid: processes.Stat(process.pid), **memory_monitor.walk(process.pid)}
            memory = monitor.sample(members, time.monotonic())
            assert 60 * MIB < memory < 85 * MIB
    finally:
        os.killpg(process.pid, 9)
        process.communicate()


def test_a_copy_on_write_with_unchanged_rss_is_counted() -> None:
    """A private page replaces a page of a file."""
    pid, size = os.getpid(), 16 * MIB
    monitor = memory_monitor.Monitor(1 << 40, 5.0)
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as view:
            sum(view[at] for at in range(0, size, mmap.PAGESIZE))
            info = processes.Stat(pid)
            monitor.sample({pid: info}, 1.0)
            before = monitor._sizes[pid][0]
            for at in range(0, size, mmap.PAGESIZE):
                view[at] = 1
            after = processes.Stat(pid)
            after.rss = info.rss  # whatever else this process allocated
            monitor.sample({pid: after}, 2.0)
            assert monitor._sizes[pid][0] - before > size - MIB
