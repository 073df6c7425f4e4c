"""Limits on cpu, io and pids, and what happens where a controller is not ours: on real kernels.

Runs in the laboratory, as root and as a plain user: vagrant/lab run -- pytest -m vm tests/vm
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sandrun import kernel, spawn
from sandrun.model import Limits

LAB = os.environ.get("SANDRUN_LAB", "")
MIB = 1 << 20

pytestmark = [pytest.mark.vm, pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab")]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about root's controllers: runs as root")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="about a user's controllers")
v2 = pytest.mark.skipif(LAB != "v2", reason="about cgroup v2")


def sandrun(*args: str, cwd: "Path | str" = "/") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sandrun", *args], capture_output=True, text=True, check=False, cwd=cwd, timeout=300
    )


SHOW = """
import sys
places = dict.fromkeys(("memory", "pids", "cpu"), "")
for line in open("/proc/self/cgroup"):
    _, names, path = line.strip().split(":", 2)
    for name in places:
        if name in names.split(","):
            places[name] = f"/sys/fs/cgroup/{name}{path}/"
        elif not names and not places[name]:
            places[name] = f"/sys/fs/cgroup{path}/../"
for word in sys.argv[1:]:
    print(open(places[word.split(".")[0]] + word).read().strip())
"""


@as_root
def test_every_limit_is_written() -> None:
    wanted = ["-m", "100M", "--swap", "8M", "--pids", "77", "--cpus", "0.5", "--cpu-weight", "50"]
    if LAB == "v2":
        files = ["memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.weight"]
        values = ["104857600", "8388608", "77", "50000 100000", "50"]
    else:
        files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max"]
        files += ["cpu.cfs_quota_us", "cpu.shares"]
        values = ["104857600", "113246208", "77", "50000", "512"]
    done = sandrun(*wanted, "--", sys.executable, "-c", SHOW, *files)
    assert done.stdout.splitlines() == values, done.stderr


@as_root
def test_a_rate_of_writing_holds() -> None:
    """2 MiB at 1 MiB a second, to the disk itself and not to the cache."""
    write = "dd if=/dev/zero of=/root/throttled bs=64k count=32 oflag=direct 2>/dev/null"
    began = time.monotonic()
    assert sandrun("--", "sh", "-c", write).returncode == 0
    free = time.monotonic() - began
    began = time.monotonic()
    done = sandrun("--io-write-bps", "1M", "-C", "/root", "--", "sh", "-c", write)
    throttled = time.monotonic() - began
    os.unlink("/root/throttled")
    assert done.returncode == 0, done.stderr
    assert throttled > free + 1.0


@as_root
def test_io_limits_need_a_disk() -> None:
    done = sandrun("--io-read-bps", "1M", "-C", "/run", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "/run is not on a disk that the kernel can throttle" in done.stderr


@v2
@as_user
def test_a_limit_whose_controller_is_not_delegated_is_refused() -> None:
    """systemd hands cpu, memory and pids to users, not io."""
    done = sandrun("--require", "kernel", "--io-weight", "50", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "the io controller is not available" in done.stderr
    assert "Delegate=cpu cpuset io memory pids" in done.stderr


UNIT = ["systemd-run", "-q", "--scope", "-p", "MemoryMax=80M", "-p", "MemorySwapMax=0"]


def in_unit(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*UNIT, *command], capture_output=True, text=True, check=False, cwd="/", timeout=300
    )


@v2
@as_root
def test_alone_in_a_limited_unit_the_run_stays_in_it() -> None:
    """Whose limit strikes is told in test_container.py: systemd ends a unit whose limit struck."""
    done = in_unit("sandrun", "-v", "-m", "60M", "--", "cat", "/proc/self/cgroup")
    assert done.returncode == 0
    assert "backend cgroup2" in done.stderr
    assert re.search(r"/run-\w+\.scope/sandrun-\w+/main\n", done.stdout)


@v2
@as_root
def test_among_others_in_a_limited_unit_no_new_scope_escapes_it() -> None:
    script = 'sandrun -v -m 1G -- "$@"; echo "code $?"'
    done = in_unit("sh", "-c", script, "sh", sys.executable, "-c", "print('ran')")
    assert done.stdout == "ran\ncode 0\n"
    assert "systemd: a new scope would escape memory.max = 83886080" in done.stderr
    assert "backend rlimit" in done.stderr


@v2
@as_root
def test_without_cgroup_kill_and_memory_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 5.14 and 5.19. A fake: the files are there, and we act as if they were not;
    no package has so old a kernel for the laboratory. Groups, processes and limits are real."""
    from sandrun.backends import group2

    parent = Path("/sys/fs/cgroup/sandrun-test-old")
    parent.mkdir()
    try:
        (parent / "cgroup.subtree_control").write_text("+memory +pids")

        class OldFiles(group2.Files):
            kill = _Missing()

            def has(self, name: str) -> bool:
                return name not in ("memory.peak", "memory.events.local") and super().has(name)

        monkeypatch.setattr(group2, "Files", OldFiles)
        group = group2.Group2(f"{parent}/sandrun-00000000", Limits(64 * MIB))
        group.create()
        script = "import os, time; b = bytearray(b'x') * (40 << 20); os.fork(); time.sleep(1000)"
        heritage = spawn.Heritage(set())
        group.spawn([sys.executable, "-c", script], dict(os.environ), heritage)
        deadline = time.monotonic() + 60
        while len(group.pids()) < 2:
            assert time.monotonic() < deadline
            group.poll()
        pids = group.pids()
        group.poll()
        usage = group.usage()
        assert usage.sampled
        assert usage.peak is not None
        assert 40 * MIB < usage.peak <= 64 * MIB
        group.kill()
        assert all(kernel.is_zombie(pid) for pid in pids)
        group.close()
        assert not os.path.exists(group.token)
    finally:
        parent.rmdir()


class _Missing:
    def __set__(self, instance: object, value: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "cgroup.kill")
