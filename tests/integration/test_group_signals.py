"""One signal to the process group reaches the command once, as it would without sandrun.

The command takes signals from the kernel's queue at once, so that a second one cannot melt into the
first, and says which. A real-time signal sent last to sandrun alone comes after all that it had to
pass on (the lower number first, signal(7)), so no test has to wait for what shall not come.
"""

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from sandrun.platform import processes
from sandrun.supervise import witness
from tests.harness import ON_MACOS, SCALE, Box, alive, launcher, wait_for, without_note
from tests.integration.test_supervisor_terminal import Terminal

FENCE = signal.SIGRTMAX - 1
LISTENER = """
import os, signal, sys
every = signal.valid_signals() - {signal.SIGCHLD, signal.SIGCONT}
signal.pthread_sigmask(signal.SIG_BLOCK, every)
if "away" in sys.argv: os.setsid()
print("up", os.getpid(), flush=True)
while (number := signal.sigwaitinfo(every).si_signo) != signal.SIGRTMAX - 1:
    print(number, flush=True)
"""
LISTEN = [sys.executable, "-I", "-S", "-c", LISTENER]

pytestmark = pytest.mark.skipif(ON_MACOS, reason="not on macOS: no witness can hide its name")


@pytest.fixture(params=["none", "rlimit", "auto"])
def place(make_box: "Callable[[str], Box]", request: pytest.FixtureRequest) -> Box:
    return make_box(request.param)


def up(run: "subprocess.Popen[str]", runs: int = 1) -> int:
    """Wait until the listener listens, and until so many runs have their witnesses; its pid."""
    assert run.stdout
    word, pid = run.stdout.readline().split()
    assert word == "up"
    wait_for(lambda: len(witnesses(run.pid)) == runs, 20, "a witness")
    keepers_have_left(run.pid)
    return int(pid)


def keepers_have_left(root: int) -> None:
    """Wait until no keeper below that process is in its run's group: it would have its signals."""
    wait_for(lambda: not any(map(_is_just_forked, processes.descendants(root))), 20, "keepers")


def _is_just_forked(pid: int) -> bool:
    """Whether it is called what sandrun is: a keeper that has not yet left the group."""
    try:
        stat = processes.Stat(pid)
        above = processes.read(f"/proc/{stat.parent}/cmdline")
        same = processes.read(f"/proc/{pid}/cmdline") == above
        return same and b"sandrun" in above and "keeper" not in stat.name
    except OSError:
        return True


def witnesses(root: int) -> "list[int]":
    """The witnesses at work below that process."""
    return list(filter(_is_witness, processes.descendants(root)))


def _is_witness(pid: int) -> bool:
    try:
        # What it holds it closes last of all.
        return processes.Stat(pid).name == witness.NAME and len(os.listdir(f"/proc/{pid}/fd")) == 2
    except OSError:
        return False


def taken(group: int) -> bool:
    """Whether no signal waits in the queue of anybody in the group, where a second one of that
    number would be merged."""
    try:
        below = [pid for pid in processes.descendants(group) if os.getpgid(pid) == group]
        statuses = [processes.read(f"/proc/{pid}/status") for pid in (group, *below)]
    except OSError:
        return False  # one has just ended
    return not any(int(text.partition(b"ShdPnd:\t")[2][:16], 16) for text in statuses)


def send(run: "subprocess.Popen[str]", by: "Callable[[int, int], None]", number: int) -> None:
    """Send, wait until the command has got it, and until nothing more can come of it."""
    by(run.pid, number)
    assert run.stdout
    assert run.stdout.readline() == f"{number}\n"
    wait_for(lambda: taken(run.pid), 10, "all have taken it")


SENT = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1]


def test_a_signal_to_the_group_arrives_once_and_one_to_us_is_passed_on(place: Box) -> None:
    run = place.start("--", *LISTEN, new_session=True)
    up(run)
    for number in SENT:
        for by in (os.killpg, os.kill, os.killpg):
            send(run, by, number)
    os.kill(run.pid, FENCE)
    assert place.finish(run).stdout == ""


def test_queued_signals_to_the_group_arrive_as_often_as_they_were_sent(place: Box) -> None:
    run = place.start("--", *LISTEN, new_session=True)
    up(run)
    number = signal.SIGRTMIN + 2
    for _ in range(50):
        os.killpg(run.pid, number)
        os.kill(run.pid, number)
    os.kill(run.pid, signal.SIGSTOP)  # all of it at once
    for _ in range(20):
        os.killpg(run.pid, number)
    os.kill(run.pid, signal.SIGCONT)
    assert run.stdout
    assert [run.stdout.readline() for _ in range(120)] == [f"{number}\n"] * 120
    os.kill(run.pid, FENCE)
    assert place.finish(run).stdout == ""


def test_after_a_stop_of_the_whole_group_too(place: Box) -> None:
    run = place.start("--", *LISTEN, new_session=True)
    listener = up(run)
    job = [run.pid, listener, *witnesses(run.pid)]
    os.killpg(run.pid, signal.SIGSTOP)
    wait_for(lambda: all(processes.Stat(pid).state == "T" for pid in job), 10, "all are stopped")
    os.kill(run.pid, signal.SIGCONT)  # meant for the command too, and passed on
    wait_for(lambda: all(processes.Stat(pid).state != "T" for pid in job), 10, "all go on")
    for by in (os.killpg, os.kill):
        send(run, by, signal.SIGTERM)
    os.kill(run.pid, FENCE)
    assert place.finish(run).stdout == ""


def test_signals_to_the_group_are_passed_to_a_command_outside_of_it(place: Box) -> None:
    run = place.start("--", *LISTEN, "away", new_session=True)
    up(run)
    for by in (os.killpg, os.kill):
        send(run, by, signal.SIGTERM)
    os.kill(run.pid, FENCE)
    assert place.finish(run).stdout == ""


# Starts its arguments, and signals those alone twice, in one group with them: the second time as
# soon as the first is taken, so that the kernel does not merge the two.
MEMBER = """
import os, signal, subprocess, sys, time
run = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
def is_pending():
    text = open(f"/proc/{run.pid}/status").read()
    return int(text.partition("ShdPnd:\\t")[2][:16], 16) >> (signal.SIGUSR1 - 1) & 1
for line in sys.stdin:
    os.kill(run.pid, signal.SIGUSR1)
    while is_pending(): time.sleep(0.0005)
    os.kill(run.pid, signal.SIGUSR1)
run.wait()
"""


def test_two_signals_of_a_group_member_to_us_alone_arrive_as_two(place: Box) -> None:
    words = [sys.executable, "-I", "-S", "-c", MEMBER, *launcher(), "--", *LISTEN]
    run = place.start(argv=words, stdin=subprocess.PIPE, new_session=True)
    up(run)
    assert run.stdin
    assert run.stdout
    for _ in range(5):
        run.stdin.write("twice\n")
        run.stdin.flush()
        heard = b""
        while heard.count(b"\n") < 2:
            assert select.select([run.stdout], [], [], 20 * SCALE)[0], f"it got only {heard!r}"
            heard += os.read(run.stdout.fileno(), 4096)
        assert heard.decode() == f"{signal.SIGUSR1:d}\n" * 2
        wait_for(lambda: taken(run.pid), 10, "all have taken it")
    os.kill(processes.children(run.pid)[0], FENCE)
    assert place.finish(run).stdout == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGVTALRM])
def test_a_signal_that_reached_the_command_and_us_is_not_reported(place: Box, number: int) -> None:
    """The command exits while we take another signal (or a lower number, SIGCHLD)."""
    run = place.start("--", "sleep", "1000", new_session=True)
    wait_for(lambda: witnesses(run.pid), 20, "a witness")
    (sleep,) = (pid for pid in processes.children(run.pid) if processes.Stat(pid).name == "sleep")
    os.kill(run.pid, signal.SIGSTOP)
    wait_for(lambda: processes.Stat(run.pid).state == "T", 10, "it is stopped")
    os.kill(run.pid, signal.SIGHUP)
    os.killpg(run.pid, number)
    wait_for(lambda: processes.Stat(sleep).state == "Z", 10, "the command has ended")
    os.kill(run.pid, signal.SIGCONT)
    done = place.finish(run)
    assert (done.returncode, without_note(done.stderr)) == (128 + number, "")


def test_leftovers_in_the_group_get_a_signal_once(make_box: "Callable[[str], Box]") -> None:
    place = make_box("rlimit")
    words = ["--leftovers", "wait", "--", "sh", "-c", '"$@" & :', "sh", *LISTEN]
    run = place.start(*words, new_session=True)
    listener = up(run)
    wait_for(lambda: processes.Stat(listener).parent == run.pid, 10, "the command has ended")
    for by in (os.killpg, os.kill):
        send(run, by, signal.SIGTERM)
    os.kill(run.pid, FENCE)
    assert place.finish(run).stdout == ""


def test_a_run_inside_a_run(place: Box) -> None:
    run = place.start("--", *launcher(), "--", *LISTEN, new_session=True)
    up(run, 2)
    for by in (os.killpg, os.kill):
        send(run, by, signal.SIGTERM)
    os.kill(run.pid, FENCE)
    assert place.finish(run).stdout == ""


def test_without_a_witness_no_signal_is_lost(place: Box) -> None:
    """Somebody killed it: then a signal to the group may come twice."""
    run = place.start("--", *LISTEN, new_session=True)
    up(run)
    gone = witnesses(run.pid)[0]
    os.kill(gone, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{gone}"), 10, "it was reaped")
    run.send_signal(signal.SIGTERM)
    assert run.stdout
    assert run.stdout.readline() == f"{signal.SIGTERM}\n"
    os.killpg(run.pid, signal.SIGUSR1)
    assert run.stdout.readline() == f"{signal.SIGUSR1}\n"
    os.kill(run.pid, FENCE)
    assert place.finish(run).returncode == 0


def test_the_witness_keeps_nothing_open_and_exits_with_us(place: Box) -> None:
    run = place.start("--", *LISTEN, new_session=True)
    up(run)
    pid = witnesses(run.pid)[0]
    for name in ("comm", "cmdline"):
        text = processes.read(f"/proc/{pid}/{name}")
        assert b"sandrun" not in text
        assert b"python" not in text
    held = {os.readlink(f"/proc/{pid}/fd/{fd}").partition(":")[0] for fd in (0, 1)}
    assert (os.listdir(f"/proc/{pid}/fd"), held) == (["0", "1"], {"pipe"})
    assert processes.working_directory(pid) == "/"
    run.kill()
    wait_for(lambda: not alive(pid), 10, "it is gone")


# Who signals groups in earnest. The command is what many servers are: the first SIGTERM has it
# clean up, a second one ends it at once.
SERVER = (
    "trap 'trap - TERM; echo cleaning >>$0; sleep 0.3; echo clean >>$0; exit 0' TERM;"
    "echo up >>$0; while :; do sleep 0.01; done"
)
NODE = """
const {writeFileSync: say} = require("fs"), at = process.argv[1], more = {flag: "a"};
process.once("SIGTERM", () => {
  say(at, "cleaning\\n", more);
  setTimeout(() => { say(at, "clean\\n", more); process.exit(0); }, 300);
});
setInterval(() => {}, 1000);
say(at, "up\\n", more);
"""
SERVERS = {"sh": ["sh", "-c", SERVER], "node": ["node", "-e", NODE]}
ROUNDS = 3
SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "--noediting"],
    "dash": ["dash"],
    "zsh": ["zsh", "-f", "+Z"],
}
INITS = [["tini", "-s", "-g", "--"], ["dumb-init", "--"]]


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> "list[str]":
    if not shutil.which(request.param):
        pytest.skip(f"needs {request.param}")
    return SERVERS[request.param]


def ready(place: Box, number: int, root: int) -> None:
    said(place, number, "up")
    wait_for(lambda: witnesses(root), 20, "a witness")
    keepers_have_left(root)


def said(place: Box, number: int, *lines: str) -> None:
    file = place.root / f"said{number}"

    def found() -> "list[str]":
        return file.read_text().splitlines() if file.exists() else []

    wait_for(lambda: len(found()) >= len(lines) or found()[-1:] == ["clean"], 10, "it says more")
    assert found() == list(lines)


@pytest.mark.parametrize("init", INITS, ids=lambda words: words[0])
def test_an_init_that_signals_the_group(place: Box, server: "list[str]", init: "list[str]") -> None:
    if not shutil.which(init[0]):
        pytest.skip(f"{init[0]} is not installed")
    for number in range(ROUNDS):
        words = [*init, *launcher(), "-q", "--", *server, str(place.root / f"said{number}")]
        run = place.start(argv=words, own_group=True)
        ready(place, number, run.pid)
        run.terminate()
        place.finish(run)
        said(place, number, "up", "cleaning", "clean")


@pytest.mark.parametrize("name", SHELLS)
def test_kill_of_a_job(place: Box, server: "list[str]", name: str) -> None:
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    shell = Terminal(place, *SHELLS[name], "-i")
    try:
        shell.send(f"PS1='ready> '; s() {{ {' '.join(launcher())} -q -- \"$@\"; }}; stty -echo\n")
        shell.expect("ready> ")
        script = place.root / "server"
        script.write_text("exec " + " ".join(map(_quoted, server)) + ' "$1"\n')
        for number in range(ROUNDS):
            shell.send(f"s sh {script} {place.root}/said{number} &\n")
            shell.expect("ready> ")
            ready(place, number, shell.pid)
            shell.send("kill %%; wait; echo o''ver\n")
            shell.expect("over\n")
            said(place, number, "up", "cleaning", "clean")
    finally:
        shell.close()


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def test_timeout_of_coreutils(place: Box, server: "list[str]") -> None:
    """It is in the group itself, and signals its child and then the group."""
    for number in range(ROUNDS):
        words = ["timeout", "-v", "1h", *launcher(), "-q", "--", *server]
        run = place.start(str(place.root / f"said{number}"), argv=words)
        ready(place, number, run.pid)
        run.terminate()
        place.finish(run)
        said(place, number, "up", "cleaning", "clean")
