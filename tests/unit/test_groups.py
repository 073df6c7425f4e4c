"""Limits on cgroups: each is read back, and a requested limit that cannot be set is refused.

A FAKE: plain files stand for the kernel's, because no kernel here lacks one or stores another
value. tests/vm/test_limits.py tests real ones.
"""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("about cgroups", allow_module_level=True)

from sandrun import messages
from sandrun.backends import cgroup1, cgroup2, cgroup_common, cgroup_files, rlimit
from sandrun.model import MIB, Limits, Unusable
from tests.harness import SCALE

V2 = (
    *("memory.max", "memory.swap.max", "pids.max", "cpu.max", "cpu.weight"),
    *("io.max", "io.weight", "io.bfq.weight"),
)
V1 = (
    *("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "pids.max", "cpu.cfs_quota_us"),
    *("cpu.cfs_period_us", "cpu.shares", "blkio.throttle.read_bps_device", "blkio.bfq.weight"),
)


def wanted(*asked: str) -> Limits:
    """Limits of every kind; the user requested those in `asked`."""
    limits = Limits(64 * MIB + 1)
    limits.swap, limits.pids, limits.cpus, limits.cpu_weight = MIB, 7, 0.5, 50
    limits.io, limits.io_weight = {"rbps": 1000}, 2000
    limits.set_by_user = frozenset(asked)
    return limits


class Kernel:
    """A group's files. The file `wrong` stores another value than was written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wrong = ""

    def create(self, *names: str) -> None:
        for name in names:
            (self.path / name).touch()

    def stored(self, name: str) -> str:
        return (self.path / name).read_text()

    def write(self, path: Path, value: object) -> None:
        assert path.exists()
        path.write_text("8" if path.name == self.wrong else str(value))

    def limit_v2(self, limits: Limits) -> None:
        cgroup2.Group2(str(self.path), limits)._set_limits(limits)

    def limit_v1(self, limits: Limits) -> None:
        group = cgroup1.Group1(
            dict.fromkeys(("memory", "pids", "cpu", "blkio"), str(self.path)), limits
        )
        group._limit_memory(limits)
        group._limit_others(limits)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel(tmp_path)

    def write(control: cgroup_files.Controller, name: bytes, value: object) -> None:
        made.write(Path(control.filepath(name).decode()), value)

    monkeypatch.setattr(cgroup_files.Controller, "set_property", write)
    monkeypatch.setattr(cgroup_files, "disk_of", lambda directory: "8:0")
    monkeypatch.setattr(messages, "level", 1)
    (tmp_path / "cgroup.controllers").write_text("cpu memory\n")
    return made


def test_every_limit_is_set_on_v2(kernel: Kernel) -> None:
    kernel.create(*V2)
    kernel.limit_v2(wanted())
    expected = [str(64 * MIB), str(MIB), "7", "50000 100000", "50", "8:0 rbps=1000"]
    assert [kernel.stored(name) for name in V2] == [*expected, "default 2000", "default 1000"]


def test_every_limit_is_set_on_v1(kernel: Kernel) -> None:
    kernel.create(*V1)
    kernel.limit_v1(wanted())
    expected = [str(64 * MIB), str(65 * MIB), "7", "50000", "100000", "512", "8:0 1000", "1000"]
    assert [kernel.stored(name) for name in V1] == expected


@pytest.mark.parametrize("name", V2)
def test_a_limit_that_the_kernel_stores_differently_is_an_error_on_v2(
    kernel: Kernel, name: str
) -> None:
    kernel.create(*V2)
    kernel.wrong = name
    with pytest.raises(Unusable, match=f"{name}: set to .*, the kernel stored '8'"):
        kernel.limit_v2(wanted())


@pytest.mark.parametrize("name", V1)
def test_a_limit_that_the_kernel_stores_differently_is_an_error_on_v1(
    kernel: Kernel, name: str
) -> None:
    kernel.create(*V1)
    kernel.wrong = name
    with pytest.raises(Unusable, match=r"set to .*, the kernel stored '?8'?"):
        kernel.limit_v1(wanted())


@pytest.mark.parametrize(
    ("key", "name", "why"),
    [
        ("swap", "memory.swap.max", "this kernel has none"),
        ("cpus", "cpu.max", "this kernel has none"),
        ("pids", "pids.max", "the controller is not delegated to us"),
    ],
)
def test_a_requested_limit_without_its_file_is_refused(
    kernel: Kernel, key: str, name: str, why: str
) -> None:
    kernel.create(*(other for other in V2 if other != name))
    with pytest.raises(Unusable, match=f"no {name} in .*: {why}"):
        kernel.limit_v2(wanted(key))
    kernel.limit_v2(wanted())


def test_without_iocost_the_weight_is_set_for_bfq(kernel: Kernel) -> None:
    kernel.create(*(name for name in V2 if name != "io.weight"))
    kernel.limit_v2(wanted())
    assert kernel.stored("io.bfq.weight") == "default 1000"


def test_a_weight_without_a_scheduler_for_it_is_refused(kernel: Kernel) -> None:
    kernel.create(*(name for name in V2 if "io" not in name or "max" in name))
    with pytest.raises(Unusable, match="neither iocost nor BFQ"):
        kernel.limit_v2(wanted())


@pytest.mark.parametrize("version", [1, 2])
def test_missing_swap_accounting_is_reported_if_swap_was_not_requested(
    kernel: Kernel, version: int, capfd: pytest.CaptureFixture[str]
) -> None:
    limits = wanted()
    limits.swap = 0
    kernel.create(*V1, *V2, "memory.swappiness")
    for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
        (kernel.path / name).unlink()
    (kernel.limit_v1 if version == 1 else kernel.limit_v2)(limits)
    (line,) = capfd.readouterr().err.splitlines()
    assert "swap" in line
    if version == 1:
        assert kernel.stored("memory.swappiness") == "0"


def test_requested_swap_is_refused_without_swap_accounting_on_v1(
    kernel: Kernel,
) -> None:
    kernel.create(*(name for name in V1 if "memsw" not in name), "memory.swappiness")
    with pytest.raises(Unusable, match="does not account for it"):
        kernel.limit_v1(wanted("swap"))


def test_the_monitor_refuses_limits_that_only_a_kernel_enforces() -> None:
    for key in ("swap", "pids", "cpus", "io_weight"):
        with pytest.raises(Unusable, match=f"only a kernel container limits {key}"):
            rlimit.RlimitBackend().open("0", wanted(key))


def test_sizes_are_whole_pages() -> None:
    assert cgroup_files.whole_pages(64 * MIB + 1) == 64 * MIB


LOCK_FIRST = """
import fcntl, os, sys
from sandrun.backends import cgroup_common

path, removes = sys.argv[1], sys.argv[2] == "True"
kept = []

def lock_first(event, words):
    if event != "open" or words[0] != path or kept:
        return
    kept.append(-1)  # os.open below is an event too
    kept[0] = os.open(path, os.O_RDONLY)
    fcntl.flock(kept[0], fcntl.LOCK_EX)
    if removes:
        os.rmdir(path)

sys.addaudithook(lock_first)
try:
    os.fstat(cgroup_common.make_locked(path))
    print("made")
except TimeoutError as error:
    print(error.strerror)
"""


@pytest.mark.parametrize(
    ("removes", "said"), [(True, "made"), (False, "another process holds its lock")]
)
def test_a_new_group_locked_by_another_process_does_not_block_us(
    tmp_path: Path, removes: bool, said: str
) -> None:
    """Another process locks it just before we do. A `collect` removes it; others only keep it."""
    done = subprocess.run(
        [sys.executable, "-c", LOCK_FIRST, str(tmp_path / "group"), str(removes)],
        capture_output=True,
        text=True,
        timeout=20 * SCALE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert done.stdout == f"{said}\n", done.stderr


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that counts as the mount of the v2 hierarchy."""
    monkeypatch.setattr(cgroup_common, "_mounts", [("2", ["rw"], "/", str(tmp_path))])
    return tmp_path


def test_only_the_group_of_the_same_run_is_its_container(hierarchy: Path) -> None:
    inside = hierarchy / "user.slice"
    ours = inside / "sandrun-0badcafe"
    ours.mkdir(parents=True)
    (inside / "sandrun-builds").mkdir()
    cgroup_common.check_ours(str(ours), "0badcafe", "")
    cgroup_common.check_ours(str(hierarchy / "sandrun-0badcafe"), "0badcafe", "")  # it is gone
    others = {
        "": "0badcafe",
        "/": "0badcafe",
        "sandrun-0badcafe": "0badcafe",
        str(ours): "0badcaff",
        str(inside / "sandrun-builds"): "0badcafe",
        str(inside): "0badcafe",
        f"{ours}/": "0badcafe",
        f"{inside}/x/../sandrun-0badcafe": "0badcafe",
        f"{hierarchy}/../sandrun-0badcafe": "0badcafe",
        "/etc/sandrun-0badcafe": "0badcafe",
        f"{hierarchy}x/sandrun-0badcafe": "0badcafe",
        f"{hierarchy}/\0/sandrun-0badcafe": "0badcafe",
        str(inside / "sandrun-"): "",
    }
    for path, run in others.items():
        with pytest.raises(Unusable):
            cgroup_common.check_ours(path, run, "")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs as two different users")
def test_another_users_group_is_never_killed(hierarchy: Path) -> None:
    theirs = hierarchy / "sandrun-0badcafe"
    theirs.mkdir()
    os.chown(theirs, 65534, 65534)
    with pytest.raises(Unusable, match="belongs to uid 65534"):
        cgroup_common.check_ours(str(theirs), "0badcafe", "")
    ended: list[str] = []
    cgroup_common.collect(str(hierarchy), ended.append)
    assert not ended


def test_only_unlocked_groups_with_a_runs_name_are_collected(hierarchy: Path) -> None:
    for name in ("0badcafe", "0badcaff", "builds", "0BADCAFE", "0badcafe1", ""):
        (hierarchy / f"sandrun-{name}").mkdir()
    live = os.open(hierarchy / "sandrun-0badcaff", os.O_RDONLY)
    fcntl.flock(live, fcntl.LOCK_EX)
    ended: list[str] = []
    cgroup_common.collect(str(hierarchy), ended.append)
    os.close(live)
    assert ended == [str(hierarchy / "sandrun-0badcafe")]
