"""Shared by all tests: an isolated box to run sandrun in, and waiting for conditions.

Promises
- Nothing of the host is read or changed: each `Box` has its own project, home and state.
- No process outlives a test: the test process is a subreaper, so processes that a test started stay
  among its descendants even if they detach. `Box.close` kills them and no others.
- Every deadline is multiplied by SANDRUN_TEST_SCALE, for slow machines.

Jobs are gated, not timed: `Box.job(name)` is a command that records its begin and its end in a log
(in true order, because of O_APPEND) and blocks in between until `Box.let(name)`.
"""

import ctypes
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from sandrun.model import DARWIN
from sandrun.platform import processes

SCALE = float(os.environ.get("SANDRUN_TEST_SCALE") or "1")
PROFILE = os.environ.get("SANDRUN_TEST_PROFILE", "")
ON_MACOS = PROFILE == "darwin" or DARWIN
ROOT = Path(__file__).resolve().parents[2]
INJECT = ROOT / "tests/harness/inject"
"""A directory for PYTHONPATH; see the header of its module."""
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, <linux/prctl.h>

T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = 10, what: str = "") -> T:
    """Call `condition` until it is true; return its value. Raises AssertionError after `seconds`
    (scaled)."""
    deadline = time.monotonic() + seconds * SCALE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds * SCALE:g} s: {what or condition}")
        time.sleep(0.005)
    return value


def adopt_orphans() -> None:
    """Make this process the subreaper of all processes of the tests (macOS has no subreaper)."""
    if not DARWIN:
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def reap_orphans() -> None:
    """Reap all dead children, such as the last keeper of a run, which exits after sandrun. Zombies
    would use up pids (32,768 on a small machine) and slow down each walk of the descendants. Called
    only between tests, when no test waits for its own child.
    """
    for pid in processes.children(os.getpid()):
        if not alive(pid):
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:  # the Popen of another thread was quicker
                pass


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    return not processes.has_exited(pid)


def is_keeper(pid: int) -> bool:
    """Whether a process below sandrun is its keeper: by its name, or, where it cannot change that,
    as the leader of a session."""
    return os.getsid(pid) == pid if ON_MACOS else "keeper" in processes.Stat(pid).name


def launcher() -> list[str]:
    """The command installed beside this interpreter, else that of the checkout."""
    installed = Path(sys.executable).with_name("sandrun")
    source = ROOT / "sandrun/bin/sandrun"
    return [str(installed)] if installed.exists() else [sys.executable, str(source)]


def without_note(said: str) -> str:
    """The stderr `said` without the line that the fallback prints about itself."""
    lines = said.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("sandrun: a monitor polls "))


PACKAGE = Path(processes.__file__).resolve().parents[2]
"""Where the tested package is: an installed one, or the checkout."""


def installed_env(env: dict[str, str]) -> dict[str, str]:
    """`env` with which Python finds the tested package: the installed one, or the checkout's."""
    if PACKAGE == ROOT:
        env = {**env, "PYTHONPATH": str(ROOT)}
    return pretending(env)


def pretending(env: dict[str, str], profile: str = PROFILE) -> dict[str, str]:
    """`env` with which sandrun runs as on macOS if `profile` is `darwin` (see `portable`)."""
    if not profile:
        return env
    paths = [str(ROOT / "tests/harness/portable"), env.get("PYTHONPATH", "")]
    mark = {"SANDRUN_TEST_PROFILE": profile, "SANDRUN_TEST_REAPER": str(os.getpid())}
    return {**env, **mark, "PYTHONPATH": ":".join(filter(None, paths))}


class Box:
    """A project, a home and a state directory of their own below `root`."""

    def __init__(self, root: Path, backend: str = "none") -> None:
        self.root = root
        self.project = root / "project"
        self.state = root / "state"
        self.home = root / "home"
        self.log = root / "log"
        for directory in (self.project, self.state, self.home):
            directory.mkdir()
        self.log.touch()
        self.env = {key: os.environ[key] for key in _KEPT if key in os.environ}
        self.env |= {
            "HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "SANDRUN_STATE_DIR": str(self.state),
            "TERM": "dumb",
        }
        self.env = installed_env(self.env)
        if backend != "auto":
            self.env["SANDRUN_BACKEND"] = backend
        self.started: list[subprocess.Popen[str]] = []
        self.before = set(processes.descendants(os.getpid()))

    def start(
        self,
        *args: "str | Path",
        env: "Mapping[str, str] | None" = None,
        cwd: "Path | None" = None,
        stdin: int = subprocess.DEVNULL,
        argv: "list[str] | None" = None,
        user: "int | None" = None,
        stderr: "int | None" = None,
        new_session: bool = False,
        own_group: bool = False,
    ) -> "subprocess.Popen[str]":
        """Start `sandrun ARGS` (or `argv`) in the project; stdout is a pipe (see `heard`).

        As `user` (a uid) if we are root; on the terminal `stderr` if there is one.
        """
        with open(self.root / f"stderr-{len(self.started)}", "w") as err:
            process = subprocess.Popen(
                [*(argv or launcher()), *map(str, args)],
                env={**self.env, **(env or {})},
                cwd=cwd or self.project,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=err if stderr is None else stderr,
                text=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                start_new_session=new_session,
                process_group=0 if own_group else None,
            )
        self.started.append(process)
        return process

    def heard(self, process: "subprocess.Popen[str]") -> str:
        """The stderr of a started process so far."""
        return (self.root / f"stderr-{self.started.index(process)}").read_text()

    def run(
        self,
        *args: "str | Path",
        env: "Mapping[str, str] | None" = None,
        cwd: "Path | None" = None,
        seconds: float = 30,
        argv: "list[str] | None" = None,
        user: "int | None" = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run `sandrun ARGS` and wait for it."""
        return self.finish(self.start(*args, env=env, cwd=cwd, argv=argv, user=user), seconds)

    def finish(
        self, process: "subprocess.Popen[str]", seconds: float = 30, input: "str | None" = None
    ) -> "subprocess.CompletedProcess[str]":
        """Wait for a started process; return its exit code and output."""
        out, _ = process.communicate(input, timeout=seconds * SCALE)
        err = self.heard(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def job(self, name: str) -> list[str]:
        """A command that logs `begin NAME PID`, waits for `let(NAME)`, and logs `end NAME PID`."""
        gate = self.root / f"gate-{name}"
        os.mkfifo(gate)
        script = 'echo "begin $1 $$" >>"$2"; read _ <"$3"; echo "end $1 $$" >>"$2"'
        return ["sh", "-c", script, "job", name, str(self.log), str(gate)]

    def let(self, name: str, seconds: float = 20) -> None:
        """Wait until the job has begun, then let it continue."""
        gate = self.root / f"gate-{name}"

        def opened() -> int:
            try:
                return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return 0

        fd = wait_for(opened, seconds, f"job {name} has begun; log: {self.events()}")
        os.write(fd, b"\n")
        os.close(fd)

    def let_all(self, names: "list[str]", seconds: float = 30) -> list[str]:
        """Let jobs continue in the order in which they begin; return that order."""
        order: list[str] = []

        def next_begun() -> list[str]:
            begun = [name for what, name in self.events() if what == "begin"]
            return [name for name in begun if name in names and name not in order]

        while len(order) < len(names):
            for name in wait_for(next_begun, seconds, f"one more of {names} after {order}"):
                self.let(name)
                order.append(name)
        return order

    def hold(
        self, name: str, *options: str, env: "Mapping[str, str] | None" = None
    ) -> "subprocess.Popen[str]":
        """Start a run of `job(name)` and wait until it runs."""
        process = self.start(*options, "--", *self.job(name), env=env)
        self.begun(name)
        return process

    def queue_up(
        self, name: str, *options: str, env: "Mapping[str, str] | None" = None
    ) -> "subprocess.Popen[str]":
        """Start a run of `job(name)` that must wait, and wait until it is in the queue."""
        process = self.start(*options, "--", *self.job(name), env=env)
        mark = f" job {name} "
        wait_for(lambda: any(mark in line for line in self.view()), 20, f"{name} is in the queue")
        return process

    def ids(self, *options: str) -> "dict[str, str]":
        """The ids of the runs in the queue, by the names of their jobs."""
        rows = self.status(*options)
        return {str(row["command"]).split(" job ")[-1].split()[0]: str(row["id"]) for row in rows}

    def begun(self, name: str, seconds: float = 20) -> int:
        """Wait until the job has begun; return its pid."""
        wait_for(lambda: ("begin", name) in self.events(), seconds, f"{name} begins")
        for line in self.log.read_text().splitlines():
            what, whose, pid = line.split()
            if (what, whose) == ("begin", name):
                return int(pid)
        raise AssertionError(name)

    def events(self) -> list[tuple[str, str]]:
        """The log so far: (`begin` or `end`, name)."""
        lines = self.log.read_text().splitlines()
        return [(line.split()[0], line.split()[1]) for line in lines]

    def directories(self) -> list[Path]:
        """The state directories of this box's queues."""
        return sorted(self.state.glob("seq-exec-*"))

    def view(self) -> list[str]:
        """The lines of all queue.txt."""
        lines: list[str] = []
        for directory in self.directories():
            try:
                lines += (directory / "queue.txt").read_text().splitlines()
            except FileNotFoundError:
                continue
        return lines

    def status(self, *options: str) -> "list[dict[str, object]]":
        """The rows of `sandrun status --json`; with --all those of all queues."""
        answer = json.loads(self.run(*options, "status", "--json").stdout)
        assert answer["v"] == 1
        return [row for queue in answer["queues"] for row in queue["runs"]]

    def last_record(self) -> "dict[str, object]":
        """The record of the last run. With backend `auto`, that must have used the first backend of
        SANDRUN_EXPECT, if it is set (see tests/contract)."""
        record = self.records()[-1]
        best = os.environ.get("SANDRUN_EXPECT", "").partition(",")[0]
        if best and self.env.get("SANDRUN_BACKEND", "auto") == "auto":
            assert record["backend"] == best
        return record

    def records(self) -> "list[dict[str, object]]":
        """The history so far."""
        try:
            text = (self.home / "state/sandrun/history.jsonl").read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def leftovers(self) -> list[int]:
        """The live processes that this test started."""
        pids = set(processes.descendants(os.getpid())) - self.before
        return [pid for pid in pids if alive(pid)]

    def close(self) -> None:
        """Kill all processes that the test started."""

        def ended() -> bool:
            for process in self.started:
                process.poll()
            for pid in set(processes.descendants(os.getpid())) - self.before:
                try:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, os.WNOHANG)  # reaps adopted orphans, fails for others
                except OSError:
                    pass
            return not self.leftovers()

        wait_for(ended, 20, "all processes that the test started are dead")
        for process in self.started:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe:
                    pipe.close()
        reap_orphans()
