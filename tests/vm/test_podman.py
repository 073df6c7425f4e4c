"""Containers that a run starts with podman are in the run: its limits and its end apply to them.

Runs in the laboratory, as root and rootless, with a podman that can be configured so (Debian 13):
vagrant/lab run --suite trixie --containers [--user] -- pytest -m vm tests/vm/test_podman.py
"""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun.platform import processes

ROOTFS = os.environ.get("SANDRUN_CONTAINER_ROOTFS", "")
VERSION = (
    tuple(map(int, re.findall(r"\d+", subprocess.getoutput("podman --version"))[:2]))
    if ROOTFS
    else (0,)
)
PODMAN = f"podman run --network=none --env PATH=/usr/bin:/bin --rootfs {ROOTFS}"
HOG = "python3 -c \"kept = [bytearray(b'x') * (4 << 20) for step in range(75)]\""

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not ROOTFS, reason="runs inside vagrant/lab run --containers"),
    pytest.mark.skipif(VERSION < (4, 4), reason="needs podman 4.4"),
]


@pytest.fixture(autouse=True)
def no_containers() -> "Iterator[None]":
    """podman notices only at `rm` that a run killed a container; the second `rm` succeeds."""
    yield
    for _ in range(2):
        podman("rm", "-f", "-a", "-t", "0")


def podman(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["podman", *args], capture_output=True, text=True, check=False, timeout=300
    )


def sandrun(*args: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sandrun", *args],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=300,
        env={**os.environ, **env},
    )


def of_containers() -> "list[str]":
    """The live processes of containers and their monitors."""
    found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    lines = [
        p.command
        for pid in found
        if not processes.has_exited(pid) and (p := processes.describe(pid))
    ]
    return [line for line in lines if re.search(r"conmon --api|^sleep 1000", line)]


def test_the_limit_is_enforced_in_the_container() -> None:
    done = sandrun("-m", "200M", "--", "sh", "-c", f"{PODMAN} {HOG}; echo on")
    assert done.returncode == 137, done.stderr
    assert "memory limit of 200 MiB reached" in done.stderr
    assert "pid" in done.stderr and "python3 -c kept" in done.stderr
    assert not of_containers()


def test_a_timeout_ends_the_container() -> None:
    done = sandrun("--timeout", "8", "--grace", "1", "--", "sh", "-c", f"{PODMAN} sleep 1000; :")
    assert done.returncode == 124, done.stderr
    assert "left the run's container" not in done.stderr
    assert not of_containers()


def test_a_detached_container_is_a_leftover() -> None:
    run = PODMAN.replace("run", "run -d", 1)
    done = sandrun("--grace", "1", "--", "sh", "-c", f"{run} sleep 1000")
    assert done.returncode == 0, done.stderr
    assert "left behind" in done.stderr
    assert "podman's container: podman stop NAME, or --leftovers leave" in done.stderr
    assert not of_containers()


def test_a_container_that_exited_is_cleaned_up() -> None:
    """podman cleans up after `podman run` has returned."""
    before = podman("ps", "-a", "-q").stdout
    done = sandrun(
        "--require", "kernel", "--", *PODMAN.replace("run", "run --rm", 1).split(), "true"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert podman("ps", "-a", "-q").stdout == before


def test_a_container_outside_the_run_is_found_named_and_ended() -> None:
    run = PODMAN.replace("run", "run --cgroups=enabled", 1)
    done = sandrun("--timeout", "8", "--grace", "1", "--", "sh", "-c", f"{run} sleep 1000; :")
    assert done.returncode == 124, done.stderr
    assert "left the run's container" in done.stderr
    assert "hint: podman 4.4 and newer stays inside with --cgroups=split" in done.stderr
    assert not of_containers()


@pytest.mark.skipif(os.geteuid() == 0, reason="about a user's controllers")
def test_later_podmans_of_the_user_still_work() -> None:
    """The first podman of a user makes a process that all later ones need."""
    podman("system", "migrate")
    first = sandrun("--", *PODMAN.split(), "sleep", "3")
    assert (first.returncode, first.stderr) == (0, "")
    again = podman("ps", "-a", "-q")
    assert again.returncode == 0 and not again.stderr, again
    pause = Path(f"/run/user/{os.geteuid()}/libpod/tmp/pause.pid").read_text()
    assert not processes.has_exited(int(pause))


def test_the_users_settings_of_podman_are_kept() -> None:
    show = ("--", "sh", "-c", 'echo "$CONTAINERS_CONF_OVERRIDE"')
    assert sandrun(*show).stdout.endswith("/sandrun/lifecycle/podman.conf\n")
    assert sandrun(*show, CONTAINERS_CONF_OVERRIDE="/a").stdout == "/a\n"
    assert sandrun("--daemons", "leave", *show).stdout == "\n"
    assert sandrun("--backend", "rlimit", *show).stdout == "\n"
