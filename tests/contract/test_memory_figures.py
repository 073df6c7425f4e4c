"""The reported memory: peaks with and without page cache, the processes that used it, its kinds."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun.model import MIB
from tests.harness import Box

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": MIB}
# Allocates so many MiB, one at a time, with a pause after each, keeps them for a while and exits.
TAKE = """
import sys, time
mib, pause, hold = map(float, sys.argv[1:])
kept = []
for _ in range(int(mib)): kept.append(b"x" * (1 << 20)); time.sleep(pause)
time.sleep(hold)
"""
DD = "dd if=/dev/zero of=$0 bs=1M count=200 status=none"


def take(mib: int, pause: float, hold: float = 0) -> "list[str]":
    return [sys.executable, "-c", TAKE, str(mib), str(pause), str(hold)]


@pytest.fixture
def file() -> "Iterator[str]":
    """The name of a file on a disk, whose pages are cache."""
    with tempfile.TemporaryDirectory(prefix="sandrun-test-", dir="/var/tmp") as directory:
        kind = ["stat", "-f", "-c", "%T", directory]
        if subprocess.run(kind, capture_output=True, text=True, check=True).stdout == "tmpfs\n":
            pytest.skip("/var/tmp is no disk here")
        yield directory + "/file"


def peaks(box: Box) -> "tuple[int, int]":
    record = box.last_record()
    peak, with_cache = record["peak"], record["peak_with_cache"]
    if record["backend"] == "rlimit":
        assert with_cache is None
        return int(str(peak)), 200 * MIB
    return int(str(peak)), int(str(with_cache))


def is_prompt(backend: str) -> None:
    """Skip under User Mode Linux 7.2, where memory.stat is up to 2 s old. On other kernels reading
    it flushes it (mm/memcontrol.c, memory_stat_format)."""
    if backend in ("cgroup2", "systemd") and "User Mode Linux" in Path("/proc/cpuinfo").read_text():
        pytest.skip("memory.stat lags under User Mode Linux")


def test_the_peak_excludes_page_cache(place: Box, file: str, backend: str) -> None:
    """With `peak` as its limit, the same command succeeds."""
    is_prompt(backend)
    done = place.run("-m", "80M", "--", "sh", "-c", DD, file)
    assert done.returncode == 0, done.stderr
    assert "in use" not in done.stderr
    peak, with_cache = peaks(place)
    assert peak < 30 * MIB
    assert with_cache > 60 * MIB
    again = place.run("-m", str(max(peak, 8 * MIB)), "--", "sh", "-c", DD, file)
    assert again.returncode == 0, again.stderr


def test_the_peak_excludes_page_cache_that_was_freed(place: Box, file: str, backend: str) -> None:
    is_prompt(backend)
    done = place.run("-m", "1G", "--", "sh", "-c", f"{DD}; sleep 1.2; rm $0; sleep 0.1", file)
    assert done.returncode == 0, done.stderr
    peak, with_cache = peaks(place)
    assert peak < 30 * MIB
    assert with_cache > 190 * MIB


def test_a_peak_between_two_samples_is_taken_from_the_kernel(kernel_place: Box) -> None:
    script = "import mmap, time; time.sleep(0.5); mmap.mmap(-1, 90 << 20, flags=0x8022); "
    done = kernel_place.run("-m", "2G", "--", sys.executable, "-c", script + "time.sleep(0.5)")
    assert done.returncode == 0, done.stderr
    peak, with_cache = peaks(kernel_place)
    assert 85 * MIB < peak <= with_cache


@pytest.mark.parametrize("before", ["cache", "another"])
def test_the_present_user_of_the_memory_is_named_and_not_an_earlier_one(
    place: Box, file: str, before: str
) -> None:
    """First a process fills the limit with cache, or more than half of it with memory, and exits.
    The next is slow, because memory.stat may be 2 s old (mm/memcontrol.c, FLUSH_TIME)."""
    first = DD if before == "cache" else '"$1" "$2" "$3" 50 0.002 3'
    hog = '"$1" "$2" "$3" 400 0.06 0 & echo $!; wait'
    done = place.run("-m", "80M", "--", "sh", "-c", f"{first}; {hog}", file, *take(0, 0)[:3])
    assert done.returncode == 137, done.stderr
    pid = done.stdout.strip()
    named = re.findall(r"MiB  pid (\d+)  ", done.stderr)
    assert named == [pid], done.stderr
    reported = re.findall(r"in use .* most by .*\(pid (\d+)\)", done.stderr)
    assert reported == [pid] or (before == "another" and len(reported) == 1), done.stderr
    kinds = kinds_in(done.stderr)
    if kinds:
        assert kinds["anon"] > 40 * MIB


def kinds_in(text: str) -> "dict[str, float]":
    reported = re.findall(r"\b(anon|file|shmem|kernel) ([\d.]+) (\w+)", text)
    return {name: float(size) * UNITS[unit] for name, size, unit in reported}


# Scripts that fill the kernel's memory with many objects, none of it process memory.
FILLERS = {
    "pipes": "time.sleep(0.02); r, w = os.pipe(); kept += r, w; os.write(w, b'x' * 65536)",
    "sockets": "time.sleep(0.05); a, b = socket.socketpair(); kept += a, b; a.setblocking(False)\n"
    " try:\n  while True: a.send(b'x' * 4096)\n except BlockingIOError: pass",
    "inodes": "os.close(os.open(f'{where}/{i}', os.O_CREAT | os.O_WRONLY))",
}


@pytest.mark.parametrize("what", FILLERS)
def test_kernel_memory_is_named(kernel_place: Box, what: str) -> None:
    count = 60000 if what == "inodes" else 480
    with tempfile.TemporaryDirectory(prefix="sandrun-test-", dir="/dev/shm") as where:
        script = f"import os, socket, time\nkept, where = [], {where!r}\n"
        script += f"for i in range({count}):\n {FILLERS[what]}\n"
        done = kernel_place.run("-m", "24M", "--", sys.executable, "-c", script)
    assert done.returncode == 137, (done.stdout, done.stderr)
    assert "MiB (such as inodes, dentries, pipes, sockets)" in done.stderr
    kinds = kinds_in(done.stderr)
    assert kinds["kernel"] > 12 * MIB, done.stderr
    # From the last sample before the limit.
    assert 12 * MIB < sum(kinds.values()) <= 25 * MIB, done.stderr
