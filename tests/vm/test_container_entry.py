"""The entrypoint of a container: PID 1 and its signals, and a checkout shared with it.

Runs in the laboratory: vagrant/lab run --containers [--user] -- pytest ... (see test_container).
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandrun
from tests.vm.test_container import (
    READ_ONLY,
    ROOTFS,
    SCALE,
    WRITABLE,
    detached,
    entry,
    exit_code,
    image,
    podman,
    until_logged,
)

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(not ROOTFS, reason="runs inside vagrant/lab run --containers"),
]

FORWARDED = ["HUP", "INT", "QUIT", "USR1", "USR2", "ALRM", "WINCH", "TERM"]
INCLUDE = Path(sandrun.__file__).with_name("integrations") / "sandrun.mk"


@pytest.fixture
def name() -> "Iterator[str]":
    """The name of a container that is removed at the end."""
    name = f"sandrun-entry-{os.getpid()}-{time.monotonic_ns()}"
    yield name
    podman("rm", "-f", "-t", "0", name)


@pytest.mark.parametrize("options", [READ_ONLY, WRITABLE])
def test_every_signal_reaches_the_command(name: str, options: "tuple[str, ...]") -> None:
    """PID 1 has no default actions: a signal that it does not pass on is lost."""
    traps = "".join(f"trap 'echo got {text}.' {text}; " for text in FORWARDED[:-1])
    script = f"{traps} trap 'exit 33' TERM; echo ready; while :; do sleep 0.1; done"
    detached(name, options, "sh", "-c", script)
    for text in FORWARDED[:-1]:
        assert podman("kill", "-s", text, name).returncode == 0
        until_logged(name, f"got {text}.")
    assert podman("stop", "-t", "60", name).returncode == 0
    assert exit_code(name) == 33


def test_a_command_without_handlers_ends_by_the_signal(name: str) -> None:
    detached(name, READ_ONLY, "sh", "-c", "echo ready; exec sleep 1000")
    began = time.monotonic()
    assert podman("stop", "-t", "60", name).returncode == 0
    assert time.monotonic() - began < 20 * SCALE
    assert exit_code(name) == 128 + signal.SIGTERM


def test_a_command_that_ignores_sigterm_is_killed_by_podman(name: str) -> None:
    """sandrun passes SIGTERM on and sends nothing else: when PID 1 dies, all processes die."""
    script = "trap '' TERM; setsid sleep 1000 & echo ready; while :; do sleep 0.1; done"
    detached(name, WRITABLE, "sh", "-c", script)
    assert podman("stop", "-t", "3", name).returncode == 0
    assert exit_code(name) == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 255"], 255),
        (["nonesuch"], 127),
        (["/etc/passwd"], 126),
        (["sh", "-c", "kill -9 $$"], 137),
    ],
)
def test_the_container_has_the_exit_code_of_the_command(command: "list[str]", code: int) -> None:
    assert entry(READ_ONLY, *command).returncode == code


def test_the_image_has_no_build_tools(name: str) -> None:
    """The final stage has no compiler and no headers, but the modules built with them work."""
    detached(name, READ_ONLY, "sh", "-c", "echo ready; sleep 1000")

    def inside(script: str) -> str:
        return podman("exec", name, "sh", "-c", script).stdout

    compilers = "cc gcc c99 c++ clang tcc as ld cpp pip pip3"
    assert inside(f"for name in {compilers}; do command -v $name; done; echo none") == "none\n"
    files = "find / -xdev ( -name cc1 -o -name Python.h -o -name capability.h -o -name '*.deb' )"
    assert inside(files.replace("(", "\\(").replace(")", "\\)")) == ""
    assert inside("ls /source /var/lib/apt/lists/*") == ""
    assert inside("cat /etc/pip.conf /etc/apt/apt.conf.d/90host") == ""  # mounted from the host
    assert "prctl" in inside("/opt/sandrun/bin/python -c 'import prctl; print(prctl.__file__)'")
    assert inside("tr '\\0' ' ' </proc/1/cmdline").endswith(" -- sh -c echo ready; sleep 1000 ")


def test_without_a_command_the_container_makes_the_tests_of_the_mounted_project(
    tmp_path: Path,
) -> None:
    (tmp_path / "Makefile").write_text("test: ; @echo tested $${SANDRUN_RUNS:+in a run}\n")
    done = entry(("-v", f"{tmp_path}:/project"))
    assert (done.returncode, done.stdout) == (0, "tested in a run\n"), done.stderr


def test_a_checkout_shared_with_a_container_has_one_queue(name: str, tmp_path: Path) -> None:
    """A make outside uses the include. One inside waits, though neither sees the other's pids."""
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    (project / ".git/HEAD").write_text("ref: refs/heads/main\n")
    shutil.copy(INCLUDE, project)
    goal = "goal: ; @echo begin $(JOB) >>log; read _ <gate; echo end $(JOB) >>log\n"
    (project / "Makefile").write_text("include sandrun.mk\n" + goal)
    os.mkfifo(project / "gate")
    outside = subprocess.Popen(["make", "goal", "JOB=outside"], cwd=project)
    try:
        log = project / "log"
        deadline = time.monotonic() + 20 * SCALE
        while not log.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        words = [
            "-v",
            f"{project}:/mnt",
            "-w",
            "/mnt",
            *(f"--env={pair}" for pair in image()["Env"]),
        ]
        started = podman(
            *("run", "-d", "--name", name, "--network=none", *words),
            *("--rootfs", ROOTFS, "make", "goal", "JOB=inside"),
        )
        assert started.returncode == 0, started.stderr
        until_logged(name, "sandrun: waiting")
        assert log.read_text() == "begin outside\n"
        (project / "gate").write_text("\n")
        assert outside.wait(20 * SCALE) == 0
        (project / "gate").write_text("\n")
    finally:
        outside.kill()
        outside.wait()
    assert podman("wait", name).stdout.strip() == "0"
    assert log.read_text().split() == [
        "begin",
        "outside",
        "end",
        "outside",
        "begin",
        "inside",
        "end",
        "inside",
    ]
