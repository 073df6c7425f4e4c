"""`sandrun doctor` on hosts that lack something: the right verdict, the evidence, the fix.

Runs as root in the laboratory: vagrant/lab run [--kernel ...] -- pytest -m vm tests/vm
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LAB = os.environ.get("SANDRUN_LAB", "")

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes users and mounts: runs as root"),
]
v2 = pytest.mark.skipif(LAB != "v2", reason="about cgroup v2")
AS_USER = ["runuser", "-u", "vagrant", "--", "env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin"]


def examine(*prefix: str) -> "tuple[dict[str, tuple[str, str, str]], str, int]":
    """Run doctor; return checks by name (status, evidence, fix), the backend in force, the code."""
    done = subprocess.run(
        [*prefix, "sandrun", "doctor", "--json"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    answer = json.loads(done.stdout)
    rows = {row["name"]: (row["status"], row["evidence"], row["fix"]) for row in answer["checks"]}
    assert answer["kernel"] == (done.returncode == 0)
    return rows, answer["backend"], done.returncode


def in_namespace(mount: str) -> "list[str]":
    """A command prefix: run in a new mount namespace, after the command `mount`."""
    return ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "sh"]


def test_as_root() -> None:
    rows, backend, code = examine()
    best = "systemd" if LAB == "v2" else "cgroup1"
    assert (backend, code) == (best, 0), rows
    assert rows[best][0] == "PASS"
    assert "32.0 MiB" in rows[best][1]
    assert LAB.replace("hybrid", "hybrid:").replace("v1", "v1:") in rows["cgroups"][1]


def test_as_a_plain_user_with_an_empty_environment() -> None:
    rows, backend, code = examine(*AS_USER)
    if LAB == "v2":
        assert (backend, code) == ("systemd", 0), rows
    else:
        # A scope of systemd's has no memory controller there, and the v1 groups are root's.
        assert (backend, code) == ("rlimit", 1), rows
        assert "Permission denied" in rows["cgroup1"][1]
        assert "chown" in rows["cgroup1"][2]


@pytest.fixture
def stranger() -> "Iterator[str]":
    """A user without linger and without a session, and therefore without a manager."""
    subprocess.run(["useradd", "-m", "stranger"], check=True)
    yield "stranger"
    subprocess.run(["userdel", "-r", "stranger"], check=True, stderr=subprocess.DEVNULL)


@v2
def test_as_a_user_without_linger(stranger: str) -> None:
    rows, backend, code = examine("runuser", "-u", stranger, "--")
    assert (backend, code) == ("rlimit", 1), rows
    assert "no D-Bus socket of uid" in rows["systemd"][1]
    assert "enable-linger" in rows["systemd"][2]
    assert rows["rlimit"][0] == "CAUTION"


@v2
def test_after_su_with_the_other_users_environment() -> None:
    leaked = ["XDG_RUNTIME_DIR=/run/user/0", "DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/0/bus"]
    _, backend, code = examine(*AS_USER, *leaked)
    assert (backend, code) == ("systemd", 0)


@v2
def test_without_a_bus_the_managers_own_socket_is_used() -> None:
    rows, backend, code = examine(*in_namespace("mount -t tmpfs none /run/dbus"))
    assert (backend, code) == ("systemd", 0), rows["systemd"]


@v2
def test_without_a_bus_and_without_that_socket() -> None:
    hide = "mount -t tmpfs none /run/dbus && mount --bind /dev/null /run/systemd/private"
    rows, backend, code = examine(*in_namespace(hide))
    assert (backend, code) == ("rlimit", 1), rows
    assert "systemd gave no scope" in rows["systemd"][1]


@v2
def test_with_a_read_only_cgroupfs() -> None:
    rows, backend, code = examine(*in_namespace("mount -o remount,ro,bind /sys/fs/cgroup"))
    assert (backend, code) == ("rlimit", 1), rows
    assert "read-only mount" in rows["systemd"][1]


@v2
def test_with_the_memory_controller_not_delegated() -> None:
    drop_in = Path("/run/systemd/system/user-1000.slice.d/less.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Slice]\nDisableControllers=memory\n")
    try:
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        subprocess.run(["systemctl", "restart", "user@1000"], check=True)
        rows, backend, code = examine(*AS_USER)
        assert (backend, code) == ("rlimit", 1), rows
        assert "memory controller is not available" in rows["systemd"][1]
        assert "Delegate=" in rows["systemd"][2]
    finally:
        drop_in.unlink()
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        subprocess.run(["systemctl", "restart", "user@1000"], check=True)


def test_a_required_kernel_backend_that_is_not_available() -> None:
    done = subprocess.run(
        [*in_namespace("mount -t tmpfs none /sys/fs/cgroup"), "sandrun", "--require", "kernel",
         "--", "echo", "ran"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (125, "")
    assert "no backend can contain the run" in done.stderr
