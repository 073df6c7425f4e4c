"""The end of a run: what is left behind, limits on time, the death of the parent, the undying."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sandrun.backends import cgroup_common
from sandrun.platform import processes
from tests.harness import (
    INJECT,
    ON_MACOS,
    SCALE,
    Box,
    alive,
    is_keeper,
    launcher,
    wait_for,
    without_note,
)

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="makes users and mounts: runs as root")
SH = ["sh", "-c"]


@pytest.fixture(params=["rlimit", "auto"])
def place(make_box: "Callable[[str], Box]", request: pytest.FixtureRequest) -> Box:
    return make_box(request.param)


def pid_in(file: Path) -> int:
    wait_for(lambda: file.exists() and file.read_text().strip(), 20, f"{file} is written")
    return int(file.read_text())


def gone(*pids: int, seconds: float = 5) -> None:
    wait_for(lambda: not any(map(alive, pids)), seconds, f"{pids} are dead")


# What is left behind


def left_behind(place: Box, act: str = ":") -> str:
    """A script that leaves a process behind, which does `act` first, and is up when it ends."""
    file = place.root / "left"
    inner = f"{act}; echo \\$\\$ >{file}; while :; do sleep 0.05; done"
    return f'setsid sh -c "{inner}" leftover & while [ ! -s {file} ]; do sleep 0.01; done; exit 4'


HELPER = """
import multiprocessing.resource_tracker as tracker, sys
tracker.ensure_running()
"""


def test_a_helper_that_ends_itself_soon_is_not_left_behind(place: Box) -> None:
    """As joblib's tracker, which sees the command's end and cleans up: in the command's session."""
    done = place.run("--", "sh", "-c", "sleep 0.4 & exit 3")
    assert (done.returncode, without_note(done.stderr)) == (3, "")
    done = place.run("--", sys.executable, "-c", HELPER)
    assert (done.returncode, without_note(done.stderr)) == (0, "")
    done = place.run("--", "setsid", "--fork", "sleep", "100")  # a daemon's way
    assert "that the command left behind: sleep 100" in done.stderr


def test_leftovers_are_asked_to_end_then_killed_and_named(place: Box) -> None:
    script = left_behind(place, "trap 'echo told; exit' TERM")
    done = place.run("--", *SH, script)
    assert (done.returncode, done.stdout) == (4, "told\n")
    pid = pid_in(place.root / "left")
    assert "that the command left behind: sh -c" in done.stderr
    assert f"(pid {pid})" in done.stderr
    gone(pid)


IDLE_INIT = """
import os, subprocess, sys, time
code = subprocess.call(sys.argv[1:])
zombies = []
for entry in filter(str.isdigit, os.listdir("/proc")):
    name, _, rest = open(f"/proc/{entry}/stat").read().rpartition(")")
    zombies += [name] if rest.split()[0] == "Z" else []
print("code", code, "zombies", zombies, flush=True)
os._exit(0)
"""


@ROOT_ONLY
@pytest.mark.skipif(ON_MACOS, reason="not on macOS: no pid namespace")
@pytest.mark.parametrize("leaves", ["kill", "itself"])
def test_nothing_stays_as_a_zombie_where_pid_1_does_not_reap(place: Box, leaves: str) -> None:
    """`cat`, `tail -f` and the like in containers: orphans that end stay there for ever."""
    apart = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    seconds = "1000" if leaves == "kill" else "0.01"
    chain = f"setsid sh -c 'sleep {seconds}; sleep {seconds}' & sleep 0.1; exit 4"
    argv = [*apart, sys.executable, "-c", IDLE_INIT, *launcher()]
    done = place.run("--grace", "1", "--", "sh", "-c", chain, argv=argv)
    assert done.stdout == "code 4 zombies []\n", done.stderr


def test_a_leftover_that_ignores_the_signal_is_killed_after_the_grace(place: Box) -> None:
    began = time.monotonic()
    done = place.run("--grace", "0.3", "--", *SH, left_behind(place, "trap '' TERM"))
    assert done.returncode == 4
    assert 0.3 < time.monotonic() - began < 10 * SCALE
    gone(pid_in(place.root / "left"))


def test_the_kill_signal_can_be_chosen(place: Box) -> None:
    script = left_behind(place, "trap 'echo usr1; exit' USR1; trap '' TERM")
    done = place.run("--kill-signal", "usr1", "--", *SH, script)
    assert done.stdout == "usr1\n"


def test_children_are_signalled_before_their_parents(place: Box) -> None:
    pids, sent = place.root / "pids", place.root / "sent"
    level = "import os, signal, sys, time\ndepth = int(sys.argv[1])\n"
    level += "signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\n"
    level += "open(sys.argv[2], 'a').write(f'{os.getpid()}\\n')\n"
    level += "if depth < 4 and not os.fork(): os.execv(sys.executable, [sys.executable, '-c',"
    level += " sys.argv[3], str(depth + 1), *sys.argv[2:]])\n"
    level += "time.sleep(1000)\n"
    env = {
        "PYTHONPATH": f"{INJECT}:{place.env.get('PYTHONPATH', '')}",
        "SANDRUN_TEST_SENT": str(sent),
    }
    command = (sys.executable, "-c", level, "0", pids, level)
    assert place.run("--idle-timeout", "1", "--", *command, env=env).returncode == 124
    told = [line.split()[0] for line in sent.read_text().splitlines() if line.endswith(" 15")]
    assert len(told) == 5
    assert told[::-1] == pids.read_text().split()


def test_waiting_for_leftovers(place: Box) -> None:
    script = "(setsid sh -c 'sleep 0.7; echo late' &) ; exit 4"
    done = place.run("--leftovers", "wait", "--", *SH, script)
    assert (done.returncode, done.stdout) == (4, "late\n")
    assert "waited for" in done.stderr


def test_every_limit_applies_to_leftovers_that_are_waited_for(place: Box) -> None:
    script = left_behind(place)
    done = place.run("--leftovers", "wait", "-t", "0.8", "--grace", "0.2", "--", *SH, script)
    assert done.returncode == 124
    assert "timeout: ended the run" in done.stderr
    gone(pid_in(place.root / "left"))
    hog = "import time; time.sleep(0.5); b = bytearray(b'x') * (100 << 20); time.sleep(1000)"
    script = f'setsid {sys.executable} -c "{hog}" & sleep 0.2'
    done = place.run("--leftovers", "wait", "-m", "64M", "--", *SH, script)
    assert done.returncode == 137
    assert "memory limit of 64.0 MiB reached" in done.stderr


def test_a_signal_ends_the_wait_for_leftovers(place: Box) -> None:
    file = place.root / "command"
    script = f"echo $$ >{file}; {left_behind(place)}"
    run = place.start("--leftovers", "wait", "--", *SH, script)
    left = pid_in(place.root / "left")
    gone(pid_in(file))
    time.sleep(0.2 * SCALE)
    assert alive(left)
    run.send_signal(signal.SIGTERM)
    assert place.finish(run).returncode == 4
    assert not alive(left)


def _name(pid: int) -> str:
    try:
        return processes.Stat(pid).name
    except OSError:
        return ""


def test_released_leftovers_live_on_without_our_limits(place: Box) -> None:
    before = processes.read("/proc/self/cgroup")
    run = place.start("--leftovers", "leave", "-m", "64M", "--", *SH, left_behind(place))
    assert run.wait(20 * SCALE) == 4  # its output stays open: the leftover has it
    assert "that the command left behind: sh -c" in place.heard(run)
    assert "left alone " in place.heard(run)
    pid = pid_in(place.root / "left")
    assert alive(pid)
    assert processes.read(f"/proc/{pid}/cgroup") == before
    limits = processes.read(f"/proc/{pid}/limits").decode()
    assert "Max data size             unlimited            unlimited" in limits
    mine = processes.read("/proc/self/limits").decode()
    (most,) = [row for row in mine.splitlines() if row.startswith("Max processes")]
    assert most in limits
    # It holds no lock, is nobody's to clean up, and outlives the next run.
    assert place.run("--", "true", seconds=10).returncode == 0
    assert alive(pid)
    assert [record["reason"] for record in place.records()] == ["exit", "exit"]


# Limits on time


def test_the_cpu_time_of_the_whole_tree(place: Box) -> None:
    spin = "while True: pass"
    began = time.monotonic()
    script = f'for i in 1 2 3; do {sys.executable} -c "{spin}" & done; wait'
    done = place.run("--cpu-time", "1", "--grace", "0.5", "--", *SH, script)
    assert done.returncode == 124
    assert "cpu-time: ended the run after 1.0 s of CPU time" in done.stderr
    assert time.monotonic() - began < 20 * SCALE
    record = place.records()[-1]
    assert record["reason"] == "cpu-time"
    assert 0.9 < float(str(record["cpu"])) < 3 * SCALE


def test_cpu_time_counts_exited_processes(place: Box) -> None:
    """Many short children, none of which comes near the limit."""
    spin = "import time\nwhile time.process_time() < 0.1: pass"
    script = f"for i in $(seq 200); do {sys.executable} -I -S -c '{spin}'; done"
    done = place.run("--cpu-time", "1", "--grace", "0.5", "--", *SH, script)
    assert done.returncode == 124
    assert place.records()[-1]["reason"] == "cpu-time"
    assert place.run("--cpu-time", "60", "--", "true").returncode == 0


def test_an_idle_run_is_ended(place: Box) -> None:
    done = place.run("--idle-timeout", "0.6", "--", "sleep", "1000")
    assert done.returncode == 124
    assert "idle-timeout: ended the run, 0.6 s without output and without use of" in done.stderr
    assert place.records()[-1]["reason"] == "idle"


@pytest.mark.parametrize(
    "act",
    [
        "while :; do echo output; sleep 0.2; done",  # also the coming and going of processes
        "exec python3 -c 'import time\nwhile True: print(end=\".\", flush=True); time.sleep(0.2)'",
        "exec python3 -c 'while True: pass'",
    ],
)
def test_output_or_work_is_not_idleness(place: Box, act: str) -> None:
    done = place.run("--idle-timeout", "0.8", "-t", "2.5", "--", *SH, act)
    assert place.records()[-1]["reason"] == "timeout", done.stderr


def test_a_polling_loop_is_idle(place: Box) -> None:
    loop = "exec python3 -c 'import time\nwhile True: time.sleep(0.05)'"
    done = place.run("--idle-timeout", "1", "-t", "30", "--", *SH, loop)
    assert place.records()[-1]["reason"] == "idle", done.stderr


# The death of the parent

NEW_SESSION = """
import os, subprocess, sys
subprocess.Popen(sys.argv[2:], start_new_session=True)
subprocess.run(["sh", "-c", os.environ["END"]])
"""


def by_parent(place: Box, *options: str, prefix: str = "") -> "tuple[subprocess.Popen[str], int]":
    """A parent that has started sandrun, and the command's pid."""
    file = place.root / "command"
    command = ["sh", "-c", f"echo $$ >{file}; exec sleep 1000"]
    script = f'{prefix} "$@"; :'
    words = [*launcher(), *options, "--", *command]
    parent = place.start(script, "sh", *words, argv=SH)
    return parent, pid_in(file)


def test_the_death_of_the_parent_ends_the_run(place: Box) -> None:
    parent, command = by_parent(place)
    parent.kill()
    gone(command)
    wait_for(place.records, 5, "a record")
    assert [record["reason"] for record in place.records()] == ["parent"]
    assert place.records()[0]["exit"] == 129
    assert "the process that had started sandrun died" in place.heard(parent)


def trapping(place: Box, trap: str, *options: str) -> "tuple[subprocess.Popen[str], Path, int]":
    """A parent that has started sandrun, what the command says, and the command's pid."""
    said = place.root / "said"
    act = f"exec >>{said}; trap '{trap}' INT TERM; echo $$; while :; do sleep 0.01; done"
    words = [*launcher(), *options, "--", *SH, act]
    return place.start('"$@"; :', "sh", *words, argv=SH), said, pid_in(said)


def test_the_signal_that_ended_the_parent_is_not_repeated(place: Box) -> None:
    trap = "trap - INT TERM; echo cleaning; sleep 0.5; echo clean; exit"
    parent, said, command = trapping(place, trap)
    os.kill(processes.Stat(command).parent, signal.SIGTERM)
    wait_for(lambda: "cleaning" in said.read_text(), 10)
    parent.kill()
    gone(command, seconds=20)
    assert said.read_text().split()[1:] == ["cleaning", "clean"]


def test_a_command_that_handles_the_end_signal_goes_on(place: Box) -> None:
    parent, said, command = trapping(place, "echo told", "--grace", "0.3")
    os.kill(processes.Stat(command).parent, signal.SIGINT)
    wait_for(lambda: "told" in said.read_text(), 10)
    parent.kill()
    gone(command, seconds=20)
    assert said.read_text().split()[1:] == ["told", "told"]
    wait_for(place.records, 5, "a record")
    assert place.records()[-1]["reason"] == "parent"


@pytest.mark.parametrize(("options", "prefix"), [(["--detach"], ""), ([], "nohup")])
def test_a_detached_run_goes_on(place: Box, options: "list[str]", prefix: str) -> None:
    parent, command = by_parent(place, *options, prefix=prefix)
    supervisor = processes.Stat(command).parent
    parent.kill()
    parent.wait()
    wait_for(lambda: processes.Stat(supervisor).parent != parent.pid, 5, "sandrun is an orphan")
    # It would have been told through its keeper; ask it to take a signal, which looks at all.
    os.kill(supervisor, signal.SIGCHLD)
    time.sleep(0.5)
    assert alive(command)
    os.kill(supervisor, signal.SIGTERM)
    gone(command)
    wait_for(place.records, 5, "a record")
    assert place.records()[-1]["reason"] == "signal"


BACKGROUND = {
    "sh": ["sh", "-c", '"$@" & {}'],
    "bash": ["bash", "-c", '"$@" & {}'],
    "zsh": ["zsh", "-fc", '"$@" & {}'],
    "subshell": ["sh", "-c", '("$@" &); {}'],
    "disown": ["bash", "-c", '"$@" & disown; {}'],
    "job control": ["bash", "-c", 'set -m; "$@" & {}'],
    "setsid": ["sh", "-c", 'setsid "$@" & {}'],
    "setsid -f": ["sh", "-c", 'setsid -f "$@"; {}'],
    "new session": [sys.executable, "-c", NEW_SESSION],
}
"""Starters that end when `{}` has ended; the new session's reads it from a word."""


@pytest.mark.parametrize("how", BACKGROUND)
def test_the_background_of_a_script_goes_on_however_soon_that_ends(
    make_box: "Callable[[str], Box]", how: str
) -> None:
    """Before our first line, soon after it, or while the command runs: the result is the same."""
    if how == "zsh" and not shutil.which("zsh"):
        pytest.skip("zsh is not installed")
    box = make_box("rlimit")
    for end in (":", "sleep 0.02", "sleep 0.05", "cat $GATE"):
        outlives(box, BACKGROUND[how], end)
    assert [record["reason"] for record in box.records()] == ["exit"] * 4


def outlives(box: Box, starter: "list[str]", end: str) -> None:
    """Start a job in the background of `starter`, which ends with `end`; see it go on."""
    name = f"job-{len(box.started)}"
    gate = box.root / f"{name}-starter"
    os.mkfifo(gate)
    *shell, script = starter
    words = [script.replace("{}", end), "sh", *launcher(), "--", *box.job(name)]
    process = box.start(*words, argv=shell, env={"GATE": str(gate), "END": end})
    if end.endswith("GATE"):
        box.begun(name)
        gate.write_text("")
    process.wait(20 * SCALE)
    supervisor = processes.Stat(box.begun(name)).parent
    wait_for(lambda: processes.Stat(supervisor).parent != process.pid, 5, "sandrun is an orphan")
    os.kill(supervisor, signal.SIGCHLD)  # have it look around
    box.let(name)
    gone(supervisor, seconds=20)


# The undying


def test_a_stopped_tree_is_ended(place: Box) -> None:
    script = 'for i in 1 2 3; do setsid sleep 1000 & echo $! >>"$0"; done; kill -STOP $(cat "$0")'
    file = place.root / "pids"
    done = place.run("--grace", "0.2", "--", *SH, f"{script}; exit 5", file)
    assert done.returncode == 5
    gone(*map(int, file.read_text().split()))


def test_a_traced_command_whose_tracer_does_nothing(place: Box) -> None:
    """Its death is seen by the tracer first, which never looks: the kernel does not let us reap
    it. The run must end all the same."""
    tracer = (
        "import ctypes, os, sys, time; libc = ctypes.CDLL(None, use_errno=True);"
        "r = libc.ptrace(0x4206, int(sys.argv[1]), 0, 0); print(r, flush=True); time.sleep(1000)"
    )
    file = place.root / "command"
    run = place.start("-t", "1.5", "--grace", "0.2", "--",
                      *SH, f"echo $$ >{file}; exec sleep 1000")  # fmt: skip
    traced = pid_in(file)
    spy = place.start("-c", tracer, str(traced), argv=[sys.executable])
    assert spy.stdout
    assert spy.stdout.readline() == "0\n"
    assert place.finish(run, 20).returncode == 124
    spy.kill()


def test_a_zombie_leader_with_live_threads_is_alive(place: Box) -> None:
    """Its first thread has ended; the others hold the memory and are the process."""
    script = (
        "import ctypes, threading, time\n"
        "def work():\n"
        "    time.sleep(0.3)\n"
        "    kept = bytearray(b'x') * (100 << 20)\n"
        "    time.sleep(1000)\n"
        "threading.Thread(target=work).start()\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"  # exit(2): of this thread alone (x86-64)
    )
    if os.uname().machine != "x86_64":
        script = script.replace("syscall(60", "syscall(93")
    done = place.run("-m", "64M", "-t", "20", "--", sys.executable, "-c", script)
    assert done.returncode == 137, done.stderr
    assert not place.leftovers()


@ROOT_ONLY
def test_what_cannot_die_is_reported_and_keeps_the_lock(make_box: "Callable[[str], Box]") -> None:
    """A frozen task of cgroup v1 is in uninterruptible sleep and does not even die of SIGKILL."""
    place = make_box("rlimit")
    freezer = Path("/sys/fs/cgroup/freezer")
    if not freezer.is_dir():
        pytest.skip("about the freezer of cgroup v1")
    own = processes.read("/proc/self/cgroup").decode().partition("freezer:")[2].split("\n")[0]
    group = freezer / own.lstrip("/") / f"sandrun-test-{os.getpid()}"
    group.mkdir()
    file = place.root / "command"
    try:
        run = place.start("-t", "0.5", "--grace", "0.1", "--",
                          *SH, f"echo $$ >{file}; exec sleep 1000")  # fmt: skip
        command = pid_in(file)
        (group / "tasks").write_text(str(command))
        (group / "freezer.state").write_text("FROZEN")
        assert run.wait(40 * SCALE) == 124  # its output stays open: the command has it
        assert f"could not end sleep 1000 (pid {command}): it is in unint" in place.heard(run)
        assert alive(command)
        second = place.start("-q", "--wait-timeout", "1", "--", "echo", "ran")
        assert place.finish(second).returncode == 75
    finally:
        (group / "freezer.state").write_text("THAWED")
        wait_for(lambda: not (group / "tasks").read_text(), 10, "it died when it was let")
        group.rmdir()
    assert place.run("--", "true", seconds=20).returncode == 0


@ROOT_ONLY
def test_a_frozen_group_of_a_dead_run_is_ended(make_box: "Callable[[str], Box]") -> None:
    """Supervisor and keepers were killed while they had frozen the group to kill it."""
    place = make_box("cgroup1")
    freezer = Path("/sys/fs/cgroup/freezer")
    if not freezer.is_dir():
        pytest.skip("about the freezer of cgroup v1")
    if (refused := place.run("-q", "--", "true")).returncode:
        pytest.skip(f"cgroup1 is not to be had here: {refused.stderr.splitlines()[0]}")
    sleeper = place.start("1000", argv=["sleep"])
    found = [
        Path(cgroup_common.own_group(name)) / "sandrun-0badcafe" for name in ("memory", "freezer")
    ]
    try:
        for group in found:
            group.mkdir()
            (group / "cgroup.procs").write_text(str(sleeper.pid))
        (found[1] / "freezer.state").write_text("FROZEN")
        assert place.run("--", "true", seconds=9).returncode == 0
        gone(sleeper.pid)
        assert not any(group.exists() for group in found)
    finally:
        if found[1].exists():
            (found[1] / "freezer.state").write_text("THAWED")
            sleeper.kill()
            wait_for(lambda: not (found[1] / "tasks").read_text(), 10, "it died")
        for group in filter(Path.exists, found):
            group.rmdir()


SETUID = r"""
#include <stdio.h>
#include <unistd.h>
int main(void) {
    if (setgid(0) || setuid(0)) return 1;
    printf("%d\n", (int)getpid()); fflush(stdout);
    return sleep(1000) ? 1 : 0;
}
"""


def test_a_setuid_child_is_reported_and_not_waited_for_long(open_box: Box) -> None:
    program = build(open_box, SETUID)
    began = time.monotonic()
    options = ["--backend", "rlimit", "-t", "0.5", "--grace", "0.2"]
    run = open_box.start(*options, "--", program, user=65534)
    assert run.stdout
    first = run.stdout.readline()
    assert first, open_box.heard(run)
    pid = int(first)
    assert run.wait(30 * SCALE) == 124
    assert f"(pid {pid}): it belongs to uid 0, and we may not signal it" in open_box.heard(run)
    assert time.monotonic() - began < 8 * SCALE
    assert alive(pid)


LIKE_SUDO = r"""
#include <unistd.h>
int main(int argc, char **argv) {
    for (int fd = 3; fd < 1024; fd++) close(fd); /* as sudo does, by closefrom(3) */
    if (setgid(0) || setuid(0)) return 1;
    execvp(argv[1], argv + 1);
    return 1;
}
"""


def build(box: Box, source: str) -> Path:
    """A program that is root's whoever starts it."""
    file, program = box.root / "program.c", box.root / "program"
    file.write_text(source)
    subprocess.run(["cc", "-o", str(program), str(file)], check=True)
    program.chmod(0o4755)
    return program


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: an orphan that nobody saw is nobody's")
@pytest.mark.parametrize("killed", ["nobody", "supervisor", "all"])
def test_leftovers_of_root_keep_the_run_lock(open_box: Box, killed: str) -> None:
    """They have closed the lock that they inherited, and the user of the run may not kill them."""
    as_root = build(open_box, LIKE_SUDO)
    act = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"
    then = ":" if killed == "nobody" else "exec sleep 1000"
    options = ["--backend", "rlimit", "--grace", "0.2"]
    run = open_box.start(*options, "--", *SH, f"{as_root} sh -c '{act}'; {then}", user=65534)
    assert run.stdout
    first = run.stdout.readline()
    assert first, open_box.heard(run)
    pid = int(first)
    said = f"sleep 1000 (pid {pid}): it belongs to uid 0, and we may not signal it"
    ask = partial(open_box.run, "-q", "--no-wait", "--", "echo", "ran", user=65534)
    try:
        if killed == "nobody":
            assert run.wait(30 * SCALE) == 0
            assert said in open_box.heard(run)
            assert "ended 1 process" not in open_box.heard(run)
        else:
            keepers = processes.children(run.pid) if killed == "all" else []
            for each in (*filter(is_keeper, keepers), run.pid):
                os.kill(each, signal.SIGKILL)
            run.wait()
        wait_for(lambda: ask().returncode == 75, 30 * SCALE, "the lock is kept")
        waiter = open_box.start("--", "echo", "ran", user=65534)
        wait_for(lambda: said in open_box.heard(waiter), 30 * SCALE, "the waiter is told")
        assert f"to end it: sudo kill {pid}" in open_box.heard(waiter)
        shown = open_box.run("status", argv=launcher(), user=65534).stdout
        assert f"kept for what could not be ended: {said}; to end it: sudo kill {pid}" in shown
        ended = open_box.run("kill", argv=launcher(), user=65534)
        assert ended.returncode == 1
        assert f"could not end {said}; to end it: sudo kill {pid}" in ended.stderr
        examined = open_box.run("doctor", argv=launcher(), user=65534, seconds=120).stdout
        assert said in examined and f"fix: sudo kill {pid}" in examined
        assert waiter.poll() is None and alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert waiter.wait(30 * SCALE) == 0
    assert ask().returncode == 0, "and is free again"
    reasons = [str(record["reason"]) for record in open_box.records()]
    assert sorted(reasons) == ["exit", "exit", "exit" if killed == "nobody" else "lost"]


# The keeper


def _keeper(supervisor: int) -> int:
    # It takes its name after it was forked.
    def found() -> int:
        return next(filter(is_keeper, processes.children(supervisor)), 0)

    return wait_for(found, 5, "a keeper")


def _is_called(pid: int, name: str, word: bytes) -> bool:
    return word in processes.read(f"/proc/{pid}/{name}")


def test_pkill_by_name_does_not_hit_the_keeper(place: Box) -> None:
    file = place.root / "command"
    run = place.start("--", *SH, f"echo $$ >{file}; exec sleep 1000")
    pid_in(file)
    keeper = _keeper(run.pid)
    for name in ("comm", "cmdline"):
        wait_for(partial(_is_called, keeper, name, b"keeper"), 5, name)
        assert b"sandrun" not in processes.read(f"/proc/{keeper}/{name}")
        assert b"python" not in processes.read(f"/proc/{keeper}/{name}")


def test_wakeups_of_dead_keepers_are_not_passed_to_the_command(place: Box) -> None:
    """A keeper sends a wakeup, and is dead and replaced before the supervisor takes it."""
    heard = place.root / "heard"
    listen = (
        "import os, signal, sys; every = signal.valid_signals();"
        "signal.pthread_sigmask(signal.SIG_BLOCK, every);"
        "file = open(sys.argv[1], 'a'); print(os.getpid(), file=file, flush=True)\n"
        "while True: print('got', signal.sigwaitinfo(every).si_signo, file=file, flush=True)"
    )
    words = [*launcher(), "--grace", "1", "--", sys.executable, "-c", listen, str(heard)]
    parent = place.start('"$@"; :', "sh", *words, argv=SH)
    wait_for(lambda: heard.exists() and heard.read_text(), 10)
    supervisor = processes.Stat(int(heard.read_text())).parent
    keeper = _keeper(supervisor)
    os.kill(supervisor, signal.SIGSTOP)
    # Until it has really stopped it could still take the wakeup.
    wait_for(lambda: processes.Stat(supervisor).state == "T", 5, "it stops")
    parent.kill()
    wait_for(lambda: _has_pending(supervisor, signal.SIGRTMAX), 5, "the keeper sent a wakeup")
    os.kill(keeper, signal.SIGKILL)
    wait_for(lambda: not alive(keeper), 5)
    os.kill(supervisor, signal.SIGCONT)
    gone(int(heard.read_text().split()[0]))
    assert f"got {int(signal.SIGTERM)}" in heard.read_text()
    assert f"got {int(signal.SIGRTMAX)}" not in heard.read_text()


def _has_pending(pid: int, signum: int) -> bool:
    bits = processes.read(f"/proc/{pid}/status").partition(b"ShdPnd:\t")[2][:16]
    return bool(int(bits, 16) >> (signum - 1) & 1)


def test_a_killed_keeper_is_replaced_again_and_again(place: Box) -> None:
    file = place.root / "command"
    run = place.start("--", *SH, f"echo $$ >{file}; exec sleep 1000")
    command = pid_in(file)
    for _ in range(5):
        first = _keeper(run.pid)
        os.kill(first, signal.SIGKILL)
        wait_for(partial(_another, run.pid, first), 5, "a new keeper")
    assert alive(command)
    run.terminate()
    assert place.finish(run).returncode == 143


def _another(supervisor: int, first: int) -> bool:
    try:
        return _keeper(supervisor) != first
    except OSError:
        return False


def test_an_orphan_without_environment_and_descriptors_is_found(
    make_box: "Callable[[str], Box]",
) -> None:
    """Supervisor killed, rlimit: a daemon that took off every mark but the one it cannot."""
    place = make_box("rlimit")
    file = place.root / "daemon"
    daemon = (
        "import os, sys\n"
        "if os.fork(): os._exit(0)\n"
        "os.setsid()\n"
        "if os.fork(): os._exit(0)\n"
        "os.closerange(0, 1024)\n"
        "os.execve('/bin/sh', ['sh', '-c', 'echo $$ >$0; exec sleep 1000', sys.argv[1]], {})\n"
    )
    run = place.start("--", *SH, f'{sys.executable} -c "$0" {file}; sleep 1000', daemon)
    pid = pid_in(file)
    wait_for(lambda: _name(pid) == "sleep", 5)
    assert processes.read(f"/proc/{pid}/environ").strip(b"\0").startswith(b"PWD=")
    run.kill()
    gone(pid, seconds=3)


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: a keeper cannot change its environment")
def test_an_agent_that_kills_by_mark_kills_no_keeper(make_box: "Callable[[str], Box]") -> None:
    """As Jenkins does (BUILD_ID), and GitHub's runner (RUNNER_TRACKING_ID): the command that has
    cleared its environment is the keeper's affair then."""
    box = make_box("auto")
    run = box.start("--", "env", "-i", "sleep", "1000", env={"AGENT_MARK": "mine"})

    def below() -> "dict[str, int]":
        found = {}
        for pid in processes.descendants(os.getpid()):
            try:
                found[processes.Stat(pid).name] = pid
            except OSError:
                continue
        return found

    sleeper = wait_for(lambda: below().get("sleep", 0), 20, "the command runs")
    wait_for(lambda: any("keeper" in name for name in below()), 20, "the keeper runs")
    # A keeper that was just forked has changed nothing yet.
    wait_for(lambda: _marked("AGENT_MARK") == [run.pid], 20, "only sandrun itself has the mark")
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not alive(sleeper), 10, "the keeper ends the command")


def _marked(name: str) -> "list[int]":
    """Our descendants with that variable."""
    found = []
    for pid in processes.descendants(os.getpid()):
        try:
            if name in processes.environ(pid):
                found.append(pid)
        except OSError:
            continue
    return found
