"""sandrun as the entrypoint of a real container (podman), with each kind of cgroupfs.

Runs in the laboratory, as root and rootless: vagrant/lab run --containers [--user] -- pytest ...
The container's root file system is $SANDRUN_CONTAINER_ROOTFS.
"""

import os
import re
import subprocess
import time
import uuid
from collections.abc import Iterator

import pytest

ROOTFS = os.environ.get("SANDRUN_CONTAINER_ROOTFS", "")
SCALE = float(os.environ.get("SANDRUN_TEST_SCALE") or "1")
READ_ONLY: tuple[str, ...] = ()
WRITABLE = ("--security-opt", "unmask=/sys/fs/cgroup")
HOG = "kept = [bytearray(b'x') * (4 << 20) for step in range(75)]"

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not ROOTFS, reason="runs inside vagrant/lab run --containers"),
]


def podman(*args: str, seconds: float = 60) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["podman", *args], capture_output=True, text=True, check=False, timeout=seconds * SCALE
    )


def entry(options: "tuple[str, ...]", *command: str) -> "subprocess.CompletedProcess[str]":
    """Run `sandrun COMMAND` as PID 1 of a fresh container."""
    return podman(
        "run", "--rm", "--network=none", *options, "--rootfs", ROOTFS, "sandrun", *command
    )  # fmt: skip


@pytest.fixture
def name() -> "Iterator[str]":
    """The name of a container that is removed at the end."""
    name = "sandrun-test-" + uuid.uuid4().hex[:8]
    yield name
    podman("rm", "-f", "-t", "0", name)


def detached(name: str, options: "tuple[str, ...]", *command: str) -> None:
    done = podman(
        "run", "-d", "--name", name, "--network=none", *options, "--rootfs", ROOTFS,
        "sandrun", *command,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    deadline = time.monotonic() + 20 * SCALE
    while "ready" not in podman("logs", name).stdout:
        assert time.monotonic() < deadline, podman("logs", name)
        time.sleep(0.1)


@pytest.mark.parametrize(("options", "backend"), [(READ_ONLY, "rlimit"), (WRITABLE, "cgroup2")])
def test_the_backend_and_the_exit_code(options: "tuple[str, ...]", backend: str) -> None:
    done = entry(options, "-v", "--", "sh", "-c", "exit 42")
    assert done.returncode == 42, done.stderr
    assert f"backend {backend}" in done.stderr
    if backend == "rlimit":
        assert "read-only mount" in done.stderr


def test_a_read_only_cgroupfs_is_refused_when_the_kernel_is_required() -> None:
    done = entry(READ_ONLY, "--require", "kernel", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (125, "")
    assert "unmask=/sys/fs/cgroup" in done.stderr


@pytest.mark.parametrize("options", [READ_ONLY, WRITABLE])
def test_the_limit_holds_inside(options: "tuple[str, ...]") -> None:
    done = entry(options, "-m", "50M", "--", "python3", "-c", HOG)
    assert done.returncode == 137
    assert "memory limit of 50.0 MiB reached" in done.stderr


def test_the_containers_own_limit_is_told_from_the_runs() -> None:
    # User Mode Linux has no OOM reaper to speak of: while the hog still dies, the kernel may take
    # a second victim, and outside the run's group that is sandrun itself.
    for _ in range(5):
        done = entry(("-m", "100m", *WRITABLE), "--pool=off", "-m1G", "--", "python3", "-c", HOG)
        assert done.returncode == 137
        if "struck" in done.stderr:
            break
    assert "a memory limit around the run struck, not its own" in done.stderr
    assert re.search(r"MiB +pid \d+ +python3 -c", done.stderr)


def test_the_hosts_tree_bind_mounted_is_no_place_for_a_limit() -> None:
    host = ("--cgroupns=private", "-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw", *WRITABLE)
    done = entry(host, "-v", "-m", "50M", "--", "python3", "-c", HOG)
    assert done.returncode == 137, done.stderr
    assert "backend rlimit" in done.stderr
    assert "the host's groups" in done.stderr or "not writable" in done.stderr


@pytest.mark.parametrize("options", [READ_ONLY, WRITABLE])
def test_stop_ends_it_within_the_grace_by_the_commands_own_handler(
    name: str, options: "tuple[str, ...]"
) -> None:
    script = 'trap "echo bye; exit 7" TERM; echo ready; while :; do sleep 0.1; done'
    detached(name, options, "--", "sh", "-c", script)
    began = time.monotonic()
    assert podman("stop", "-t", "60", name).returncode == 0
    assert time.monotonic() - began < 20 * SCALE
    assert podman("inspect", "-f", "{{.State.ExitCode}}", name).stdout.strip() == "7"
    assert "bye" in podman("logs", name).stdout


@pytest.mark.parametrize("options", [READ_ONLY, WRITABLE])
def test_zombies_are_reaped_and_exec_works_beside(name: str, options: "tuple[str, ...]") -> None:
    orphans = "for i in 1 2 3 4 5; do sh -c 'sleep 0.1 & exit'; done; sleep 1; echo ready; sleep 99"
    detached(name, options, "-m", "200M", "--", "sh", "-c", orphans)  # leaves room in the pool
    states = podman("exec", name, "sh", "-c", "cat /proc/[0-9]*/stat").stdout
    assert " Z " not in states
    command = ["sandrun", "--queue", "beside", "-m", "100M", "-v", "--", "sh", "-c", "exit 9"]
    beside = podman("exec", name, *command)
    assert beside.returncode == 9, beside.stderr
    if options == WRITABLE:
        assert "backend cgroup2" in beside.stderr
