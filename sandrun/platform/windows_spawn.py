"""Starting the command on Windows; stands in for `sandrun.platform.spawn`.

Promises that the command gets the caller's standard handles, console, environment and directory,
and, being in the same process group, the console's Ctrl-C exactly once and straight from there.

What a name on the command line means is what cmd.exe makes of it: PATH, then the extensions of
PATHEXT; the current directory only if the name says so.
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
"""Keeps the handles of what `direct` started, so that their numbers stay theirs."""

parent_process = 0
"""The handle of who started us, open so that its death is seen whenever it comes; 0: unknown."""


class CallerState:
    """What the caller handed down, as far as there is such a thing here."""

    __slots__ = ("errors", "ignored", "mask", "parent")

    def __init__(self) -> None:
        self.mask: set[int] = set()
        self.ignored: frozenset[int] = frozenset()
        self.parent = 0
        """The process whose death ends the run; 0: none."""
        self.errors = -1


def capture() -> CallerState:
    """Take the console's events from here on, so that none is lost; see who started us."""
    global parent_process
    windows_console.listen()
    caller = CallerState()
    parent = os.getppid()
    process = open_process(parent)
    if process:
        # A number may have been given anew: a parent is older than its child.
        if _birth(process) <= _birth(calls.GetCurrentProcess()):
            caller.parent, parent_process = parent, process
        else:
            windows_files.close(process)
    return caller


def interruptibly(caller: CallerState, call: "Callable[[], T]") -> "T":
    """What `call` returns; the console's events wait for the run."""
    return call()


def pending_end_signal(caller: CallerState) -> int:
    """No signal waits to be seen here."""
    return 0


def restore(caller: CallerState) -> None:
    """Be an ordinary program again, which Ctrl-C ends."""
    windows_console.restore()


_WATCH = windows_api.SYNCHRONIZE | windows_api.PROCESS_QUERY_LIMITED_INFORMATION


def open_process(pid: int, access: int = _WATCH) -> int:
    """A handle to wait for the end of a process; 0: it is gone, or not for us."""
    try:
        return int(calls.OpenProcess(access, False, pid))
    except OSError:
        return 0


def _birth(process: int) -> int:
    times = (ctypes.c_uint64 * 4)()
    calls.GetProcessTimes(process, *[ctypes.byref(times, 8 * index) for index in range(4)])
    return int(times[0])


def exit_code(process: int) -> int:
    """The exit code of a process that has ended, all 32 bits of it."""
    code = windows_api.DWORD()
    calls.GetExitCodeProcess(process, ctypes.byref(code))
    return int(code.value)


def terminate(pid: int) -> bool:
    """End one process that is certainly alive; False: it cannot be done."""
    process = open_process(pid, windows_api.PROCESS_TERMINATE)
    if not process:
        return False
    try:
        calls.TerminateProcess(process, 128 + 9)
        return True
    except OSError:  # it is ending already
        return False
    finally:
        windows_files.close(process)


def environment(extra: "Mapping[str, str]") -> "dict[str, str]":
    """The caller's environment plus `extra`."""
    return {**os.environ, **extra}


def program(name: str, env: "Mapping[str, str]") -> str:
    """The file that a command's name means; never one of our shims. Raises FileNotFoundError."""
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
    """The program's file, and the command line that it takes apart into `argv`. Raises OSError.

    A batch file is run by cmd.exe, which reads the words before it does: in quotes all but a
    percent sign and a quote are just text, and a word with one of those is refused (what else
    could happen: CVE-2024-24576). Raises SandrunError then.
    """
    import subprocess

    path = program(argv[0], env)
    if not path.lower().endswith(_BATCH):
        return path, subprocess.list2cmdline(argv)
    for word in argv[1:]:
        if any(c in _UNSAFE for c in word):
            raise SandrunError(
                f"{path}: a batch file cannot be given {word!r}",
                "cmd.exe would take it apart; call the program that is behind the file",
            )
    shell = env.get("COMSPEC") or os.path.join(os.environ["SYSTEMROOT"], "System32", "cmd.exe")
    words = " ".join(f'"{path}"' if at == 0 else _quoted(word) for at, word in enumerate(argv))
    return shell, f'"{shell}" /d /s /c "{words}"'


def _quoted(word: str) -> str:
    end = len(word) - len(word.rstrip("\\"))
    return f'"{word}{word[len(word) - end :]}"'  # doubled, or the last would quote the quote


def direct(argv: "list[str]", env: "Mapping[str, str]", caller: CallerState) -> int:
    """Start the command, in nothing; its pid. Raises OSError when it cannot be executed."""
    import subprocess

    path, line = command_line(argv, env)
    # All inheritable handles go to the command, as without us; ours are not inheritable.
    process = subprocess.Popen(line, executable=path, env=dict(env), close_fds=False)
    _started.append(process)
    return process.pid


def failure(caller: CallerState) -> "tuple[str, int, str]":
    """A command that was started was executed."""
    return "", 0, ""


def die_of(signum: int) -> None:
    """There is no dying of a signal here: the exit code tells."""
