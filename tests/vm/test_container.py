"""sandrun as the entrypoint of a real container (podman), with each kind of cgroupfs.

The image is that of vagrant/Containerfile, built by a real builder and run with its own settings,
but podman does not unpack it itself ($SANDRUN_CONTAINER_ROOTFS).
Runs in the laboratory, as root and rootless: vagrant/lab run --containers [--user] -- pytest ...
"""

import functools
import json
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


@functools.cache
def image() -> "dict[str, list[str]]":
    """The image's configuration (OCI)."""
    with open(f"{ROOTFS}.json") as file:
        config: dict[str, list[str]] = json.load(file)["OCIv1"]["config"]
    return config


def container(
    options: "tuple[str, ...]", command: "tuple[str, ...]", settings: "dict[str, object]"
) -> "list[str]":
    """The arguments of `podman run`; settings reach PID 1 in its environment."""
    given = [*image()["Env"], *(f"SANDRUN_{name.upper()}={v}" for name, v in settings.items())]
    return [
        *("--network=none", f"--workdir={image()['WorkingDir']}", *options),
        *(f"--env={pair}" for pair in given),
        *("--rootfs", ROOTFS, *image()["Entrypoint"], *(command or image()["Cmd"])),
    ]


def entry(
    options: "tuple[str, ...]", *command: str, **settings: object
) -> "subprocess.CompletedProcess[str]":
    """Run a command in a fresh container, by the image's own entrypoint."""
    return podman("run", "--rm", *container(options, command, settings))


@pytest.fixture
def name() -> "Iterator[str]":
    """The name of a container that is removed at the end."""
    name = "sandrun-test-" + uuid.uuid4().hex[:8]
    yield name
    podman("rm", "-f", "-t", "0", name)


def detached(name: str, options: "tuple[str, ...]", *command: str, **settings: object) -> None:
    """Start a container and wait until it prints `ready`."""
    done = podman("run", "-d", "--name", name, *container(options, command, settings))
    assert done.returncode == 0, done.stderr
    until_logged(name, "ready")


def until_logged(name: str, text: str, seconds: float = 20) -> str:
    deadline = time.monotonic() + seconds * SCALE
    while True:
        logs = podman("logs", name)
        if text in logs.stdout + logs.stderr:
            return logs.stdout + logs.stderr
        assert time.monotonic() < deadline, (text, logs)
        time.sleep(0.1)


def exit_code(name: str) -> int:
    return int(podman("inspect", "-f", "{{.State.ExitCode}}", name).stdout)


@pytest.mark.parametrize(("options", "backend"), [(READ_ONLY, "rlimit"), (WRITABLE, "cgroup2")])
def test_the_backend_and_the_exit_code(options: "tuple[str, ...]", backend: str) -> None:
    done = entry(options, "sh", "-c", "exit 42", verbose=1)
    assert done.returncode == 42, done.stderr
    assert f"backend {backend}" in done.stderr
    if backend == "rlimit":
        assert "read-only mount" in done.stderr


def examine(
    options: "tuple[str, ...]", *command: str
) -> "tuple[dict[str, tuple[str, str, str]], str, int]":
    """Run doctor in a fresh container; return (status, evidence, fix) of each check, the backend in
    force, and the exit code."""
    path = (f"--env={pair}" for pair in image()["Env"])
    done = podman("run", "--rm", "--network=none", *options, *path, "--rootfs", ROOTFS, *command)
    answer = json.loads(done.stdout)
    rows = {row["name"]: (row["status"], row["evidence"], row["fix"]) for row in answer["checks"]}
    return rows, answer["backend"], done.returncode


DOCTOR = ("sandrun", "doctor", "--json")


def test_doctor_reports_how_to_make_a_read_only_cgroupfs_writable() -> None:
    rows, backend, code = examine(READ_ONLY, *DOCTOR)
    assert (backend, code) == ("rlimit", 1), rows
    status, evidence, fix = rows["cgroup2"]
    assert (status, evidence) == ("FAIL", "/sys/fs/cgroup is on a read-only mount")
    for words in (
        "podman run --security-opt unmask=/sys/fs/cgroup,",
        "docker run --security-opt writable-cgroups=true",
    ):
        assert words in fix
    assert rows["rlimit"][0] == "CAUTION"
    assert "by polling" in rows["rlimit"][1]


@pytest.mark.parametrize("entrypoint", [(), ("sandrun", "--")])
def test_doctor_finds_a_writable_cgroupfs(entrypoint: "tuple[str, ...]") -> None:
    """Alone, and inside a run: as the command of the image's entrypoint."""
    rows, backend, code = examine(WRITABLE, *entrypoint, *DOCTOR)
    assert (backend, code) == ("cgroup2", 0), rows
    assert rows["cgroup2"][0] == "PASS"
    assert "at 32 MiB, by the kernel (peak 32.0 MiB)" in rows["cgroup2"][1]
    assert "memory" in rows["cgroups"][1].partition(";")[0]
    assert "FAIL" not in [status for status, _, _ in rows.values()]


def test_a_read_only_cgroupfs_is_refused_when_the_kernel_is_required() -> None:
    done = entry(READ_ONLY, "echo", "ran", require="kernel")
    assert (done.returncode, done.stdout) == (125, "")
    assert "unmask=/sys/fs/cgroup" in done.stderr


@pytest.mark.parametrize("options", [READ_ONLY, WRITABLE])
def test_the_limit_is_enforced_in_the_container_of_sandrun(options: "tuple[str, ...]") -> None:
    done = entry(options, "python3", "-c", HOG, memory="50M")
    assert done.returncode == 137
    assert "memory limit of 50.0 MiB reached" in done.stderr


def test_the_containers_limit_is_distinguished_from_the_runs() -> None:
    # User Mode Linux has no effective OOM reaper: while the hog still dies, the kernel may choose
    # a second victim, and outside the run's group that is sandrun itself.
    for _ in range(5):
        done = entry(("-m", "100m", *WRITABLE), "python3", "-c", HOG, pool="off", memory="1G")
        assert done.returncode == 137
        if "enclosing" in done.stderr:
            break
    assert "killed by an enclosing memory limit (the run's own limit is" in done.stderr
    assert re.search(r"MiB +pid \d+ +python3 -c", done.stderr)


def test_a_bind_mount_of_the_hosts_cgroupfs_is_not_used() -> None:
    host = ("--cgroupns=private", "-v", "/sys/fs/cgroup:/sys/fs/cgroup:rw", *WRITABLE)
    done = entry(host, "python3", "-c", HOG, verbose=1, memory="50M")
    assert done.returncode == 137, done.stderr
    assert "backend rlimit" in done.stderr
    assert "the host's groups" in done.stderr or "not writable" in done.stderr


@pytest.mark.parametrize("options", [READ_ONLY, WRITABLE])
def test_podman_stop_runs_the_commands_own_handler(name: str, options: "tuple[str, ...]") -> None:
    script = 'trap "echo bye; exit 7" TERM; echo ready; while :; do sleep 0.1; done'
    detached(name, options, "sh", "-c", script)
    began = time.monotonic()
    assert podman("stop", "-t", "60", name).returncode == 0
    assert time.monotonic() - began < 20 * SCALE
    assert exit_code(name) == 7
    assert "bye" in podman("logs", name).stdout


@pytest.mark.parametrize("options", [READ_ONLY, WRITABLE])
def test_zombies_are_reaped_and_podman_exec_works(name: str, options: "tuple[str, ...]") -> None:
    orphans = "for i in 1 2 3 4 5; do sh -c 'sleep 0.1 & exit'; done; sleep 1; echo ready; sleep 99"
    detached(name, options, "sh", "-c", orphans, memory="200M")  # leaves room in the pool
    states = podman("exec", name, "sh", "-c", "cat /proc/[0-9]*/stat").stdout
    assert " Z " not in states
    command = ["sandrun", "--queue", "beside", "-m", "100M", "-v", "--", "sh", "-c", "exit 9"]
    beside = podman("exec", name, *command)
    assert beside.returncode == 9, beside.stderr
    if options == WRITABLE:
        assert "backend cgroup2" in beside.stderr
