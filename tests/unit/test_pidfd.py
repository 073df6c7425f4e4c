"""Killing by pidfd: a pid that was assigned again is never hit."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from sandrun.bare import signal as bare_signal

if sys.platform != "linux":
    pytest.skip("only Linux has pidfds", allow_module_level=True)

from sandrun.platform import linux_processes


@pytest.fixture
def stranger() -> "Iterator[subprocess.Popen[bytes]]":
    """The process that has the pid by now."""
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def dead_pidfd() -> int:
    """The pidfd of a process that is gone."""
    with subprocess.Popen(["true"]) as process:
        return os.pidfd_open(process.pid)


@pytest.mark.parametrize(("number", "dead"), [(errno.ESRCH, True), (errno.EPERM, False)])
def test_a_pidfd_that_refuses_is_never_replaced_by_the_pid(
    monkeypatch: pytest.MonkeyPatch,
    stranger: "subprocess.Popen[bytes]",
    number: int,
    dead: bool,
) -> None:
    """EPERM: the process was another user's, exited after the call, and its pid is now ours."""
    pidfd = dead_pidfd()
    if number == errno.EPERM:

        def refuse(pidfd: int, signum: int) -> None:
            raise PermissionError(number, os.strerror(number))

        monkeypatch.setattr(bare_signal, "pidfd_send_signal", refuse)
    assert linux_processes.kill_process(stranger.pid, pidfd) == dead
    os.close(pidfd)
    with pytest.raises(subprocess.TimeoutExpired):
        stranger.wait(0.1)


def test_a_kernel_without_the_system_call_kills_by_pid(
    monkeypatch: pytest.MonkeyPatch, stranger: "subprocess.Popen[bytes]"
) -> None:
    def missing(pidfd: int, signum: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(bare_signal, "pidfd_send_signal", missing)
    pidfd = os.pidfd_open(stranger.pid)
    assert linux_processes.kill_process(stranger.pid, pidfd)
    os.close(pidfd)
    assert stranger.wait(20) == -9


def test_no_candidates_are_not_all_processes(stranger: "subprocess.Popen[bytes]") -> None:
    limit = "Max open files"  # every process has that line
    assert linux_processes.marked_processes("", limit, [stranger.pid]) == [stranger.pid]
    assert linux_processes.marked_processes("", limit, []) == []
