"""Processes that systemd moves out of a run's container (su, systemd-run --scope); the fallback.

Runs in the laboratory: vagrant/lab run -- pytest -m vm tests/vm/test_escapes.py
"""

import os
import re
import subprocess
import time

import pytest

from sandrun.platform import processes

LAB = os.environ.get("SANDRUN_LAB", "")

pytestmark = [pytest.mark.vm, pytest.mark.skipif(not LAB, reason="runs inside vagrant/lab")]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="about root's controllers: runs as root")
v2 = pytest.mark.skipif(LAB != "v2", reason="about cgroup v2")
MANAGER = [] if os.geteuid() == 0 else ["--user"]
SCOPE = ["systemd-run", *MANAGER, "-q", "--scope"]


def sandrun(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sandrun", *args], capture_output=True, text=True, check=False, cwd="/", timeout=300
    )


def left(said: str) -> "list[str]":
    return [line for line in said.splitlines() if "left the run's container" in line]


def lives(pid: str) -> bool:
    return not processes.has_exited(int(pid))  # we are the subreaper of orphans


@v2
def test_a_scope_of_systemd_run() -> None:
    # Long enough for a busy laboratory: whose child it was is only known while that lives.
    script = '"$@" & echo $!; sleep 8'
    done = sandrun("--", "sh", "-c", script, "sh", *SCOPE, "sleep", "1000")
    assert done.returncode == 0, done.stderr
    pid = done.stdout.strip()
    (line,) = left(done.stderr)
    assert re.search(rf"sleep 1000 \(pid {pid}, started by sh -c .*\.slice/.*\.scope", line), line
    assert "hint: without systemd-run --scope it stays inside" in done.stderr
    assert not lives(pid)


@v2
def test_a_daemon_in_a_scope_of_a_run_that_ends_at_once() -> None:
    script = '"$@" </dev/null >/dev/null 2>&1 & echo $!'
    done = sandrun("--", "sh", "-c", script, "sh", *SCOPE, "sleep", "1000")
    assert done.returncode == 0, done.stderr
    # systemd-run itself may have been killed before it had its scope.
    assert left(done.stderr) or "left behind" in done.stderr
    assert not lives(done.stdout.strip())


@v2
def test_a_timeout_ends_processes_in_a_scope() -> None:
    script = '"$@" & echo $!; wait'
    done = sandrun("--timeout", "5", "--", "sh", "-c", script, "sh", *SCOPE, "sleep", "1000")
    assert done.returncode == 124, done.stderr
    assert left(done.stderr)
    assert not lives(done.stdout.strip())


@v2
def test_require_kernel_refuses_a_scope() -> None:
    began = time.monotonic()
    done = sandrun("--require", "kernel", "--", *SCOPE, "sleep", "1000")
    assert done.returncode == 125, done.stderr
    assert left(done.stderr)[0].startswith("sandrun: --require kernel: ended the run")
    assert time.monotonic() - began < 100


@v2
@as_root
def test_a_session_of_su() -> None:
    """In a service, PAM has logind open a session for su; in a session it does not."""
    done = sandrun("--", "su", "-", "vagrant", "-c", "sleep 4; cat /proc/self/cgroup")
    assert done.returncode == 0, done.stderr
    assert "/session-" in done.stdout
    (line,) = left(done.stderr)
    assert re.search(r": su - vagrant -c .*/session-\w+\.scope", line), line
    assert "hint: runuser -u USER or sudo -u USER stays inside" in done.stderr
    inside = sandrun("--", "runuser", "-u", "vagrant", "--", "cat", "/proc/self/cgroup")
    assert "sandrun-" in inside.stdout
    assert not left(inside.stderr)


@v2
@as_root
def test_a_session_of_su_that_remains_at_the_end() -> None:
    script = "su - vagrant -c 'echo $$; exec sleep 1000' & sleep 4"
    done = sandrun("--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert left(done.stderr)
    assert not lives(done.stdout.strip())


@v2
def test_another_run_in_its_own_scope_is_not_touched() -> None:
    """It is a run of another queue with its own container, so its sandrun is not our process."""
    inner = ["sandrun", "--queue", "other", "--", "sh", "-c", "sleep 4; cat /proc/self/cgroup"]
    done = sandrun("--", *SCOPE, *inner)
    assert done.returncode == 0, done.stderr
    assert "sandrun-" in done.stdout
    assert not left(done.stderr), done.stderr


@as_root
def test_no_process_can_leave_the_container_of_the_fallback() -> None:
    top = "/sys/fs/cgroup" if LAB == "v2" else "/sys/fs/cgroup/memory"
    group = f"{top}/beside-{os.getpid()}"
    os.mkdir(group)
    script = f"(echo 0 >{group}/cgroup.procs; exec sleep 1000) & echo $!; sleep 1"
    done = sandrun("--backend", "rlimit", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert "left behind: sleep 1000" in done.stderr
    assert not lives(done.stdout.strip())
    os.rmdir(group)
