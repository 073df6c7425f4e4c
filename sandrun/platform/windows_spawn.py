"""Starting the command on Windows.

Promises that the command gets the caller's standard handles, console, environment and directory.
It shares our process group, so the console sends it Ctrl-C directly and once.

A command's name is looked up as cmd.exe does, in PATH with the extensions of PATHEXT, except that
the current directory is not searched for a name without a directory.
"""

import ctypes
import errno
import os

from sandrun.model import SandrunError
from sandrun.platform import windows_api, windows_console, windows_files
from sandrun.platform.windows_api import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

ALL_SIGNALS: "frozenset[int]" = frozenset()
SHIM_MARK = ".sandrun-shims"
"""The file that marks a folder of shims (`sandrun.integrations.shims`)."""
_BATCH = (".bat", ".cmd")
_UNSAFE = '"%\n\r'

_started: "list[subprocess.Popen[bytes]]" = []
"""The processes that `direct` started. Their handles stay open, so their pids are not reused."""

parent_process = 0
"""An open handle of our parent, which is signalled when the parent exits; 0: not known."""


class CallerState:
    """What this process inherited from its caller: on Windows only the parent is known."""

    __slots__ = ("errors", "ignored", "mask", "parent")

    def __init__(self) -> None:
        self.mask: set[int] = set()
        self.ignored: frozenset[int] = frozenset()
        self.parent = 0
        """The process whose death ends the run; 0: none."""
        self.errors = -1


def capture() -> CallerState:
    """Record the console's events from now on, so that none is lost, and find our parent."""
    global parent_process
    windows_console.listen()
    caller = CallerState()
    parent = os.getppid()
    process = open_process(parent)
    if process:
        # The pid may have been reused, but a parent is older than its child.
        if _started_at(process) <= _started_at(calls.GetCurrentProcess()):
            caller.parent, parent_process = parent, process
        else:
            windows_files.close(process)
    return caller


def interruptibly(caller: CallerState, call: "Callable[[], T]") -> "T":
    """The result of `call`. The console's events stay pending meanwhile."""
    return call()


def pending_end_signal(caller: CallerState) -> int:
    """0: Windows has no pending signals."""
    return 0


def restore(caller: CallerState) -> None:
    """Let Ctrl-C terminate this process again, as it terminates an ordinary program."""
    windows_console.restore()


_WATCH = windows_api.SYNCHRONIZE | windows_api.PROCESS_QUERY_LIMITED_INFORMATION


def open_process(pid: int, access: int = _WATCH) -> int:
    """A handle to wait for the exit of a process; 0: it is gone, or access is denied."""
    try:
        return int(calls.OpenProcess(access, False, pid))
    except OSError:
        return 0


def _started_at(process: int) -> int:
    times = (ctypes.c_uint64 * 4)()
    calls.GetProcessTimes(process, *[ctypes.byref(times, 8 * index) for index in range(4)])
    return int(times[0])


def exit_code(process: int) -> int:
    """The exit code of an exited process: 32 bits."""
    code = windows_api.DWORD()
    calls.GetExitCodeProcess(process, ctypes.byref(code))
    return int(code.value)


def terminate(pid: int) -> bool:
    """Terminate one live process; False: not possible."""
    process = open_process(pid, windows_api.PROCESS_TERMINATE)
    if not process:
        return False
    try:
        calls.TerminateProcess(process, 128 + 9)
        return True
    except OSError:  # it is already exiting
        return False
    finally:
        windows_files.close(process)


def environment(extra: "Mapping[str, str]") -> "dict[str, str]":
    """The caller's environment plus `extra`."""
    return {**os.environ, **extra}


def program(name: str, env: "Mapping[str, str]") -> str:
    """The file that a command's name stands for, never one of our shims. Raises
    FileNotFoundError."""
    extensions = env.get("PATHEXT", ".COM;.EXE;.BAT;.CMD").split(";")
    endings = [e for e in extensions if e]
    if os.path.splitext(name)[1]:
        endings.insert(0, "")
    folders = [""] if os.path.dirname(name) else env.get("PATH", "").split(";")
    for folder in folders if name else []:
        if folder and os.path.exists(os.path.join(folder, SHIM_MARK)):
            continue
        for ending in endings:
            path = os.path.join(folder.strip('"'), name) + ending
            if (folder or os.path.dirname(name)) and os.path.isfile(path):
                return path
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def command_line(argv: "list[str]", env: "Mapping[str, str]") -> "tuple[str, str]":
    """The program's file, and a command line that the program parses into `argv`. Raises OSError.

    A batch file is run by cmd.exe, which parses the words first. Within quotes it interprets only
    percent signs and quotes, so a word with one of those is refused (CVE-2024-24576 shows why):
    raises SandrunError.
    """
    import subprocess

    path = program(argv[0], env)
    if not path.lower().endswith(_BATCH):
        return path, subprocess.list2cmdline(argv)
    for word in argv[1:]:
        if any(c in _UNSAFE for c in word):
            raise SandrunError(
                f"{path}: a batch file cannot be given {word!r}",
                "cmd.exe would parse it differently; call the program that the file starts",
            )
    shell = env.get("COMSPEC") or os.path.join(os.environ["SYSTEMROOT"], "System32", "cmd.exe")
    words = " ".join(f'"{path}"' if at == 0 else _quoted(word) for at, word in enumerate(argv))
    return shell, f'"{shell}" /d /s /c "{words}"'


def _quoted(word: str) -> str:
    end = len(word) - len(word.rstrip("\\"))
    return f'"{word}{word[len(word) - end :]}"'  # doubled, or the last one would escape the quote


def direct(argv: "list[str]", env: "Mapping[str, str]", caller: CallerState) -> int:
    """Start the command without a container; its pid. Raises OSError if it cannot be executed."""
    import subprocess

    path, line = command_line(argv, env)
    # The command inherits all inheritable handles, as without sandrun; ours are not inheritable.
    process = subprocess.Popen(line, executable=path, env=dict(env), close_fds=False)
    _started.append(process)
    return process.pid


def failure(caller: CallerState) -> "tuple[str, int, str]":
    """Never a failure: on Windows a started command was executed."""
    return "", 0, ""


def die_of(signum: int) -> None:
    """Does nothing: on Windows no signal terminates a process; the exit code reports it."""
