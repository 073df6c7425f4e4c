"""sandrun's figures equal those of the kernel's files, to the byte and the microsecond.

Runs in the laboratory, as root and as a plain user: vagrant/lab run -- pytest -m vm tests/vm
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun import backends
from sandrun.model import Limits
from sandrun.platform import processes, spawn
from tests.harness import ROOT, SCALE, Box

LAB = os.environ.get("SANDRUN_LAB", "")
MIB = 1 << 20

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab"),
    pytest.mark.skipif(
        LAB != "v2" and os.geteuid() != 0, reason="about root's controllers: runs as root"
    ),
]
# A tree of two, each with 30 MiB, that computes and ends.
WORK = """
import os, time
child = os.fork()
kept = bytearray(b"x") * (30 << 20)
end = time.process_time() + 0.2
while time.process_time() < end: pass
if child: os.waitpid(child, 0)
"""


def files(token: str) -> "tuple[int, float]":
    """The highest use of memory in bytes and the CPU time in seconds of a container's group."""
    if LAB == "v2":
        stat = dict(line.split() for line in Path(token, "cpu.stat").read_text().splitlines())
        return int(processes.read(token + "/memory.peak")), int(stat["usage_usec"]) / 1e6
    paths = dict(line.split("=") for line in token.splitlines())
    peak = int(processes.read(paths["memory"] + "/memory.max_usage_in_bytes"))
    return peak, int(processes.read(paths["cpuacct"] + "/cpuacct.usage")) / 1e9


def measure(backend: str) -> None:
    """In a separate process, which the backend may move: run WORK, then print the figures of the
    kernel's files, of the container, and of the files again."""
    container = backends.named(backend).open(f"{os.getpid():08x}", Limits(200 * MIB))
    try:
        caller = spawn.capture()
        child = container.spawn([sys.executable, "-c", WORK], dict(os.environ), caller)
        _, _, spent = os.wait4(child, 0)
        while container.live_pids():
            time.sleep(0.01)
        before = after = files(container.token)
        # Exited processes are accounted for shortly after they were reaped, later on a busy
        # machine.
        deadline = time.monotonic() + 20 * SCALE
        while time.monotonic() < deadline:
            usage = container.usage()
            before, after = after, files(container.token)
            if before == after:
                break
        reported = usage.peak_with_cache, usage.cpu
        own = spent.ru_utime + spent.ru_stime
        print(json.dumps([before, reported, after, usage.sampled, usage.peak, own]))
    finally:
        container.kill()
        container.close()


@pytest.mark.parametrize("backend", ["systemd", "cgroup2"] if LAB == "v2" else ["cgroup1"])
def test_usage_equals_the_kernels_files(backend: str) -> None:
    prefix = []
    if backend == "cgroup2":
        manager = [] if os.geteuid() == 0 else ["--user"]
        prefix = ["systemd-run", "-q", *manager, "--scope", "-p", "Delegate=yes"]
        prefix.append("tests/contract/in-leaf")
    call = f"from tests.vm.test_numbers import measure; measure({backend!r})"
    done = subprocess.run(
        [*prefix, sys.executable, "-c", call], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    before, usage, after, sampled, without_cache, own = json.loads(done.stdout)
    assert before == usage == after
    assert not sampled
    peak, cpu = usage
    assert 60 * MIB < without_cache <= peak < 100 * MIB
    # Nothing but what the tree says of itself, however busy the machine is; a start is rounded.
    assert 0.4 < cpu < own + 0.1


# Takes and gives back 60 MiB, so that what follows is below the peak; then tells what the files of
# the run's own group say.
TELL = """
import os
kept = bytearray(b"x") * (60 << 20)
del kept
place = {}
for line in open("/proc/self/cgroup"):
    _, names, path = line.strip().split(":", 2)
    for name in names.split(","):
        place[name] = f"/sys/fs/cgroup/{name}{path}" if name else f"/sys/fs/cgroup{path}/.."
if "memory" in place:
    peak = open(place["memory"] + "/memory.max_usage_in_bytes").read()
    cpu = int(open(place["cpuacct"] + "/cpuacct.usage").read()) / 1e9
else:
    peak = open(place[""] + "/memory.peak").read()
    cpu = int(open(place[""] + "/cpu.stat").read().split()[1]) / 1e6
print(int(peak), cpu)
"""


def test_the_record_of_a_run_equals_the_kernels_files(
    make_box: "Callable[[str], Box]",
) -> None:
    box = make_box("auto")
    done = box.run("-m", "200M", "--require", "kernel", "--", sys.executable, "-c", TELL)
    assert done.returncode == 0, done.stderr
    peak, cpu = done.stdout.split()
    (record,) = box.records()
    assert record["peak_with_cache"] == int(peak)
    assert 60 * MIB < int(str(record["peak"])) <= int(peak)
    # What follows the command's own look is its end.
    assert float(cpu) <= float(str(record["cpu"])) < float(cpu) + 0.1 * SCALE
