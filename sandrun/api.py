"""`import sandrun`: start runs from Python, with all promises of `sandrun --`.

    outcome = sandrun.run(["make", "test"], memory="2G", timeout="10m")

Each run has its own sandrun process, because a supervisor handles all signals and reaps all
children of its process. So any thread may start and cancel runs. The result arrives through an
inherited descriptor (`sandrun.integrations.notify`); messages for people are never parsed. If the
program is killed, its runs end, except with `detach`.

Settings have the names and the values of the command line and of sandrun.toml (README,
Configuration). A setting that is not given comes from the same variables, files and defaults.
"""

import asyncio
import io
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
"""Exit codes of a sandrun that was killed by SIGKILL or, on Windows, by `sandrun kill`."""
_SETTLE_SECONDS = 30.0
"""A sandrun that has not entered the queue by then is stopped, or waits for a file system."""


class Settings(TypedDict, total=False):
    """The settings of a run, each with the meaning and the values of its flag. Numbers have the
    units of an outcome: sizes in bytes, times in seconds."""

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
    history_age: str | float
    history_size: str | int
    json_report: str
    metrics_textfile: str
    color: Literal["auto", "always", "never"]
    verbose: int
    quiet: int


class Options(Settings, total=False):
    """The options of `start`, `run` and `run_async`: the settings, and some of subprocess.Popen.

    With subprocess.PIPE for `stdout` or `stderr`, the outcome contains that output as text; stderr
    includes sandrun's own lines. `encoding` and `errors` are those of open(): by default, output
    that is not text in the locale's encoding raises UnicodeDecodeError, as with Popen(text=True).
    """

    cwd: str | os.PathLike[str] | None
    env: Mapping[str, str] | None
    stdin: _File
    stdout: _File
    stderr: _File
    encoding: str | None
    errors: str | None


_POPEN_OPTIONS = frozenset(("cwd", "env", "stdin", "stdout", "stderr", "encoding", "errors"))


class GaveUp(SandrunError):
    """The run did not get its turn in the time that was allowed (`no_wait`, `wait_timeout`), or was
    cancelled before its command started."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. Sizes in bytes, times in seconds; None: not known.

    - `code`: the exit code of `sandrun`: the command's own, 128+n for signal n, or another one of
      README, Exit codes.
    - `reason`: `exit`, `signal`, `memory`, `outer-memory`, `timeout`, `cpu-time`, `idle`, `parent`,
      `not-started`, `escaped` (with `require="kernel"`: a process left the container), `left` (a
      signal ended the run between its turn and its start, such as in a wait for git), or `lost`
      when sandrun itself was killed (as `sandrun kill` does after the grace period).
    - `peak`: the most memory in use without page cache that the kernel can reclaim.
      `peak_with_cache` includes it; None where no cache is counted.
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
        """Whether the command exited by itself with code 0."""
        return self.reason == "exit" and self.code == 0


class Run:
    """A started run. Any thread may wait for it or cancel it, any number of times."""

    def __init__(
        self,
        command: Sequence[str],
        process: "subprocess.Popen[bytes]",
        env: Mapping[str, str],
        options: Options,
        events: int,
    ) -> None:
        self.command = tuple(command)
        self._env = env
        self._options = options
        self.pid = process.pid
        self.id = ""
        self._process = process
        self._cancelled = False
        self._ended: Record = {}
        self._failed: dict[str, object] = {}
        self._output: tuple[bytes | None, bytes | None] = (None, None)
        self._error: Exception | None = None
        self._queued = threading.Event()
        self._over = threading.Event()
        self._listener = threading.Thread(target=self._listen, args=(events,), daemon=True)
        self._listener.start()

    def _listen(self, events: int) -> None:
        # Whatever happens here, those who wait must wake up.
        reader = threading.Thread(target=self._read_events, args=(events,), daemon=True)
        try:
            reader.start()
            self._output = self._process.communicate()  # a command waits while its pipe is full
            reader.join()
        except Exception as error:
            self._error = error
        finally:
            self._queued.set()
            self._over.set()

    def _read_events(self, events: int) -> None:
        # Stops before the end of the file: a keeper may have the other end open a moment longer.
        with open(events, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    facts = json.loads(line)
                    event = facts["event"]
                except (ValueError, TypeError, KeyError):
                    return  # cut short, by a SIGKILL or because this program was stopped
                if event == "queued":
                    self.id = facts["id"]
                    self._queued.set()
                elif event == "ended":
                    self._ended = facts
                    return
                else:
                    self._failed = facts
                    return

    def wait(self, timeout: float | None = None) -> Outcome:
        """Wait for the end of the run; its outcome.

        Raises TimeoutError when the run is not over after `timeout` seconds (it goes on), GaveUp,
        SandrunError when sandrun itself failed, and UnicodeDecodeError when the run is over and its
        output cannot be decoded. Other exceptions, such as MemoryError, mean that its output could
        not be read.
        """
        if not self._over.wait(timeout):
            raise TimeoutError(f"not over after {timeout} s: {self.command}")
        if self._error:
            raise self._error
        record, code = self._ended, self._process.returncode
        if not record and code in _LOST:
            record = {"reason": "lost", "id": self.id}
            return self._outcome(EXIT_MEMORY, record)
        if not record:
            text = str(self._failed.get("text") or f"sandrun ended with {code}")
            kind = GaveUp if code == EXIT_GAVE_UP or self._cancelled else SandrunError
            raise kind(text, str(self._failed.get("hint") or ""), code)
        if record["reason"] == "left" and self._cancelled:
            raise GaveUp("cancelled before the command started", "", code)
        if record["reason"] == "failed":
            raise SandrunError(f"sandrun failed: {' '.join(self.command)}", "see its stderr", code)
        return self._outcome(record["exit"], record)

    def _outcome(self, code: int, record: Record) -> Outcome:
        out, err = self._output
        return Outcome(
            command=self.command,
            code=code,
            reason=record["reason"],
            id=record["id"],
            backend=record.get("backend", ""),
            wait=record.get("wait", 0.0),
            wall=record.get("wall", 0.0),
            cpu=record.get("cpu", 0.0),
            peak=record.get("peak"),
            limit=record.get("limit", 0),
            stdout=_text(out, self._options),
            stderr=_text(err, self._options),
            peak_with_cache=record.get("peak_with_cache"),
        )

    def cancel(self) -> None:
        """End all processes of the run, with SIGTERM and after the grace period with SIGKILL. A run
        that waits leaves the queue. Returns at once. `wait` then returns the outcome, or raises
        GaveUp if the run was still waiting for its turn or for git."""
        self._cancelled = True
        # Not a daemon thread: if the program exits now, the run must still be ended first.
        threading.Thread(target=self._cancel).start()

    def _cancel(self) -> None:
        if not self._queued.wait(_SETTLE_SECONDS):
            self._process.terminate()  # nothing is started yet that SIGTERM could leave behind
            return
        if self._over.is_set() and self._process.returncode is not None:
            return
        grace = ["--grace", str(self._options["grace"])] if "grace" in self._options else []
        kill = [*_launcher(), "-qq", *grace, "kill", self.id]
        silent = subprocess.DEVNULL
        done = subprocess.run(kill, env=self._env, stdout=silent, stderr=silent, check=False)
        if done.returncode:  # a run inside a run of the same queue has no ticket
            self._process.terminate()


def _text(data: bytes | None, options: Options) -> str | None:
    """Output as subprocess.Popen(text=True) returns it, which on Windows decodes in threads whose
    errors reach nobody. Raises UnicodeDecodeError, and LookupError for an unknown name."""
    if data is None:
        return None
    encoding, errors = options.get("encoding"), options.get("errors")
    return io.TextIOWrapper(io.BytesIO(data), encoding, errors).read()


def _launcher() -> list[str]:
    """The command line of this sandrun, not of another on PATH, PYTHONPATH or in this directory."""
    library = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    code = f"import sys; sys.path.insert(0, {library!r}); "
    # Without -E, because this Python may need the user's environment (PYTHONHOME).
    return [sys.executable, "-P", "-c", code + "from sandrun.__main__ import start; start()"]


def _flags(settings: Settings) -> list[str]:
    by_key = {option.key: option for option in options.OPTIONS}
    words: list[str] = []
    for key, value in settings.items():
        if key in _POPEN_OPTIONS:
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


def _inherit(fd: int) -> tuple[str, list[int]]:
    """The number by which the child finds an open file, and the descriptors that it inherits."""
    if sys.platform != "win32":
        return str(fd), [fd]
    import msvcrt

    handle = msvcrt.get_osfhandle(fd)
    os.set_handle_inheritable(handle, True)
    return str(handle), []


def start(command: Sequence[str], **options: Unpack[Options]) -> Run:
    """Start a run, which may first wait for its turn, and return at once. Raises TypeError for an
    invalid command or option, and OSError and LookupError as subprocess.Popen does."""
    if isinstance(command, str) or not command:
        raise TypeError("a command must be a non-empty list of words")
    env = options.get("env")
    caller_env = dict(os.environ if env is None else env)
    words = [*_launcher(), *_flags(options), "--", *command]
    _text(b"", options)  # an unknown encoding fails now, not after the run
    events, sender = os.pipe()
    name, inherited = _inherit(sender)
    try:
        process = subprocess.Popen(
            words,
            cwd=options.get("cwd"),
            env={**caller_env, "SANDRUN_TELL": name},
            stdin=options.get("stdin"),
            stdout=options.get("stdout"),
            stderr=options.get("stderr"),
            pass_fds=inherited,
            close_fds=bool(inherited),
        )
    except BaseException:
        os.close(events)
        raise
    finally:
        os.close(sender)
    return Run(command, process, caller_env, options, events)


def run(command: Sequence[str], **options: Unpack[Options]) -> Outcome:
    """Run a command when it is its turn, inside its limits; the outcome. Raises what `start` and
    `Run.wait` raise.

    An exception in the waiting thread, such as Ctrl-C, cancels the run.
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
    """`run` for asyncio. Cancelling the task cancels the run."""
    loop = asyncio.get_running_loop()
    started = start(command, **options)
    over = asyncio.Event()

    def notify() -> None:
        started._over.wait()
        try:
            loop.call_soon_threadsafe(over.set)
        except RuntimeError:
            pass  # the loop is closed, so nothing waits any more

    # A thread for each run: the loop's executor has few threads, and many runs may wait.
    threading.Thread(target=notify, daemon=True).start()
    try:
        await over.wait()
    except asyncio.CancelledError:
        started.cancel()
        raise
    return started.wait()
