"""A process that moves out of the run's container to another group is found, named and killed."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.test_contract import nothing_left, pid_in
from tests.entering import put_on_path
from tests.harness import SCALE, Box, alive, launcher, wait_for

# Moves itself to a sibling of the run's group, as systemd does for su, systemd-run --scope and
# tmux, writes its pid to a file, and becomes the command.
LEAVE = r"""
import os, re, sys
file, *command = sys.argv[1:]
for line in open("/proc/self/cgroup"):
    _, names, path = line.rstrip("\n").split(":", 2)
    found = re.match(r"(.*)/sandrun-[0-9a-f]{8}(/main)?$", path)
    if found and names in ("", "memory"):
        mount = "/sys/fs/cgroup/" + names
        beside = f"{mount.rstrip('/')}{found[1]}/beside-{os.path.basename(file)}"
        os.makedirs(beside, exist_ok=True)
        open(beside + "/cgroup.procs", "w").write("0")
with open(file + ".new", "w") as note: note.write(f"{os.getpid()} {beside}")
os.rename(file + ".new", file)
os.execvp(command[0], command)
"""


class Leaver:
    """A command that leaves the container, and the pid and group that it wrote."""

    def __init__(self, root: Path) -> None:
        self.file = root / f"left-{os.getpid()}"

    def __call__(self, *command: str) -> "list[str]":
        return [sys.executable, "-c", LEAVE, str(self.file), *command]

    def pid(self) -> int:
        wait_for(self.file.exists, 20, "it left")
        return int(self.file.read_text().split()[0])

    def group(self) -> str:
        return self.file.read_text().split()[1]


@pytest.fixture
def leave(tmp_path: Path) -> "Iterator[Leaver]":
    leaver = Leaver(tmp_path)
    yield leaver
    if leaver.file.exists():
        try:
            os.rmdir(leaver.group())
        except FileNotFoundError:  # systemd removes the groups of a scope that has ended
            pass


def lines(said: str) -> "list[str]":
    return [line for line in said.splitlines() if "left the run's container" in line]


def test_an_escaped_process_is_killed_and_named_with_its_group(
    kernel_place: Box, leave: Leaver
) -> None:
    sleep = leave("sleep", "1000")
    done = kernel_place.run("--", "sh", "-c", '"$@" & while ! [ -e "$4" ]; do :; done; exit 3',
                            "sh", *sleep)  # fmt: skip
    assert done.returncode == 3
    assert not alive(leave.pid())
    (line,) = lines(done.stderr)
    group = leave.group().removeprefix("/sys/fs/cgroup").removeprefix("/memory")
    assert f"(pid {leave.pid()}" in line  # when found it may be before its exec
    assert group in line
    assert line.endswith("; ended at the end")
    assert "sandrun: hint: start it in the run's own group" in done.stderr
    assert "left behind" not in done.stderr  # named only once
    nothing_left(kernel_place)


def test_an_escaped_daemon_is_killed_though_the_container_is_empty(
    kernel_place: Box, leave: Leaver
) -> None:
    """The run ends within milliseconds, before the first search."""
    daemon = 'setsid "$@" </dev/null >/dev/null 2>&1 & until [ -e "$4" ]; do :; done'
    done = kernel_place.run("--", "sh", "-c", daemon, "sh", *leave("sleep", "1000"))
    assert done.returncode == 0
    assert not alive(leave.pid())
    assert lines(done.stderr)


def test_the_parent_of_an_escaped_process_is_named(kernel_place: Box, leave: Leaver) -> None:
    script = '"$@"; : this-is-what-started-it'
    done = kernel_place.run("--", "sh", "-c", script, "sh", *leave("sleep", str(2 * SCALE)))
    (line,) = lines(done.stderr)
    assert re.search(rf"\(pid {leave.pid()}, started by sh -c .* \(pid \d+\)\)", line)
    assert "at the end" not in line  # it had exited by itself


def test_children_of_an_escaped_process_are_killed(kernel_place: Box, leave: Leaver) -> None:
    file = kernel_place.root / "child"
    inner = f"sleep 1000 & echo $! >{file}; wait"
    run = kernel_place.start(
        "--timeout", "2", "--", "sh", "-c", '"$@" & wait', "sh", *leave("sh", "-c", inner)
    )
    assert kernel_place.finish(run).returncode == 124
    assert not alive(pid_in(file))
    assert not alive(leave.pid())
    nothing_left(kernel_place)


def test_threads_are_no_processes(kernel_place: Box, leave: Leaver) -> None:
    script = """
import pathlib, sys, threading, time
for _ in range(5): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
pathlib.Path(sys.argv[1]).touch()
time.sleep(1000)
"""
    ready = kernel_place.root / "ready"
    command = leave(sys.executable, "-c", script, str(ready))
    wait = '"$@" & until [ -e "$0" ]; do sleep 0.01; done'
    done = kernel_place.run("--", "sh", "-c", wait, str(ready), *command)
    (line,) = lines(done.stderr)
    assert " more" not in line


def test_an_escaped_process_that_ignores_sigterm_is_killed(
    kernel_place: Box, leave: Leaver
) -> None:
    script = "trap '' TERM; while :; do sleep 0.1; done"
    run = kernel_place.start(
        "--timeout", "1", "--grace", "0.5", "--", "sh", "-c", '"$@" & wait', "sh",
        *leave("sh", "-c", script),
    )  # fmt: skip
    assert kernel_place.finish(run).returncode == 124
    assert not alive(leave.pid())
    nothing_left(kernel_place)


def test_after_sigkill_of_the_supervisor_an_escaped_process_is_killed(
    kernel_place: Box, leave: Leaver
) -> None:
    """It is found by its mark: the process that had found it before is dead."""
    orphan = 'setsid "$@" & sleep 1000'
    run = kernel_place.start("--", "sh", "-c", orphan, "sh", *leave("sleep", "1000"))
    pid = leave.pid()
    run.kill()
    run.wait()
    wait_for(lambda: not alive(pid), 10, "the keeper ends it")
    wait_for(lambda: not kernel_place.leftovers(), 10, "and all else")


@pytest.mark.parametrize("late", [False, True])
def test_require_kernel_does_not_allow_an_escaped_process(
    kernel_place: Box, leave: Leaver, late: bool
) -> None:
    """The run is ended at once; if the process is found only at the end, the run fails."""
    script = '"$@" & exec sleep 1000' if not late else '"$@" & until [ -e "$4" ]; do :; done'
    done = kernel_place.run(
        "--require", "kernel", "--", "sh", "-c", script, "sh", *leave("sleep", "1000")
    )
    assert done.returncode == 125
    (line,) = lines(done.stderr)
    assert line.startswith("sandrun: --require kernel: ended the run")
    assert kernel_place.records()[-1]["reason"] == "escaped"
    nothing_left(kernel_place)


@pytest.mark.parametrize(
    ("what", "seconds", "said"), [("leave", "1000", "left alone"), ("wait", "2", "waited for")]
)
def test_an_escaped_process_may_be_left_or_waited_for(
    kernel_place: Box, leave: Leaver, what: str, seconds: str, said: str
) -> None:
    script = 'setsid "$@" </dev/null >/dev/null 2>&1 & until [ -e "$4" ]; do :; done'
    command = ["sh", "-c", script, "sh", *leave("sleep", seconds)]
    done = kernel_place.run("--leftovers", what, "--", *command)
    assert done.returncode == 0
    assert f"{said} at the end" in lines(done.stderr)[0]
    assert alive(leave.pid()) == (what == "leave")
    if what == "leave":
        os.kill(leave.pid(), signal.SIGKILL)
        wait_for(lambda: not alive(leave.pid()), 5)


# Starts a process with the mark that a line of its input has, as the server of an editor, a
# terminal or tmux does for a client.
SERVER = """
import os, subprocess, sys, time
mark = open(sys.argv[1]).read().strip()
child = subprocess.Popen(["sleep", "1000"], env={**os.environ, "SANDRUN_RUNS": mark})
print(child.pid, flush=True)
time.sleep(1000)
"""


def test_a_process_that_a_server_starts_with_the_runs_mark_is_not_touched(
    kernel_place: Box,
) -> None:
    fifo = kernel_place.root / "requests"
    os.mkfifo(fifo)
    server = kernel_place.start(str(fifo), argv=[sys.executable, "-c", SERVER])
    done = kernel_place.run("--", "sh", "-c", f'echo "$SANDRUN_RUNS" >{fifo}; sleep 1')
    assert server.stdout
    assert alive(int(server.stdout.readline()))
    assert not lines(done.stderr)


# The same, but an ancestor of the run, such as an editor in whose terminal the run was started.
ANCESTOR = """
import os, subprocess, sys, threading
fifo, *run = sys.argv[1:]
def serve():
    mark = open(fifo).read().strip()
    child = subprocess.Popen(["sleep", "1000"], env={**os.environ, "SANDRUN_RUNS": mark})
    print(child.pid, flush=True)
threading.Thread(target=serve).start()
sys.exit(subprocess.run(run).returncode)
"""


def test_a_process_that_an_ancestor_starts_with_the_runs_mark_is_not_touched(
    kernel_place: Box,
) -> None:
    fifo = kernel_place.root / "requests"
    os.mkfifo(fifo)
    ask = f'echo "$SANDRUN_RUNS" >{fifo}; sleep 1; exit 5'
    run = [*launcher(), "--require", "kernel", "--", "sh", "-c", ask]
    server = kernel_place.start(str(fifo), *run, argv=[sys.executable, "-c", ANCESTOR])
    assert server.stdout
    pid = int(server.stdout.readline())
    assert server.wait(30 * SCALE) == 5
    assert alive(pid)
    assert not lines(kernel_place.heard(server))


def test_a_run_without_escaped_processes_reports_none(kernel_place: Box) -> None:
    put_on_path(kernel_place)
    script = "sleep 0.6 & wait; sh -c 'sleep 0.1'; sandrun -- sleep 0.6"
    done = kernel_place.run("--require", "kernel", "--", "sh", "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
