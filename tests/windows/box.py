"""An isolated place to run sandrun in on Windows, with real processes (see `tests.harness`).

Jobs are gated, not timed: `Box.job(name)` notes its begin and its end and goes on in between when
`Box.let(name)` was called. Each job is its own witness: a file that only one can make at a time.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import sandrun

ROOT = Path(__file__).resolve().parents[2]
SCALE = float(os.environ.get("SANDRUN_TEST_SCALE") or "1")
JOB = """
import os, sys, time
name, log, witness, gate = sys.argv[1:]
def note(what):
    with open(log, "a", encoding="utf-8") as file:
        file.write(f"{what} {name} {os.getpid()}\\n")
try:
    os.close(os.open(witness, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    note("overlap")
note("begin")
while not os.path.exists(gate):
    time.sleep(0.01)
note("end")
try:
    os.unlink(witness)
except FileNotFoundError:
    pass  # one that was killed had left it, and the test took it away
"""
T = TypeVar("T")


def wait_for(condition: "Callable[[], T]", seconds: float = 20, what: str = "") -> T:
    """Call `condition` until it is true; its value. AssertionError after `seconds` (scaled)."""
    deadline = time.monotonic() + seconds * SCALE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds * SCALE:g} s: {what or condition}")
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    """Whether the process runs."""
    import psutil

    return bool(psutil.pid_exists(pid))


class Box:
    """A project and a home of their own below `root`."""

    def __init__(self, root: Path, backend: str) -> None:
        self.root = root
        self.project = root / "my pröject"
        self.home = root / "home"
        self.log = root / "log"
        self.witness = root / "witness"
        for directory in (self.project, self.home):
            directory.mkdir()
        (root / "job.py").write_text(JOB)
        self.log.touch()
        drop = ("SANDRUN", "XDG_", "GIT_", "GITHUB_")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
        self.env |= {"LOCALAPPDATA": str(self.home), "APPDATA": str(self.home)}
        self.env |= {"SANDRUN_BACKEND": backend, "PYTHONUTF8": "1"}
        if ROOT in Path(sandrun.__file__).parents:  # else what is tested is installed
            self.env["PYTHONPATH"] = str(ROOT)
        self.started: list[subprocess.Popen[str]] = []

    def start(
        self,
        *args: "str | Path",
        env: "Mapping[str, str] | None" = None,
        cwd: "Path | None" = None,
        stdin: "int | None" = subprocess.DEVNULL,
        argv: "list[str] | None" = None,
        flags: int = 0,
    ) -> "subprocess.Popen[str]":
        """Start `sandrun ARGS` in the project; stdout is a pipe, stderr a file (see `heard`)."""
        with open(self.root / f"stderr-{len(self.started)}", "w") as err:
            process = subprocess.Popen(
                [*(argv or [sys.executable, "-m", "sandrun"]), *map(str, args)],
                env={**self.env, **(env or {})},
                cwd=cwd or self.project,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=err,
                encoding="utf-8",
                creationflags=flags,
            )
        self.started.append(process)
        return process

    def heard(self, process: "subprocess.Popen[str]") -> str:
        """What a started process has said on stderr so far."""
        path = self.root / f"stderr-{self.started.index(process)}"
        return path.read_text(encoding="utf-8", errors="replace")

    def finish(
        self, process: "subprocess.Popen[str]", seconds: float = 60
    ) -> "subprocess.CompletedProcess[str]":
        """Wait for a started process; its exit code and output."""
        out, _ = process.communicate(timeout=seconds * SCALE)
        heard = self.heard(process)
        return subprocess.CompletedProcess(process.args, process.returncode, out, heard)

    def run(
        self,
        *args: "str | Path",
        env: "Mapping[str, str] | None" = None,
        cwd: "Path | None" = None,
        argv: "list[str] | None" = None,
        seconds: float = 60,
    ) -> "subprocess.CompletedProcess[str]":
        """Run `sandrun ARGS` to its end."""
        return self.finish(self.start(*args, env=env, cwd=cwd, argv=argv), seconds)

    def job(self, name: str) -> list[str]:
        """A command that begins, waits for `let(name)`, and ends."""
        gate = self.root / f"gate-{name}"
        files = (self.root / "job.py", self.log, self.witness, gate)
        return [sys.executable, "-S", str(files[0]), name, *map(str, files[1:])]

    def let(self, name: str) -> None:
        """Let a job go on."""
        (self.root / f"gate-{name}").touch()

    def hold(self, name: str, *options: str) -> "subprocess.Popen[str]":
        """Start a run of `job(name)` and wait until it runs."""
        process = self.start(*options, "--", *self.job(name))
        self.begun(name)
        return process

    def queue_up(self, name: str, *options: str) -> "subprocess.Popen[str]":
        """Start a run of `job(name)` that has to wait, and wait until it says that it does."""
        process = self.start(*options, "--", *self.job(name))
        wait_for(lambda: "waiting" in self.heard(process), 30, f"{name} waits")
        return process

    def events(self) -> "list[tuple[str, str, int]]":
        """What the jobs noted: (`begin`, `end` or `overlap`, name, pid)."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [
            (w, n, int(p)) for w, n, p in (line.split() for line in lines if line.count(" ") > 1)
        ]

    def begun(self, name: str, seconds: float = 30) -> int:
        """Wait until the job has begun; its pid."""

        def pid() -> int:
            dead = [p for p in self.started if p.poll() == 125]
            assert not dead, self.heard(dead[0])
            found = [p for what, whose, p in self.events() if (what, whose) == ("begin", name)]
            return found[0] if found else 0

        said = [self.heard(process)[-500:] for process in self.started]
        return wait_for(pid, seconds, f"{name} begins; heard: {said}")

    def state(self) -> Path:
        """The only state directory of this box's queues."""
        (found,) = (self.home / "sandrun").glob("seq-exec-*")
        return found

    def tickets(self) -> list[str]:
        """The names of the tickets, dead ones too."""
        return sorted(p.name for p in self.state().iterdir() if p.name[0] in "rw")

    def status(self, *options: str) -> "list[dict[str, object]]":
        """The rows of `sandrun status --json`."""
        done = self.run(*options, "status", "--json")
        assert done.returncode == 0, done.stderr
        return [row for queue in json.loads(done.stdout)["queues"] for row in queue["runs"]]

    def records(self) -> "list[dict[str, object]]":
        """The history so far."""
        try:
            text = (self.home / "sandrun/history.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def close(self) -> None:
        """End all that the test started; a sandrun's job ends its tree."""
        for process in self.started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
