"""`import sandrun`: runs from Python, with everything that `sandrun --` promises.

    outcome = sandrun.run(["make", "test"], memory="2G", timeout="10m")

Each run has a process of its own (`python -m sandrun`), because its supervisor takes all signals
and reaps all children of the process that it lives in. What became of the run comes back over an
inherited descriptor (`sandrun.integrations.notify`), never by reading what people read. Thus any
thread may run and cancel anything. A program that is killed takes its runs with it, unless
`detach`.

Settings are those of the command line and of sandrun.toml (README, Configuration), by the same
names and with the same texts; what is not given is settled as there.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal, TypedDict, Unpack

from sandrun.config import options
from sandrun.model import EXIT_GAVE_UP, EXIT_MEMORY, SandrunError
from sandrun.types import BackendName, Leftovers, Reason, Record

_File = int | IO[str] | IO[bytes] | None
_LOST = (-9, EXIT_MEMORY)
"""What a sandrun exits with that was killed: by SIGKILL, or on Windows by `sandrun kill`."""


class Settings(TypedDict, total=False):
    """The settings of a run, each with the meaning and the texts of its flag. Numbers are as in an
    outcome: sizes in bytes, times in seconds."""

    memory: str | int
    timeout: str | float
    cpu_time: str | float
    idle_timeout: str | float
    kill_signal: str | int
    detach: bool
    grace: str | float
    check_interval: str | float
    backend: BackendName
    require: Literal["any", "kernel"]
    swap: str | int
    pids: str | int
    cpus: str | float
    cpu_weight: str | int
    io_read_bps: str | int
    io_write_bps: str | int
    io_read_iops: str | int
    io_write_iops: str | int
    io_weight: str | int
    leftovers: Leftovers
    daemons: Literal["contain", "leave"]
    private_tmp: bool
    private_ipc: bool
    priority: str | int
    slots: str | int
    pool: str | int
    no_wait: bool
    wait_timeout: str | float
    git_wait: str | float
    clean_git_env: bool
    project: str
    queue: str
    color: Literal["auto", "always", "never"]
    verbose: int
    quiet: int


class Options(Settings, total=False):
    """What `start`, `run` and `run_async` take: the settings, and subprocess.Popen's own.

    With subprocess.PIPE for `stdout` or `stderr` the text is in the outcome (stderr has sandrun's
    own lines as well).
    """

    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    stdin: _File
    stdout: _File
    stderr: _File


_POPENS = frozenset(("cwd", "env", "stdin", "stdout", "stderr"))


class GaveUp(SandrunError):
    """It did not get its turn in the time that was allowed (`no_wait`, `wait_timeout`)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. Sizes in bytes, times in seconds; None: not known.

    `code` is what `sandrun` exited with: the command's own code, 128+n for signal n, 124, 137.
    `reason` is `exit`, `signal`, `memory`, `outer-memory`, `timeout`, `cpu-time`, `idle`, `parent`,
    `not-started`, `escaped` (with `require="kernel"`: a process left the container), or `lost` when
    sandrun itself was killed (`sandrun kill` does so when the grace is over). `peak`: the most
    memory in use, in bytes, without the page cache that the kernel can take back;
    `peak_with_cache` with it, None where no cache is counted.
    """

    command: tuple[str, ...]
    code: int
    reason: Reason
    id: str
    backend: str
    wait: float
    wall: float
    cpu: float
    peak: int | None
    limit: int
    stdout: str | None = None
    stderr: str | None = None
    peak_with_cache: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the command ended by itself, with 0."""
        return self.reason == "exit" and self.code == 0


class Run:
    """A run that was started. Any thread may wait for it or cancel it, any number of times."""

    def __init__(
        self,
        command: Sequence[str],
        process: "subprocess.Popen[str]",
        env: Mapping[str, str],
        settings: Settings,
        ear: int,
    ) -> None:
        self.command = tuple(command)
        self._env = env
        self._grace = ["--grace", str(settings["grace"])] if "grace" in settings else []
        self.pid = process.pid
        self.id = ""
        self._process = process
        self._cancelled = False
        self._ended: Record = {}
        self._failed: dict[str, object] = {}
        self._output: tuple[str | None, str | None] = (None, None)
        self._queued = threading.Event()
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(ear,), daemon=True)
        self._listener.start()

    def _listen(self, ear: int) -> None:
        # Not until the end of the file: a run's keeper may hold the other end a moment longer.
        with open(ear, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                facts = json.loads(line)
                if facts["event"] == "queued":
                    self.id = facts["id"]
                    self._queued.set()
                    continue
                if facts["event"] == "ended":
                    self._ended = facts
                else:
                    self._failed = facts
                break
        self._output = self._process.communicate()
        self._queued.set()
        self._over.set()

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait for the end. Raises TimeoutError when it is not over by then (the run goes on),
        GaveUp, and SandrunError when sandrun itself failed and the command was not started."""
        if not self._over.wait(timeout):
            raise TimeoutError(f"not over after {timeout} s: {self.command}")
        record, code = self._ended, self._process.returncode
        if not record and code in _LOST:
            record = {"reason": "lost", "id": self.id}
            return _outcome(self.command, EXIT_MEMORY, record, self._output)
        if not record:
            text = str(self._failed.get("text") or f"sandrun ended with {code}")
            kind = GaveUp if code == EXIT_GAVE_UP or self._cancelled else SandrunError
            raise kind(text, str(self._failed.get("hint") or ""), code)
        if record["reason"] == "failed":
            raise SandrunError(f"sandrun failed: {' '.join(self.command)}", "see its stderr", code)
        return _outcome(self.command, record["exit"], record, self._output)

    def cancel(self) -> None:
        """End it: the whole tree, with SIGTERM and after the grace with SIGKILL; or leave the
        queue. Returns at once; `wait` tells how it ended, or raises GaveUp if it never began."""
        self._cancelled = True
        # No daemon: a program that ends now would take it along before anything was ended.
        threading.Thread(target=self._cancel).start()

    def _cancel(self) -> None:
        self._queued.wait()
        kill = [*_launcher(), "-qq", *self._grace, "kill", self.id]
        silent = subprocess.DEVNULL
        if self._over.is_set():
            return
        done = subprocess.run(kill, env=self._env, stdout=silent, stderr=silent, check=False)
        if done.returncode:  # a run inside a run of the same queue has no place of its own
            self._process.terminate()


def _outcome(
    command: tuple[str, ...],
    code: int,
    record: Record,
    output: "tuple[str | None, str | None]",
) -> Outcome:
    return Outcome(
        command=command,
        code=code,
        reason=record["reason"],
        id=record["id"],
        backend=record.get("backend", ""),
        wait=record.get("wait", 0.0),
        wall=record.get("wall", 0.0),
        cpu=record.get("cpu", 0.0),
        peak=record.get("peak"),
        limit=record.get("limit", 0),
        stdout=output[0],
        stderr=output[1],
        peak_with_cache=record.get("peak_with_cache"),
    )


def _launcher() -> list[str]:
    """This very sandrun: no other on PATH, in the current directory or in PYTHONPATH."""
    library = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = f"import sys; sys.path.insert(0, {library!r}); "
    # With the user's environment, which may be what makes this Python work (PYTHONHOME).
    return [sys.executable, "-P", "-c", code + "from sandrun.__main__ import start; start()"]


def _flags(settings: Settings) -> list[str]:
    by_key = {option.key: option for option in options.OPTIONS}
    words: list[str] = []
    for key, value in settings.items():
        if key in _POPENS:
            continue
        option = by_key.get(key)
        if option is None:
            raise TypeError(f"no such setting: {key}")
        if option.kind == "count":
            words += [option.flags[-1]] * int(str(int(value) if isinstance(value, bool) else value))
        elif option.kind in ("size", "bytes", "pool") and isinstance(value, int) and value:
            words += [option.flags[-1], f"{value}B"]
        else:
            words += [option.flags[-1], str(value)]
    return words


def _handed_down(fd: int) -> tuple[str, list[int]]:
    """How the child finds an open file, and what subprocess has to pass on for that."""
    if sys.platform != "win32":
        return str(fd), [fd]
    import msvcrt

    handle = msvcrt.get_osfhandle(fd)
    os.set_handle_inheritable(handle, True)
    return str(handle), []


def start(command: Sequence[str], **options: Unpack[Options]) -> Run:
    """Start a run, or its wait for a turn, and return at once. Raises TypeError for a command or
    an option that cannot be one, and OSError as subprocess.Popen does."""
    if isinstance(command, str) or not command:
        raise TypeError("a command is a list of words that is not empty")
    env = options.get("env")
    around = dict(os.environ if env is None else env)
    words = [*_launcher(), *_flags(options), "--", *command]
    ear, mouth = os.pipe()
    name, handed = _handed_down(mouth)
    try:
        process = subprocess.Popen(
            words,
            cwd=options.get("cwd"),
            env={**around, "SANDRUN_TELL": name},
            stdin=options.get("stdin"),
            stdout=options.get("stdout"),
            stderr=options.get("stderr"),
            pass_fds=handed,
            close_fds=bool(handed),
            text=True,
        )
    except BaseException:
        os.close(ear)
        raise
    finally:
        os.close(mouth)
    return Run(command, process, around, options, ear)


def run(command: Sequence[str], **options: Unpack[Options]) -> Outcome:
    """Run a command in its turn and inside its limits; how it ended. Raises as `start` and
    `Run.wait` do.

    An exception in the waiting thread (Ctrl-C) cancels the run.
    """
    started = start(command, **options)
    try:
        return started.wait()
    except SandrunError:
        raise
    except BaseException:
        started.cancel()
        raise


async def run_async(command: Sequence[str], **options: Unpack[Options]) -> Outcome:
    """`run` for asyncio; cancelling the task cancels the run."""
    loop = asyncio.get_running_loop()
    started = start(command, **options)
    over = asyncio.Event()

    def notify() -> None:
        started._over.wait()
        try:
            loop.call_soon_threadsafe(over.set)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    # A thread of its own each: the loop's executor has few, and a queue may be long.
    threading.Thread(target=notify, daemon=True).start()
    try:
        await over.wait()
    except asyncio.CancelledError:
        started.cancel()
        raise
    return started.wait()
