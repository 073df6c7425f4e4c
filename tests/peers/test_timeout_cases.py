"""The cases of timeout(1)'s suite (GNU coreutils: tests/timeout/*), run against both.

A case that timeout(1) fails is an expected failure of its own; sandrun has to pass them all.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import wraps

import pytest

from tests.harness import SCALE, Box, launcher, wait_for

Case = Callable[["Tool"], None]


class Tool:
    """A command under a limit on time."""

    def __init__(self, box: Box, name: str) -> None:
        self.box = box
        self.ours = name != "timeout"
        self.name = name

    def argv(self, limit: str, kill_after: str = "", signum: str = "") -> "list[str]":
        if self.ours:
            more = ["--grace", kill_after or "5", *(["--kill-signal", signum] if signum else [])]
            return [*launcher(), "--backend", self.name, "--timeout", limit, *more, "--"]
        more = [*(["-k", kill_after] if kill_after else []), *(["-s", signum] if signum else [])]
        return ["timeout", *more, limit]

    def run(
        self, argv: "list[str]", *command: str, before: "tuple[str, ...]" = ()
    ) -> "subprocess.CompletedProcess[str]":
        return self.box.run(argv=[*before, *argv, *command], seconds=20)


def case(body: Case) -> Callable[..., None]:
    """Run a case with every tool."""

    @pytest.mark.parametrize("name", ["rlimit", "none", "timeout"])
    @wraps(body)
    def test(make_box: "Callable[[str], Box]", name: str) -> None:
        tool = Tool(make_box("auto"), name)
        try:
            body(tool)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            if tool.ours:
                raise
            pytest.xfail(f"timeout(1) does not: {str(error).splitlines()[0]}")

    del test.__wrapped__  # or pytest takes the body's arguments
    return test


@case
def test_the_commands_own_end(tool: Tool) -> None:
    """timeout.sh"""
    assert tool.run(tool.argv("10"), "true").returncode == 0
    assert tool.run(tool.argv("10"), "sh", "-c", "exit 2").returncode == 2
    assert tool.run(tool.argv("10"), "sh", "-c", "kill -USR1 $$").returncode in (138, -10)


@case
def test_124_at_the_limit_with_fractions(tool: Tool) -> None:
    assert tool.run(tool.argv(".1"), "sleep", "10").returncode == 124
    assert tool.run(tool.argv("0.1s"), "sleep", "10").returncode == 124


@case
def test_nothing_is_no_limit_and_much_is_no_overflow(tool: Tool) -> None:
    """timeout-parameters.sh"""
    assert tool.run(tool.argv("0"), "sleep", "0.1").returncode == 0
    assert tool.run(tool.argv("9999999d"), "true").returncode == 0


@case
def test_wrong_calls(tool: Tool) -> None:
    assert tool.run(tool.argv("invalid"), "true").returncode == 125
    assert tool.run(tool.argv("42D"), "true").returncode == (0 if tool.ours else 125)
    assert tool.run(tool.argv("1", signum="invalid"), "true").returncode == 125
    assert tool.run(tool.argv("10"), "/").returncode == 126
    assert tool.run(tool.argv("10"), "no-such-command").returncode == 127


@case
def test_the_signal_of_choice(tool: Tool) -> None:
    script = "trap 'echo int; exit 3' INT; echo up; while :; do sleep 0.02; done"
    for name in ("INT", "SIGINT", "2"):
        done = tool.run(tool.argv("0.5", signum=name), "sh", "-c", script)
        assert done.stdout == "up\nint\n"
        assert done.returncode == 124


@case
def test_kill_after(tool: Tool) -> None:
    """timeout.sh: a command that ignores the signal is killed."""
    began = time.monotonic()
    script = "trap '' TERM; while :; do sleep 0.02; done"
    code = tool.run(tool.argv("0.2", kill_after="0.2"), "sh", "-c", script).returncode
    assert code in (124, 137, -9)
    assert time.monotonic() - began < 10 * SCALE


@case
def test_the_whole_tree_is_told(tool: Tool) -> None:
    """timeout-group.sh: the children of a shell, too."""
    if tool.name == "none":
        return  # knows the command alone
    script = "(trap 'echo child' TERM; while :; do sleep 0.02; done) & trap : TERM; wait; wait"
    done = tool.run(tool.argv("0.5", kill_after="2"), "sh", "-c", script)
    assert "child" in done.stdout


@case
def test_a_daemon_is_told_and_ended(tool: Tool) -> None:
    if tool.name == "none":
        return
    script = "setsid sh -c 'trap \"echo told; exit\" TERM; while :; do sleep 0.02; done' & wait"
    done = tool.run(tool.argv("0.5", kill_after="2"), "sh", "-c", script)
    assert done.stdout == "told\n"


@case
def test_a_stopped_command_is_ended(tool: Tool) -> None:
    """timeout.sh: SIGCONT is sent along."""
    done = tool.run(
        tool.argv("0.3", kill_after="5"), "sh", "-c", "trap 'exit 9' TERM; kill -STOP $$"
    )
    assert done.returncode == 124


@case
def test_blocked_and_ignored_signals_of_the_caller(tool: Tool) -> None:
    """timeout-blocked.pl"""
    for set_up in (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM, signal.SIGCHLD])",
        "signal.signal(signal.SIGALRM, signal.SIG_IGN)",
        "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
    ):
        python = f"import os, signal, sys; {set_up}; os.execvp(sys.argv[1], sys.argv[1:])"
        before = (sys.executable, "-c", python)
        assert tool.run(tool.argv(".1"), "sleep", "10", before=before).returncode == 124


@case
def test_its_own_sigterm_reaches_the_command(tool: Tool) -> None:
    process = tool.box.start(argv=[*tool.argv("30"), "sh", "-c", "echo up; exec sleep 1000"])
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    assert tool.box.finish(process, seconds=10).returncode in (143, -signal.SIGTERM)


@case
def test_exit_by_alarm_or_by_a_second_instance(tool: Tool) -> None:
    """timeout.sh: nested ones do not disturb each other."""
    done = tool.run(tool.argv("20"), *tool.argv("0.1"), "sleep", "10")
    assert done.returncode == 124
    done = tool.run(tool.argv("0.2"), *tool.argv("20"), "sleep", "10")
    assert done.returncode == 124
    wait_for(lambda: not tool.box.leftovers(), 5, "nothing is left")
