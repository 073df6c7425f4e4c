"""`sandrun make-again`: start the make that called us again, inside a run (see sandrun.mk).

Promises that the second make gets the words and the environment of the first, so that it handles
options, variables and a jobserver by itself. The words are those that the kernel reports for the
first make, not make's own account of them: `MAKEFLAGS` contains no -f, -o or -W.

With -jN, both ends of the pipe of the first make's jobserver stay open, unused, in the second.

The first make executes itself again if an included file has changed. The run must not start twice
then, and its failure must not be lost, so its exit code is kept in a symbolic link that is named
after that make. A make that ignores errors (-i) asks for the result, and we print `passed` only if
the run took place and ended with 0.

A make that we started, in the directory where we started it, is refused.
"""

import contextlib
import os
import stat
import sys

from sandrun.config import project, settings
from sandrun.model import SandrunError, UsageError
from sandrun.platform import processes, spawn
from sandrun.queue import state

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.model import Outcome

    Run = Callable[[list[str], settings.Settings, str, spawn.CallerState], Outcome]

MARK = "SANDRUN_MAKE"
"""In the environment of the inner make: the directory in which it must not queue again."""
_IGNORES, _ENDED = "ignores", "ended"
"""Values of MARK that sandrun.mk sets: the first make ignores errors; it asks for the result."""

_READ_ONCE = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)
_WITH_VALUE = "CIEfoW"  # short options whose value may be the next word
_LONG_DIRECTORY = "--directory"


def main(flags: "dict[str, object]", caller: spawn.CallerState, run: "Run") -> int:
    """Run our parent make again, in the queue, by `run`. Returns the exit code. Raises
    SandrunError."""
    make = os.getppid()
    mode = os.environ.pop(MARK, "")
    words, env = _account(make) if mode == _ENDED or "MAKELEVEL" in os.environ else ([], {})
    if not words:
        raise UsageError("make-again is for sandrun.mk only", "include sandrun.mk in the Makefile")
    here = project.working_directory()
    if mode != _ENDED and env.get(MARK) == os.path.realpath(here):
        raise SandrunError(
            "this make is inside the run, but its Makefile hides that from sandrun.mk",
            f"remove {MARK} from the Makefile",
        )
    restarted = env.pop("MAKE_RESTARTS", "")
    os.environ.clear()
    os.environ.update({**env, MARK: os.path.realpath(here)})
    root, chosen = spawn.interruptibly(
        caller, lambda: (root := project.find(here), settings.resolve(flags, root, here))
    )
    notes = _Notes(state.state_path(root, chosen.queue), make)
    if mode == _ENDED:
        os.write(1, b"failed\n" if notes.read(1) else b"passed\n")
        return 0
    if restarted:
        return notes.read(0)
    command = [_program(words[0], make), *_stay_here(words[1:])]
    outcome = run(command, chosen, root, caller)
    if outcome.code or mode == _IGNORES:
        notes.leave(outcome.code)
    if outcome.interrupted:
        spawn.die_of(outcome.signal)
    return outcome.code


class _Notes:
    """The exit code of a make's run, for that make only: a link in the state directory."""

    def __init__(self, directory: str, make: int) -> None:
        self.directory = directory
        self.name = _note(make)

    def leave(self, code: int) -> None:
        """Keep the code, unless that make is gone. Makes the state directory again if it was
        removed. Raises SandrunError."""
        if sys.platform == "win32":
            return  # only administrators may make links: `read` then returns `missing`
        if not self.name:
            return
        while True:
            directory = state.open_state(self.directory)
            try:
                self._sweep(directory)
                os.symlink(str(code), self.name, dir_fd=directory)
                return
            except FileNotFoundError:
                continue  # removed just now
            finally:
                os.close(directory)

    def _sweep(self, directory: int) -> None:
        for name in os.listdir(directory):
            made, _, pid = name.rpartition(".")[0].partition(".")
            if made == "made" and pid.isdigit() and name != _note(int(pid)):  # that make has exited
                with contextlib.suppress(FileNotFoundError):  # another sweep was faster
                    os.unlink(name, dir_fd=directory)

    def read(self, missing: int) -> int:
        """The code; `missing` if none was kept."""
        if not self.name:
            return missing
        try:
            return int(os.readlink(os.path.join(self.directory, self.name)))
        except FileNotFoundError:
            return missing


def _note(pid: int) -> str:
    """A name that no other process, earlier or later, can have; '' for a process that is gone."""
    try:
        return f"made.{pid}.{processes.Stat(pid).start}"
    except OSError:
        return ""


def _account(pid: int) -> "tuple[list[str], dict[str, str]]":
    """The arguments and the environment with which a process was started."""
    return processes.arguments(pid), processes.environ(pid)


def _program(name: str, pid: int) -> str:
    if "/" not in name or name[0] == "/" or sys.platform == "win32":
        return name
    try:
        # Its name was relative to the directory before -C.
        return os.readlink(f"{processes.PROC}/{pid}/exe")
    except OSError:
        return name


def _stay_here(words: "list[str]") -> "list[str]":
    """The words for a make that starts in the directory to which its -C options led: each of them
    becomes `-C .`.

    Raises UsageError for a makefile that can be read only once: the first make has read it.
    """
    kept: list[str] = []
    value_of = ""
    for at, word in enumerate(words):
        if value_of:
            kept.append("." if value_of == "C" else word)
            if value_of == "f":
                _check_readable(word)
            value_of = ""
        elif word == "--":
            return kept + words[at:]
        elif word.startswith("--d") and _LONG_DIRECTORY.startswith(word.partition("=")[0]):
            kept.append(word.partition("=")[0] + "=." if "=" in word else word)
            value_of = "" if "=" in word else "C"
        elif word.startswith("--"):
            kept.append(word)
            value_of = _long_value(word)
        elif word[:1] == "-":
            short, value_of = _short(word)
            kept.append(short)
        else:
            kept.append(word)
    return kept


def _long_value(word: str) -> str:
    """The short form of a long option whose value is the next word; '' for other options."""
    name, given, value = word.partition("=")
    forms = {"--file": "f", "--makefile": "f", "--include-dir": "I", "--eval": "E",
             "--old-file": "o", "--assume-old": "o", "--what-if": "W", "--new-file": "W",
             "--assume-new": "W"}  # fmt: skip
    found = {form for long, form in forms.items() if len(name) > 3 and long.startswith(name)}
    if given:
        if found == {"f"}:
            _check_readable(value)
        return ""
    return found.pop() if len(found) == 1 else ""


def _short(word: str) -> "tuple[str, str]":
    """A bundle of short options, and the letter whose value is the next word, or ''."""
    for at, letter in enumerate(word[1:], 1):
        if letter in "jlO":  # takes the rest of the word, if any
            break
        if letter in _WITH_VALUE:
            value = word[at + 1 :]
            if not value:
                return word, letter
            if letter == "f":
                _check_readable(value)
            return (word[: at + 1] + ".", "") if letter == "C" else (word, "")
    return word, ""


def _check_readable(makefile: str) -> None:
    """Raise UsageError for a makefile that only the first make could read: a pipe, a terminal.

    /dev/fd/63 is such a pipe for us too, because make passes on the descriptors that it inherited.
    """
    try:
        once = makefile == "-" or stat.S_IFMT(os.stat(makefile).st_mode) in _READ_ONCE
    except OSError:
        return  # make will report it
    if once and makefile != os.devnull:
        raise UsageError(
            "a makefile on standard input or in a pipe can be read only once",
            f"sandrun -- make -f {makefile if makefile == '-' else '<(...)'}",
        )
