"""The cases of tini's and dumb-init's suites, run against sandrun and beside it against them.

Every case runs with each tool, as a plain process and as PID 1 of a namespace of its own. A case
that a peer fails is an expected failure (xfail) of that peer's; sandrun has to pass them all.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial, wraps

import pytest

from sandrun.platform import processes
from tests.harness import SCALE, Box, alive, launcher, wait_for

_PEERS = {"tini": ["tini", "-s", "--"], "dumb-init": ["dumb-init", "--"]}
_OURS = [f"sandrun {backend}" for backend in ("none", "rlimit")]
_UNSHARE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]

Case = Callable[["Tool"], None]


class Tool:
    """One way to run a command under an init."""

    def __init__(self, box: Box, name: str, mode: str) -> None:
        self.box = box
        self.mode = mode
        self.ours = name.startswith("sandrun")
        if self.ours:
            self.argv = [*launcher(), "--backend", name.split()[1], "--grace", "0.3", "--"]
        else:
            self.argv = _PEERS[name]
        self.prefix = _UNSHARE if mode == "pid1" else []

    def start(self, *command: str, before: "tuple[str, ...]" = ()) -> "subprocess.Popen[str]":
        """Start the tool; `before`: a command that starts it in its turn."""
        argv = [*self.prefix, *before, *self.argv, *command]
        # A group of its own, below ours: in an orphaned one SIGTSTP stops nobody, setpgid(2).
        return self.box.start(argv=argv, stdin=subprocess.DEVNULL, own_group=True)

    def run(self, *command: str, before: "tuple[str, ...]" = ()) -> int:
        seconds = 30 if self.ours else 5  # some peers hang
        return self.box.finish(self.start(*command, before=before), seconds).returncode

    def init(self, process: "subprocess.Popen[str]") -> int:
        """The tool's own pid, once it is there."""
        if self.mode == "plain":
            return process.pid
        return wait_for(lambda: processes.children(process.pid), 10, "the namespace's init")[0]


def case(body: Case) -> Callable[..., None]:
    """Run a case with every tool, plain and as PID 1."""

    @pytest.mark.parametrize("mode", ["plain", "pid1"])
    @pytest.mark.parametrize("name", [*_OURS, *_PEERS])
    @wraps(body)
    def test(make_box: "Callable[[str], Box]", name: str, mode: str) -> None:
        tool = Tool(make_box("auto"), name, mode)
        if not tool.ours and not shutil.which(name):
            pytest.skip(f"{name} is not installed")
        if mode == "pid1" and os.geteuid() != 0:
            pytest.skip("makes a pid namespace: runs as root")
        try:
            body(tool)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            if tool.ours:
                raise
            pytest.xfail(f"{name} does not: {str(error).splitlines()[0]}")

    del test.__wrapped__  # or pytest takes the body's arguments
    return test


@case
def test_exit_codes_pass(tool: Tool) -> None:
    assert [tool.run("sh", "-c", f"exit {code}") for code in (0, 1, 126, 255)] == [0, 1, 126, 255]


@case
def test_a_death_by_signal_is_128_and_its_number(tool: Tool) -> None:
    for signum in (signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1):
        assert tool.run("sh", "-c", f"kill -{int(signum)} $$") == 128 + signum


@case
def test_what_cannot_run_is_127_or_126(tool: Tool) -> None:
    assert tool.run("no-such-command-here") == 127
    assert tool.run("/etc/passwd") == 126


# Prints each signal's number as it comes, in order; a queue of its own, so none is coalesced here.
_ECHO = """
import signal
every = signal.valid_signals()
signal.pthread_sigmask(signal.SIG_BLOCK, every)
print("up", flush=True)
while True: print(int(signal.sigwaitinfo(every).si_signo), flush=True)
"""
_UNSENT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGCONT}


@case
def test_every_signal_is_passed_on_in_order(tool: Tool) -> None:
    process = tool.start(sys.executable, "-c", _ECHO)
    init = tool.init(process)
    assert _line(process) == "up\n"
    for signum in sorted(signal.valid_signals() - _UNSENT):
        os.kill(init, signum)
        heard = _line(process)
        assert heard == f"{int(signum)}\n", f"signal {int(signum)} came as {heard!r}"
    for number in (34, 34, 35):
        os.kill(init, number)  # queued ones are not coalesced
    assert [_line(process) for _ in range(3)] == ["34\n", "34\n", "35\n"]


def _line(process: "subprocess.Popen[str]") -> str:
    """The next line of its output, unbuffered; what came of it if no more comes."""
    assert process.stdout
    fd = process.stdout.fileno()
    line = b""
    while not line.endswith(b"\n") and select.select([fd], [], [], 3 * SCALE)[0]:
        byte = os.read(fd, 1)
        if not byte:
            break
        line += byte
    return line.decode()


@case
def test_a_signal_right_after_the_start_is_not_lost(tool: Tool) -> None:
    """Whether it finds the tool or the command: one of them ends by it."""
    for delay in range(0, 30, 3):
        process = tool.start("sh", "-c", "exec sleep 1000")
        init = tool.init(process)
        time.sleep(delay / 1000)
        os.kill(init, signal.SIGTERM)
        if tool.mode == "pid1":
            # An init is immune to what it does not handle or block, and that early it does
            # neither: the kernel drops the signal. A second one must not be lost.
            wait_for(partial(_is_on_or_over, process), 10, "the command is there, or over")
            if process.poll() is None:
                os.kill(init, signal.SIGTERM)
        assert tool.box.finish(process, seconds=5).returncode in (-signal.SIGTERM, 143)


def _is_on_or_over(process: "subprocess.Popen[str]") -> bool:
    return process.poll() is not None or bool(_command(process))


def _command(process: "subprocess.Popen[str]") -> int:
    for pid in processes.descendants(process.pid):
        try:
            if processes.Stat(pid).name == "sleep":
                return pid
        except OSError:
            continue
    return 0


@case
def test_orphans_are_reaped_while_the_command_runs(tool: Tool) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9; do (sh -c : &); done; echo up; exec sleep 1000"
    process = tool.start("sh", "-c", script)
    init = tool.init(process)
    assert _line(process) == "up\n"
    if tool.argv[:1] == ["dumb-init"] and tool.mode == "plain":
        raise AssertionError("no subreaper: it adopts nothing")
    wait_for(lambda: all(alive(pid) for pid in processes.children(init)), 3, "no zombie is left")


@case
def test_a_daemon_does_not_outlive_the_tool(tool: Tool) -> None:
    if "none" in tool.argv and tool.mode == "plain":
        return  # nothing is contained, because the user said so
    before = set(processes.descendants(os.getpid()))
    assert tool.run("sh", "-c", "setsid sleep 1000 & exit 3") == 3
    wait_for(
        lambda: not any(map(alive, set(processes.descendants(os.getpid())) - before)),
        1,
        "nothing lives",
    )


@case
def test_after_sigkill_of_the_tool_the_command_dies(tool: Tool) -> None:
    if "none" in tool.argv and tool.mode == "plain":
        return
    process = tool.start("sh", "-c", "echo up; sleep 1000; :")
    assert _line(process) == "up\n"
    pids = processes.descendants(process.pid)
    os.kill(tool.init(process), signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), 3, "the command is dead")


@case
def test_stop_and_continue(tool: Tool) -> None:
    """SIGTSTP to the tool stops the command and then the tool (but an init of a namespace cannot
    be stopped); SIGCONT to the tool lets both go on."""
    process = tool.start("sh", "-c", "echo up; exec sleep 1000")
    init = tool.init(process)
    assert _line(process) == "up\n"
    command = wait_for(lambda: _command(process), 10)
    for signum in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
        os.kill(init, signum)
        wait_for(lambda: _state(command) == "T", 5, "the command is stopped")
        if tool.mode == "plain":
            wait_for(lambda: _state(init) == "T", 5, "the tool is stopped")
        os.kill(init, signal.SIGCONT)
        wait_for(lambda: _state(command) != "T" and _state(init) != "T", 5, "both go on")
    os.kill(init, signal.SIGTERM)
    assert tool.box.finish(process, seconds=10).returncode in (143, -signal.SIGTERM)


def _state(pid: int) -> str:
    return processes.Stat(pid).state


_MASKS = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]


@case
def test_blocked_and_ignored_signals_stay_so(tool: Tool) -> None:
    set_up = (
        "import os, signal, sys;"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGINT, 40]);"
        "[signal.signal(s, signal.SIG_IGN) for s in (signal.SIGUSR2, signal.SIGQUIT, 41)];"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL); signal.signal(25, signal.SIG_DFL);"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    before = (sys.executable, "-c", set_up)
    expected = tool.box.run(*before, *_MASKS, argv=["env"]).stdout
    done = tool.box.finish(tool.start(*_MASKS, before=before))
    assert _without_libcs_own(done.stdout) == expected


def _without_libcs_own(masks: str) -> str:
    """posix_spawn(3) of glibc has 32 and 33, which are its own, ignored in the child."""
    head, _, ignored = masks.rpartition("\t")
    return f"{head}\t{int(ignored, 16) & ~(3 << 31):016x}\n"


@case
def test_a_caller_that_ignores_its_children(tool: Tool) -> None:
    ignore = "import os, signal, sys; signal.signal(17, signal.SIG_IGN); "
    before = (sys.executable, "-c", ignore + "os.execvp(sys.argv[1], sys.argv[1:])")
    process = tool.start("sh", "-c", "exit 7", before=before)
    assert tool.box.finish(process, seconds=5).returncode == 7


@case
def test_the_death_of_the_parent_ends_the_command(tool: Tool) -> None:
    if tool.mode == "pid1":
        return  # the parent is outside of the namespace, and --kill-child is unshare's
    if "none" in tool.argv:
        return  # nobody watches
    if tool.argv[0] == "tini":
        tool.argv = ["tini", "-s", "-p", "SIGTERM", "--"]
    process = tool.start(
        "sh", "-c", "echo up; exec sleep 1000", before=("sh", "-c", '"$@"; :', "sh")
    )
    assert _line(process) == "up\n"
    pids = processes.descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, pids)), 3, "all are dead")
