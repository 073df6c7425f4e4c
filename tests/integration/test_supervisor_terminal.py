"""Job control and signals: an interactive shell on a terminal, script(1), tmux, and kill."""

import fcntl
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from sandrun.platform import processes
from tests.harness import INJECT, ON_MACOS, SCALE, Box, alive, is_keeper, launcher, wait_for


class Terminal:
    """A program on a pseudo-terminal of its own, and what it has printed."""

    def __init__(self, box: Box, *argv: str) -> None:
        self.text = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(box.project)
            os.execvpe(argv[0], list(argv), {**box.env, "PS1": "ready> ", "HISTFILE": ""})

    def send(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str, seconds: float = 15) -> "re.Match[str]":
        """Wait until the pattern is in what came since the last match."""
        deadline = time.monotonic() + seconds * SCALE
        while not (match := re.search(pattern, self.text)):
            left = deadline - time.monotonic()
            ready = select.select([self.fd], [], [], max(0.0, left))[0]
            assert ready, f"no {pattern!r} in {self.text!r}"
            try:
                self.text += os.read(self.fd, 4096).decode(errors="replace").replace("\r", "")
            except OSError:
                raise AssertionError(f"it ended without {pattern!r}: {self.text!r}") from None
        self.text = self.text[match.end() :]
        return match

    def close(self) -> None:
        os.close(self.fd)
        for pid in [*processes.descendants(self.pid), self.pid]:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        os.waitpid(self.pid, 0)


@pytest.fixture(params=["none", "rlimit", "auto"])
def place(make_box: "Callable[[str], Box]", request: pytest.FixtureRequest) -> Box:
    return make_box(request.param)


@pytest.fixture
def shell(place: Box) -> "Iterator[Terminal]":
    """An interactive shell in which `s` is sandrun."""
    terminal = Terminal(place, "bash", "--norc", "--noprofile", "--noediting", "-i")
    terminal.expect("ready> ")
    terminal.send(f's() {{ {" ".join(launcher())} "$@"; }}; stty -echo\n')
    terminal.expect("ready> ")
    yield terminal
    terminal.close()


# Takes each one from the kernel's queue at once, so that a second one cannot melt into the first.
COUNTER = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]); print("up", flush=True)
while True: signal.sigwaitinfo([signal.SIGINT]); print("int", flush=True)
"""


def test_ctrl_c_arrives_once(place: Box, shell: Terminal) -> None:
    counter = place.root / "counter.py"
    counter.write_text(COUNTER)
    shell.send(f"s -t 20 -- {sys.executable} -I -S {counter}\n")
    shell.expect("up\n")
    for _ in range(5):
        shell.send("\x03")
        shell.expect("int\n")
        # One that we sent would come now.
        time.sleep(0.05)
        assert "int" not in shell.text
    shell.send("\x1c")  # ^\\ ends it, after whatever came before
    before = shell.expect(r"([^$]*)ready> ").group(1)
    assert "int" not in before


def test_ctrl_c_ends_the_loop_of_a_script(place: Box, shell: Terminal) -> None:
    """A shell goes on after an exit code, and stops after a death by SIGINT."""
    script = place.root / "loop"
    sandrun = " ".join(launcher())
    script.write_text(f"for i in 1 2 3; do echo round $i; {sandrun} -- sleep 1000; done\n")
    shell.send(f"bash {script}\n")
    shell.expect("round 1\n")
    wait_for(lambda: _running("sleep", shell.pid), 10)
    shell.send("\x03")
    after = shell.expect(r"([^$]*)ready> ").group(1)
    assert "round" not in after
    shell.send("echo code $?\n")
    shell.expect("code 130\n")


def test_ctrl_c_ends_the_loop_also_if_the_command_ends_before_we_take_it(
    place: Box, shell: Terminal
) -> None:
    script = place.root / "loop"
    sandrun = " ".join(launcher())
    script.write_text(f"for i in 1 2 3; do echo round $i; {sandrun} -- sleep 1000; done\n")
    shell.send(f"bash {script}\n")
    shell.expect("round 1\n")
    (sleep,) = wait_for(lambda: _running("sleep", shell.pid), 10)
    run = processes.Stat(sleep).parent
    os.kill(run, signal.SIGSTOP)
    wait_for(lambda: processes.Stat(run).state == "T", 10, "it is stopped")
    os.kill(run, signal.SIGHUP)  # the lower number, so what it takes first
    shell.send("\x03")
    wait_for(lambda: processes.Stat(sleep).state == "Z", 10, "the command has ended")
    os.kill(run, signal.SIGCONT)
    after = shell.expect(r"([^$]*)ready> ").group(1)
    assert "round" not in after
    assert "was ended" not in after


def _running(name: str, root: int) -> list[int]:
    found = []
    for pid in processes.descendants(root):
        try:
            if processes.Stat(pid).name == name and alive(pid):
                found.append(pid)
        except OSError:
            continue
    return found


def test_ctrl_z_and_fg_with_a_pipe(shell: Terminal) -> None:
    shell.send("s -- sleep 1000 | cat; echo codes ${PIPESTATUS[@]}\n")
    (sleep,) = wait_for(lambda: _running("sleep", shell.pid), 10)
    for _ in range(2):
        shell.send("\x1a")
        shell.expect(r"Stopped.*\n(.*\n)?.*ready> ")
        wait_for(lambda: processes.Stat(sleep).state == "T", 5, "it is stopped")
        shell.send("jobs\n")
        shell.expect(r"Stopped(.*\n)+ready> ")
        shell.send("fg\n")
        wait_for(lambda: processes.Stat(sleep).state == "S", 5, "it goes on")
    # One fg was enough each time: the next Ctrl-C finds everybody awake.
    shell.send("\x03")
    shell.expect("ready> ")
    wait_for(lambda: not alive(sleep), 5)


def test_bg_and_kill_of_the_job(shell: Terminal) -> None:
    shell.send("s -- sleep 1000\n")
    (sleep,) = wait_for(lambda: _running("sleep", shell.pid), 10)
    shell.send("\x1a")
    shell.expect(r"Stopped.*\nready> ")
    shell.send("bg\n")
    shell.expect("ready> ")
    wait_for(lambda: processes.Stat(sleep).state == "S", 5, "it goes on")
    shell.send("kill %1; wait; echo over\n")
    shell.expect("over\n")
    assert not alive(sleep)


def test_a_reader_in_the_background_is_stopped_by_the_terminal(shell: Terminal) -> None:
    shell.send("s -- cat &\n")
    shell.expect(r"Stopped.*\n|ready> ")
    wait_for(lambda: _running("cat", shell.pid), 10)
    # The shell tells at its next prompt, once the whole job is stopped, sandrun last.
    wait_for(lambda: _all_stopped(shell.pid), 10, "the job is stopped")
    shell.send("\n")
    shell.expect(r"Stopped.*\n.*ready> ")
    shell.send("fg\n")
    (cat,) = _running("cat", shell.pid)
    wait_for(lambda: processes.Stat(cat).state == "S", 5, "it reads")
    shell.send("words\n")
    shell.expect("words\n")
    shell.send("\x04")
    shell.expect("ready> ")


def _all_stopped(root: int) -> bool:
    job = [pid for pid in processes.descendants(root) if not is_keeper(pid)]
    return all(processes.Stat(pid).state == "T" for pid in job)


def test_an_interactive_shell_inside_has_the_terminal(shell: Terminal) -> None:
    """It takes the foreground, runs jobs of its own, and `suspend` gives the terminal back."""
    shell.send("s -- bash --norc --noprofile --noediting -i\n")
    shell.expect("ready> ")
    shell.send("sleep 1000\n")
    (sleep,) = wait_for(lambda: _running("sleep", shell.pid), 10)
    shell.send("\x1a")
    shell.expect(r"Stopped.*\n.*ready> ")
    shell.send("kill %1; fg; echo inner $((1 + 1))\n")
    shell.expect("inner 2\n")
    wait_for(lambda: not alive(sleep), 5)
    shell.send("suspend\n")
    shell.expect(r"Stopped.*\n.*ready> ")
    shell.send("echo outer; fg\n")
    shell.expect("outer\n")
    shell.send("\necho back; exit 5\n")
    shell.expect("back\n")
    shell.expect("ready> ")
    shell.send("echo code $?\n")
    shell.expect("code 5\n")


def test_the_window_size_and_its_changes(shell: Terminal) -> None:
    script = "trap 'stty size' WINCH; stty size; while :; do sleep 0.02; done"
    fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 99, 0, 0))
    shell.send(f's -- sh -c "{script}"\n')
    shell.expect("33 99\n")
    fcntl.ioctl(shell.fd, termios.TIOCSWINSZ, struct.pack("HHHH", 44, 111, 0, 0))
    shell.expect("44 111\n")


def test_a_waiter_in_the_background_has_no_live_line(place: Box, shell: Terminal) -> None:
    """Another program has the terminal. In the foreground the line lives, whenever that comes."""
    place.hold("one")
    line, live = "sandrun: waiting, position 2 of 2", "\x1b\\[Ksandrun: waiting"
    plain = f"{line}[^\x1b]*{line}"
    shell.send("export TERM=xterm NO_COLOR=1 SANDRUN_HEARTBEAT=0.5\n")
    shell.expect("ready> ")
    shell.send("s -- true &\n")
    assert "\x1b" not in shell.expect(plain).string
    shell.send("fg\n")
    shell.expect(f"{live}.*{live}")
    shell.send("\x1a")
    shell.expect("Stopped(.|\n)*ready> ")
    shell.send("bg\n")
    assert "\x1b" not in shell.expect(plain).string
    place.let("one")
    shell.send("wait; echo do''ne\n")
    assert "\x1b" not in shell.expect("done").string


def test_the_end_of_the_terminal_ends_the_run(place: Box, shell: Terminal) -> None:
    shell.send("s -- sleep 1000\n")
    pids = wait_for(lambda: _running("sleep", shell.pid), 10)
    tree = processes.descendants(shell.pid)
    os.close(shell.fd)
    shell.fd = os.open("/dev/null", os.O_RDWR)
    wait_for(lambda: not any(map(alive, pids + tree)), 10, "all are dead")


def test_a_session_leader_passes_the_hang_up_on(place: Box) -> None:
    """As `ssh -t host sandrun ...` has it: nobody between the terminal and sandrun."""
    said = place.root / "said"
    script = 'trap "echo hup >>$0; exit" HUP; echo up >$0; while :; do sleep 0.02; done'
    terminal = Terminal(place, *launcher(), "--", "sh", "-c", script, str(said))
    wait_for(lambda: said.exists() and said.read_text() == "up\n", 10)
    os.close(terminal.fd)
    wait_for(lambda: said.read_text() == "up\nhup\n", 5, "it heard of the hang-up")
    os.waitpid(terminal.pid, 0)


RAW = """
import os, time, tty
tty.setraw(0)
print("raw", os.getpid(), flush=True)
time.sleep(1000)
"""


@pytest.mark.parametrize("end", ["limit", "signal"])
def test_a_killed_full_screen_program_leaves_no_raw_terminal(
    place: Box, shell: Terminal, end: str
) -> None:
    script = place.root / "raw.py"
    script.write_text(RAW)
    shell.send("stty -a | tr '\\n' ' ' | md5sum\n")
    before = shell.expect(r"([0-9a-f]{32})  -").group(1)
    how = "-t 1" if end == "limit" else ""
    shell.send(f"s -q {how} -- {sys.executable} {script}; echo ended $?\n")
    command = int(shell.expect(r"raw (\d+)\n").group(1))
    if end == "signal":
        os.kill(command, signal.SIGKILL)
    shell.expect(f"ended {124 if end == 'limit' else 137}")
    shell.send("stty -a | tr '\\n' ' ' | md5sum\n")
    assert shell.expect(r"([0-9a-f]{32})  -").group(1) == before


PAGER = """
import os, termios, tty
terminal = os.open("/dev/tty", os.O_RDWR)
os.read(0, 1)
tty.setraw(terminal)
os.read(0, 1)  # returns at the end of what it pages
print("cooked" if termios.tcgetattr(terminal)[3] & termios.ICANON else "raw")
"""


def test_a_pager_behind_a_run_that_is_killed_keeps_its_raw_terminal(
    place: Box, shell: Terminal
) -> None:
    """It is in the run's process group, and lives."""
    script = place.root / "pager.py"
    script.write_text(PAGER)
    shell.send(f"s -q -t 1 -- sh -c 'printf 1; exec sleep 1000' | {sys.executable} {script}\n")
    assert shell.expect("(raw|cooked)\n").group() == "raw\n"


def test_a_shell_that_is_killed_at_its_prompt_leaves_no_raw_terminal(
    place: Box, shell: Terminal
) -> None:
    """It has made a group of its own, which is gone with it."""
    shell.send("stty -a | tr '\\n' ' ' | md5sum\n")
    before = shell.expect(r"([0-9a-f]{32})  -").group(1)
    shell.send("s -q -t 1 --grace 0.1 -- bash --norc --noprofile -i; echo ended $?\n")
    shell.expect("ended 124")
    shell.send("stty -a | tr '\\n' ' ' | md5sum\n")
    assert shell.expect(r"([0-9a-f]{32})  -").group(1) == before


AS_PID_1 = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: no pid namespaces")
@pytest.mark.skipif(os.geteuid() != 0, reason="makes a pid namespace: runs as root")
def test_as_pid_1_of_a_terminal_a_stop_signal_stops_the_command(place: Box) -> None:
    """As `docker run -t` and `docker kill --signal TSTP` have it: there is no shell behind."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    terminal, other = os.openpty()
    words = [*unshare, sys.executable, "-c", AS_PID_1, *launcher(), "--", "sleep", "1000"]
    process = subprocess.Popen(
        words, stdin=other, stdout=other, stderr=other, env=place.env, cwd=place.project
    )
    try:
        (sleep,) = wait_for(lambda: _running("sleep", process.pid), 10)
        init = processes.children(process.pid)[0]
        for signum in (signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
            os.kill(init, signum)
            wait_for(lambda: processes.Stat(sleep).state == "T", 5, "it is stopped")
            time.sleep(0.1)
            assert processes.Stat(sleep).state == "T"
            os.kill(init, signal.SIGCONT)
            wait_for(lambda: processes.Stat(sleep).state == "S", 5, "it goes on")
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(other)


def test_under_script(place: Box) -> None:
    words = " ".join(launcher())
    inner = f"{words} -q -- sh -c 'test -t 0 && test -t 1 && test -t 2 && echo all; exit 6'"
    done = place.run("-qec", inner, "/dev/null", argv=["script"])
    assert (done.returncode, done.stdout.strip()) == (6, "all")


@pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")
def test_in_tmux(place: Box) -> None:
    socket = str(place.root / "tmux")
    said = place.root / "said"
    script = f"trap 'echo int >>{said}' INT; echo up >>{said}; while :; do sleep 0.02; done"
    words = " ".join(launcher())
    place.run(
        "-S", socket, "-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24",
        f'{words} -- sh -c "{script}"', argv=["tmux"], env={"TERM": "screen"},
    )  # fmt: skip
    wait_for(lambda: said.exists() and said.read_text() == "up\n", 10, "the command is up")
    place.run("-S", socket, "send-keys", "C-c", argv=["tmux"])
    wait_for(lambda: said.read_text() == "up\nint\n", 5, "one interrupt")
    tree = processes.descendants(os.getpid())
    place.run("-S", socket, "kill-server", argv=["tmux"])
    mine = [pid for pid in tree if pid not in place.before]
    wait_for(lambda: not any(map(alive, mine)), 10, "the end of tmux ends the run")


# Signals by kill


def test_a_storm_of_signals_loses_none_that_the_kernel_delivered(place: Box) -> None:
    """Queued real-time signals, as many as the kernel takes, come out at the command's end."""
    script = (
        "import signal; count = 0; every = {signal.SIGRTMIN + 3, signal.SIGTERM};"
        "signal.pthread_sigmask(signal.SIG_BLOCK, every); print('up', flush=True)\n"
        "while signal.sigwaitinfo(every).si_signo != signal.SIGTERM: count += 1\n"
        "print(count)"
    )
    process = place.start("--", sys.executable, "-c", script)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    sent = 0
    for _ in range(3000):
        try:
            os.kill(process.pid, signal.SIGRTMIN + 3)
            sent += 1
        except BlockingIOError:  # the kernel did not take it
            continue
    wait_for(lambda: _pending(process.pid) == 0, 20, "all are passed on")
    process.send_signal(signal.SIGTERM)  # a lower number, so it would overtake those on their way
    assert place.finish(process).stdout == f"{sent}\n"
    assert sent >= 1000


def _pending(pid: int) -> int:
    status = processes.read(f"/proc/{pid}/status")
    return int(status.partition(b"ShdPnd:\t")[2][:16], 16)


def test_the_terminals_signal_before_the_command_exists_ends_the_wait(place: Box) -> None:
    """Ctrl-C while the git guard waits: the command did not exist when the terminal sent it."""
    place.run("init", "-q", argv=["git"])
    (place.project / ".git/index.lock").touch()
    terminal = Terminal(place, "sh", "-c", 'trap : INT; "$@"; echo code $?', "", *launcher(),
                        "--git-wait", "1h", "--", "sleep", "1000")  # fmt: skip
    try:
        terminal.expect(r"index\.lock")
        terminal.send("\x03")
        terminal.expect(r"code 130")
    finally:
        terminal.close()


def test_sigstop_of_the_command_does_not_stop_its_limits(make_box: "Callable[[str], Box]") -> None:
    place = make_box("rlimit")
    done = place.run("-t", "0.5", "--grace", "0.2", "--", "sh", "-c", "kill -STOP $$")
    assert done.returncode == 124


def test_no_traceback_from_an_interrupt_at_any_time(place: Box) -> None:
    """At each kind of system call that a run makes, from our first line to the last.

    What Python does before that nobody can change, so no moment is guessed here.
    """
    path = f"{INJECT}:{place.env.get('PYTHONPATH', '')}"
    words = ("-q", "--", "sh", "-c", "echo begun; sleep 0.1")
    listed = place.root / "points"
    done = place.run(*words, env={"PYTHONPATH": path, "SANDRUN_TEST_POINTS": str(listed)})
    assert done.returncode == 0, done.stderr
    reached = listed.read_text().splitlines()
    first = reached.index("__main__.py:start:signal") + 1  # from here on SIGINT has its default
    wrong = {}
    for point in dict.fromkeys(reached[first:]):
        done = place.run(*words, env={"PYTHONPATH": path, "SANDRUN_TEST_INT": point})
        # A command that has begun may be over, so that there is nobody to interrupt.
        right = (0, 130, -signal.SIGINT) if "begun" in done.stdout else (130, -signal.SIGINT)
        if done.stderr or done.returncode not in right:
            wrong[point] = done.returncode, done.stderr
    assert not wrong
