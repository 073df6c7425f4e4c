"""The laboratory is what it claims to be; otherwise a passed test in it would prove nothing.

Runs only there: vagrant/lab run [--kernel ...] [--user] -- pytest tests/vm/test_lab.py
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

LAB = os.environ.get("SANDRUN_LAB", "")
GROUPS = Path("/sys/fs/cgroup")
HOG = "b = bytearray(200 << 20)"

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab"),
]


def own_group(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.lstrip("/")
    raise AssertionError(f"no {controller!r} in /proc/self/cgroup")


def test_the_hierarchy_is_the_requested_one() -> None:
    lines = Path("/proc/mounts").read_text().splitlines()
    kinds = {fields[1]: fields[2] for fields in (line.split() for line in lines)}
    expected = {"v2": (None, "cgroup2"), "v1": ("cgroup", "tmpfs"), "hybrid": ("cgroup", "tmpfs")}
    assert (kinds.get(f"{GROUPS}/memory"), kinds.get(str(GROUPS))) == expected[LAB]
    assert (kinds.get(f"{GROUPS}/unified") == "cgroup2") == (LAB == "hybrid")


def limited_by_root() -> int:
    """200 MiB in a 50 MiB child of the job's own group, which the kernel must kill."""
    if LAB == "v2":
        parent = GROUPS / own_group("")
        leaf = parent / "leaf"
        leaf.mkdir()
        # The processes of the whole job: no controller can be enabled beside them.
        for pid in (parent / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                (leaf / "cgroup.procs").write_text(pid)
        (parent / "cgroup.subtree_control").write_text("+memory")
        limits = {"memory.swap.max": "0", "memory.max": "50M"}
        kills = "memory.events"
    else:
        parent = GROUPS / "memory" / own_group("memory")
        limits = {"memory.limit_in_bytes": "50M", "memory.memsw.limit_in_bytes": "50M"}
        kills = "memory.oom_control"
    group = parent / "limited"
    group.mkdir()
    for name, value in limits.items():
        (group / name).write_text(value)
    enter = f"echo 0 > {group}/cgroup.procs && exec {sys.executable} -c '{HOG}'"
    done = subprocess.run(["sh", "-c", enter], check=False)
    assert "oom_kill 1" in (group / kills).read_text().splitlines()
    return done.returncode


def limited_by_the_user_manager() -> int:
    assert os.environ["XDG_RUNTIME_DIR"] == f"/run/user/{os.getuid()}"
    assert own_group("" if LAB == "v2" else "name=systemd").endswith(".scope")
    scope = ["systemd-run", "-q", "--user", "--scope", "-p", "MemoryMax=50M"]
    done = subprocess.run([*scope, "-p", "MemorySwapMax=0", sys.executable, "-c", HOG], check=False)
    return done.returncode


def test_a_limit_kills() -> None:
    if os.geteuid() == 0:
        assert limited_by_root() == -9
    else:
        # On v1 the manager makes the scope, but has no memory controller to limit it.
        assert limited_by_the_user_manager() == (-9 if LAB == "v2" else 0)


def test_sandrun_is_installed_for_everyone() -> None:
    for command in (["sandrun"], [sys.executable, "-m", "sandrun"]):
        subprocess.run([*command, "--version"], cwd="/", check=True)


def test_there_is_swap() -> None:
    assert len(Path("/proc/swaps").read_text().splitlines()) == 2
