"""The polling monitor in difficult cases: fast growth, many processes, daemons, shared memory."""

import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.platform import processes
from tests.harness import SCALE, Box, alive, is_keeper, wait_for

MIB = 1 << 20


@pytest.fixture
def place(make_box: "Callable[[str], Box]") -> Box:
    return make_box("rlimit")


def python(text: str, *args: "str | int | Path") -> list[str]:
    return [sys.executable, "-I", "-S", "-c", text, *map(str, args)]


# Grows at a given rate by `take`, and records its size in a file that outlives it.
LEAK = """
import mmap, os, signal, sys, time
rate, note = int(sys.argv[1]) << 20, sys.argv[2]
if sys.argv[3] == "stubborn": signal.signal(signal.SIGTERM, signal.SIG_IGN)
fd = os.open(note, os.O_RDWR | os.O_CREAT)
STEP = 4 << 20
data = b"x" * STEP
kept, done, began = [], 0, time.monotonic()
TAKE
while done < 1200 << 20:
    take(data)
    done += STEP
    os.pwrite(fd, b"%10d" % (done >> 20), 0)
    ahead = done / rate - (time.monotonic() - began)
    if ahead > 0: time.sleep(ahead)
os._exit(77)
"""
TAKES = {
    "private": "take = lambda data: kept.append(bytearray(data))",
    "shared mapping": """
def take(data):
    m = mmap.mmap(-1, len(data)); m[:] = data; kept.append(m)""",
    "memfd, not mapped": """
memory = os.memfd_create("leak")
take = lambda data: os.write(memory, data)""",
    "unlinked file on a tmpfs": """
name = f"/dev/shm/leak-{os.getpid()}"
memory = os.open(name, os.O_RDWR | os.O_CREAT)
os.unlink(name)
take = lambda data: os.write(memory, data)""",
    "System V segments": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True); libc.shmat.restype = ctypes.c_void_p
def take(data):
    i = libc.shmget(0, len(data), 0o1600); p = libc.shmat(i, None, 0)
    libc.shmctl(i, 0, None)
    ctypes.memmove(ctypes.c_void_p(p), data, len(data))""",
}


@pytest.mark.parametrize("kind", TAKES)
def test_a_leak_of_a_gigabyte_a_second(place: Box, kind: str) -> None:
    """It is stopped within 10 % of the limit or its growth in 100 ms, whichever is more."""
    note = place.root / "note"
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("no /dev/shm here")
    command = python(LEAK.replace("TAKE", TAKES[kind]), 1000, note, "plain")
    done = place.run("-m", "400M", "--grace", "0.2", "--", *command)
    reached = int(note.read_text())
    assert done.returncode == 137, f"{done.stderr} at {reached} MiB"
    assert "memory limit of 400 MiB reached" in done.stderr
    assert 380 <= reached <= 400 + 100 * SCALE
    record = place.records()[-1]["peak"]
    assert isinstance(record, int)
    assert record > 350 * MIB


def test_a_leak_that_ignores_the_first_signal(place: Box) -> None:
    note = place.root / "note"
    command = python(LEAK.replace("TAKE", TAKES["shared mapping"]), 500, note, "stubborn")
    done = place.run("-m", "200M", "--grace", "3", "--", *command)
    assert done.returncode == 137
    assert int(note.read_text()) <= 200 + 100 * SCALE  # long before the grace was over


HOGS = """
import mmap, os, sys
kind, processes = sys.argv[1], int(sys.argv[2])
SIZE = 3 << 30
for _ in range(processes - 1):
    if not os.fork(): break
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
if kind == "at once": flags |= 0x8000  # MAP_POPULATE
kept = mmap.mmap(-1, SIZE, flags=flags)
data = b"x" * (4 << 20)
for _ in range(SIZE >> 22): kept.write(data)
print("survived")
"""


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("kind", ["at once", "by pieces"])
def test_several_processes_that_allocate_as_fast_as_they_can(
    place: Box, kind: str, processes: int
) -> None:
    """No rlimit backs the monitor: with one per process, several processes could each use what one
    may."""
    done = place.run("-m", "400M", "--", *python(HOGS, kind, processes))
    assert (done.returncode, done.stdout) == (137, ""), done.stderr
    assert "memory limit of 400 MiB reached" in done.stderr
    peak = place.records()[-1]["peak"]
    assert isinstance(peak, int)
    assert 400 * MIB < peak < (400 + 400 * SCALE) * MIB


# As programs do that reserve much memory and use little.
RESERVES = {
    "a sanitizer's shadow": "kept = reserve(14 << 40); kept[1 << 40] = 1",
    "a JVM's heap, a browser's cage": "kept = [reserve(1 << 35) for _ in range(8)]",
    "a sparse table": """
kept = reserve(1 << 38)
for at in range(0, 1 << 38, 1 << 30): kept[at] = 1""",
    "the stacks of 400 threads": """
import threading
threading.stack_size(64 << 20)
over = threading.Event()
threads = [threading.Thread(target=over.wait) for _ in range(400)]
for thread in threads: thread.start()
end = over.set""",
    "a copy on write of a large file": """
with open(sys.argv[1], "r+b") as file:
    file.truncate(8 << 30)
    kept = mmap.mmap(file.fileno(), 8 << 30, flags=mmap.MAP_PRIVATE)
for at in range(0, 8 << 30, 1 << 30): kept[at] = 1""",
}
RESERVE = """
import mmap, sys
end = lambda: None
def reserve(size):
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    return mmap.mmap(-1, size, flags=flags)
BODY
size = [line for line in open("/proc/self/status") if line.startswith("VmSize")]
print("ran", size[0].split()[1]); end()
"""


@pytest.mark.parametrize("kind", RESERVES)
def test_reserved_memory_does_not_count(place: Box, kind: str) -> None:
    file = place.root / "file"
    command = python(RESERVE.replace("BODY", RESERVES[kind]), file)
    bare = place.run(argv=command)
    done = place.run("-m", "100M", "--", *command)
    assert done.returncode == bare.returncode, done.stderr
    if (
        bare.returncode == 0
    ):  # otherwise this host permits no such reservation (vm.overcommit_memory)
        assert int(done.stdout.split()[1]) > 4 << 20  # KiB
        assert "limit of" not in done.stderr


@pytest.mark.parametrize("name", ["address", "thread"])
def test_a_program_with_a_sanitizer(place: Box, name: str) -> None:
    (place.project / "p.c").write_text("int main(void) { return 3; }\n")
    made = place.run("-fsanitize=" + name, "p.c", argv=["cc"])
    assert made.returncode == 0, made.stderr
    program = str(place.project / "a.out")
    bare = place.run(argv=[program])
    assert place.run("-m", "200M", "--", program).returncode == bare.returncode


def test_clean_pages_of_mapped_files_do_not_count(place: Box) -> None:
    """Such as those of a git pack, a database or a linker's input: the kernel can reclaim them at
    any time. It cannot reclaim pages written to a private mapping."""
    text = """
import mmap, sys, time
with open(sys.argv[1], "rb") as file:
    access = mmap.ACCESS_COPY if sys.argv[2] == "written" else mmap.ACCESS_READ
    view = mmap.mmap(file.fileno(), 0, access=access)
for at in range(0, len(view), 4096):
    if sys.argv[2] == "written": view[at] = 1
    else: view[at]
time.sleep(0.5)
print("through")
"""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:  # usually on a disk
        file.truncate(300 * MIB)
        if _backed_by_memory(file.name):
            pytest.skip("/var/tmp is no disk here")
        read = place.run("-m", "150M", "--", *python(text, file.name, "read"))
        assert (read.returncode, read.stdout) == (0, "through\n"), read.stderr
        assert "in use" not in read.stderr
        peak = place.records()[-1]["peak"]
        assert isinstance(peak, int)
        assert peak < 75 * MIB
        written = place.run("-m", "150M", "--", *python(text, file.name, "written"))
        assert (written.returncode, written.stdout) == (137, ""), written.stderr


def _backed_by_memory(path: str) -> bool:
    """Whether the file is on a tmpfs, by the pages of its mapping."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), MIB, prot=mmap.PROT_READ) as view:
        before = processes.anonymous_memory("/proc/self")[1]
        sum(view[at] for at in range(0, MIB, 4096))
        return processes.anonymous_memory("/proc/self")[1] > before


def test_there_is_one_warning_at_half_of_the_limit(place: Box) -> None:
    note = place.root / "note"
    command = python(LEAK.replace("TAKE", TAKES["private"]), 300, note, "plain")
    done = place.run("-m", "300M", "--", *command)
    (warning,) = [line for line in done.stderr.splitlines() if "MiB in use" in line]
    assert "MiB of 300 MiB in use (" in warning
    assert "most by" in warning


def test_many_small_processes_that_share_memory_are_counted_once(place: Box) -> None:
    """500 forks of a process with 20 MiB: 10 GiB of summed RSS, but about 60 MiB of memory."""
    text = """
import os, sys, time
kept = bytearray(b"x") * (20 << 20)
for i in range(500):
    if not os.fork(): time.sleep(2); os._exit(0)
for i in range(500): os.wait()
"""
    done = place.run("-m", "400M", "--", *python(text), seconds=60)
    assert done.returncode == 0, done.stderr


def test_memory_that_forks_copy_on_write_is_counted_at_once(place: Box) -> None:
    """Each child writes to pages shared with its parent: the memory becomes four times as much,
    and no RSS changes."""
    text = """
import mmap, os, time
size = 80 << 20
kept = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def write():
    for at in range(0, size, 4096): kept[at] += 1
write()
for i in range(3):
    if not os.fork(): time.sleep(0.5); write(); time.sleep(1.5); os._exit(0)
for i in range(3): os.wait()
print("survived")
"""
    done = place.run("-m", "200M", "--", *python(text), seconds=60)
    assert (done.returncode, done.stdout) == (137, ""), done.stderr


def test_processes_in_one_address_space_are_counted_once(place: Box) -> None:
    """vfork(2), as by a large compiler: until its exec the child shares its parent's memory."""
    text = """
import ctypes, os, time
kept = bytearray(b"x") * (150 << 20)
libc, made = ctypes.CDLL(None), []
vm, chld, size = 0x100, 17, 1 << 16
stacks = [ctypes.create_string_buffer(size) for _ in range(4)]
for stack in stacks:
    top = (ctypes.addressof(stack) + size) & ~15
    made.append(libc.clone(libc.pause, ctypes.c_void_p(top), vm | chld, None))
time.sleep(1)
for pid in made: os.kill(pid, 9); os.waitpid(pid, 0)
"""
    done = place.run("-m", "400M", "--", *python(text))
    assert done.returncode == 0, done.stderr
    peak = place.records()[-1]["peak"]
    assert isinstance(peak, int)
    assert 150 << 20 < peak < 250 << 20


def test_many_small_processes_that_share_no_memory_hit_the_limit(place: Box) -> None:
    text = """
import os, time
for i in range(500):
    if not os.fork():
        kept = bytearray(b"x") * (1 << 20)
        time.sleep(1000)
time.sleep(1000)
"""
    done = place.run("-m", "300M", "--grace", "0.5", "--", *python(text), seconds=60)
    assert done.returncode == 137, done.stderr
    wait_for(lambda: not place.leftovers(), 5, "all 500 are gone")


def test_the_number_of_processes_is_limited_above_that_of_the_host(place: Box) -> None:
    """By the kernel, except for root. Our own limit is restored."""
    run = place.start("--", "sh", "-c", "grep processes /proc/self/limits; exec sleep 1000")
    before = processes.thread_count()
    assert run.stdout
    soft = int(run.stdout.readline().split()[2])
    assert 8192 < soft < 8192 + 2 * before + 1000

    def ours() -> str:
        lines = processes.read(f"/proc/{run.pid}/limits").decode().splitlines()
        return next(line for line in lines if line.startswith("Max processes")).split()[2]

    wait_for(lambda: ours() != str(soft), 5, "it is back, perhaps after the command's first words")
    run.terminate()
    run.wait(20 * SCALE)


# Ends by itself after a while, in case a test does not find it.
CHAIN = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork(): time.sleep(0.5); os._exit(3)
end = time.monotonic() + 20
while time.monotonic() < end:
    if os.fork(): os._exit(0)
    os.setsid()
"""


def test_a_chain_of_forks_and_exits_is_caught(place: Box) -> None:
    """Its pid changes faster than /proc can be read, and it ignores the first signal."""
    done = place.run("--grace", "0.2", "--", *python(CHAIN), seconds=30)
    assert done.returncode == 3
    wait_for(lambda: not place.leftovers(), 2, "nothing is left")


def test_several_chains_at_once_at_a_timeout(place: Box) -> None:
    text = f"import os\nfor i in range(3):\n  if not os.fork():\n    exec({CHAIN!r})\n"
    text += "import time; time.sleep(1000)"
    done = place.run("-t", "1", "--grace", "0.2", "--", *python(text), seconds=60)
    assert done.returncode == 124
    wait_for(lambda: not place.leftovers(), 2, "nothing is left")


def test_after_sigkill_of_the_supervisor_a_chain_is_caught(place: Box) -> None:
    for _ in range(3):
        run = place.start("--", *python(CHAIN))
        wait_for(lambda run=run: len(processes.descendants(run.pid)) > 1, 10)  # type: ignore[misc]
        time.sleep(0.4)
        run.kill()
        run.wait()
        wait_for(lambda: not place.leftovers(), 5, "nothing is left")


def test_the_monitor_costs_little(place: Box) -> None:
    """With its keeper, among 2,000 other processes. It uses 0.2 % of a core on an idle host
    (tests/bench/contain.py); each jump of the host's memory use costs a sample."""
    script = "i=0; while [ $i -lt 2000 ]; do sleep 1000 & i=$((i+1)); done; echo; wait"
    others = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    text = "import time; kept = bytearray(b'x') * (300 << 20); print(flush=True); time.sleep(1000)"
    try:
        assert others.stdout
        others.stdout.readline()
        run = place.start("-m", "512M", "--", *python(text))
        assert run.stdout
        run.stdout.readline()
        own = [run.pid, *filter(is_keeper, processes.children(run.pid))]
        assert len(own) > 1
        time.sleep(1)
        start = sum(map(_own_cpu, own))
        time.sleep(3)
        share = (sum(map(_own_cpu, own)) - start) / 3
        assert share < 0.02 * SCALE, f"{share:.1%} of a core"
    finally:
        os.killpg(others.pid, signal.SIGKILL)
        others.wait()


def _own_cpu(pid: int) -> float:
    fields = processes.read(f"/proc/{pid}/schedstat").split()
    return int(fields[0]) / 1e9


def data_limit(pid: int) -> int:
    """The soft limit, which any user may read."""
    line = Path(f"/proc/{pid}/limits").read_text().partition("Max data size")[2]
    return int(line.split()[0].replace("unlimited", "0"))


@pytest.mark.parametrize("user", [12345, None], ids=["a user", "root"])
def test_a_process_of_another_user_with_the_marking_limit_is_not_the_runs(
    open_box: Box, user: "int | None"
) -> None:
    """Any user can read the limit that marks a run's processes, and set it for other processes."""
    box = open_box
    box.log.chmod(0o666)
    words = box.job("one")
    (box.root / "gate-one").chmod(0o666)
    run = box.start("--backend", "rlimit", "--", *words, user=user)
    job = box.begun("one")
    limit = data_limit(job)
    other = box.start(f"--data={limit}:", "sleep", "1000", argv=["prlimit"], user=65534)
    wait_for(lambda: data_limit(other.pid) == limit, 20)
    killed = [run.pid, *(pid for pid in processes.descendants(run.pid) if is_keeper(pid))]
    for signum in (signal.SIGSTOP, signal.SIGKILL):  # all killed at once: the next run cleans up
        for pid in killed:
            os.kill(pid, signum)
    run.wait()
    done = box.run("--backend", "rlimit", "--", "true", user=user)
    assert (done.returncode, "do not die" in done.stderr) == (0, False), done.stderr
    assert not alive(job)
    assert alive(other.pid)
