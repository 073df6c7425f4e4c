"""`sandrun make-again`: the make that called us, started once more, inside a run (see sandrun.mk).

Promises that it gets the same words and the same environment as the first, so that whatever make
does with options, variables and a jobserver it does by itself. The words are the kernel's account
of the first make, not what make made of them: `MAKEFLAGS` knows no -f, -o or -W.

With -jN the two ends of the jobserver's pipe that the first make has made for itself stay open;
nobody uses them.

The first make may start itself anew when an included file has changed meanwhile; it must neither
run twice nor forget a failure, so a failure is left in a link named after that make. A make that
ignores errors (-i) asks for it: it prints `passed` only if the run was made and ended with 0.

A make that we started, in the directory where we started it, never comes here again.
"""

import contextlib
import os
import stat
import sys

from sandrun.config import project, settings
from sandrun.model import SandrunError, UsageError
from sandrun.platform import processes, spawn
from sandrun.queue import state

MARK = "SANDRUN_MAKE"
"""In the environment of the make inside: the directory in which it need not queue again."""
_IGNORES, _ENDED = "ignores", "ended"
"""The same variable for us: the first make ignores errors; the run is over, and it is asked how."""

_READ_ONCE = (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR)
_WITH_VALUE = "CIEfoW"  # short options whose value may be the next word
_LONG_DIRECTORY = "--directory"


def main(flags: "dict[str, object]", caller: spawn.CallerState) -> int:
    """Run the make that is our parent through the queue; the exit code. Raises SandrunError."""
    make = os.getppid()
    told = os.environ.pop(MARK, "")
    words, env = _account(make) if told == _ENDED or "MAKELEVEL" in os.environ else ([], {})
    if not words:
        raise UsageError("make-again is for sandrun.mk only", "include sandrun.mk in the Makefile")
    here = project.working_directory()
    if told != _ENDED and env.get(MARK) == os.path.realpath(here):
        raise SandrunError(
            "this make is inside the run, and its Makefile hides that from sandrun.mk",
            f"let it not set {MARK}",
        )
    restarted = env.pop("MAKE_RESTARTS", "")
    os.environ.clear()
    os.environ.update({**env, MARK: os.path.realpath(here)})
    root, chosen = spawn.interruptibly(
        caller, lambda: (root := project.find(here), settings.resolve(flags, root, here))
    )
    notes = _Notes(state.state_path(root, chosen.queue), make)
    if told == _ENDED:
        os.write(1, b"failed\n" if notes.read(1) else b"passed\n")
        return 0
    if restarted:
        return notes.read(0)
    command = [_program(words[0], make), *_stay_here(words[1:])]
    from sandrun.lifecycle import runner

    outcome = runner.run(command, chosen, root, caller)
    if outcome.code or told == _IGNORES:
        notes.leave(outcome.code)
    if outcome.interrupted:
        spawn.die_of(outcome.signal)
    return outcome.code


class _Notes:
    """How the run of a make failed, for that make only: a link in the queue's directory."""

    def __init__(self, directory: str, make: int) -> None:
        self.directory = directory
        self.name = _note(make)

    def leave(self, code: int) -> None:
        """Keep the code, in a directory made anew if somebody removed it. Raises SandrunError."""
        if sys.platform == "win32":
            return  # only Administrators may make links: `read` then answers `missing`
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
            if made == "made" and pid.isdigit() and name != _note(int(pid)):  # that make is over
                with contextlib.suppress(FileNotFoundError):  # another one's sweep
                    os.unlink(name, dir_fd=directory)

    def read(self, missing: int) -> int:
        try:
            return int(os.readlink(os.path.join(self.directory, self.name)))
        except FileNotFoundError:
            return missing


def _note(pid: int) -> str:
    """A name that no other process, before or after, has."""
    try:
        return f"made.{pid}.{processes.Stat(pid).start}"
    except OSError:
        return f"made.{pid}.gone"


def _account(pid: int) -> "tuple[list[str], dict[str, str]]":
    """The words and the environment with which a process was started."""
    return processes.arguments(pid), processes.environ(pid)


def _program(name: str, pid: int) -> str:
    if "/" not in name or name[0] == "/" or sys.platform == "win32":
        return name
    try:
        # Its name was relative to where it was before -C.
        return os.readlink(f"{processes.PROC}/{pid}/exe")
    except OSError:
        return name


def _stay_here(words: "list[str]") -> "list[str]":
    """The words of a make that is where its -C options led: each becomes `-C .`.

    Raises UsageError for a Makefile that can be read once only, as it was.
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
    """The short form of a long option whose value is the next word; '' for all others."""
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
    """A bundle of short options, and the letter whose value is the next word."""
    for at, letter in enumerate(word[1:], 1):
        if letter in "jlO":  # takes the rest of the word, if there is one
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
    """Raise UsageError for what the first make has read, and no other can: a pipe, a terminal.

    /dev/fd/63 is ours too: make hands down what it was given.
    """
    try:
        once = makefile == "-" or stat.S_IFMT(os.stat(makefile).st_mode) in _READ_ONCE
    except OSError:
        return  # make will say so
    if once and makefile != os.devnull:
        raise UsageError(
            "a makefile on standard input or in a pipe can be read only once",
            f"sandrun -- make -f {makefile if makefile == '-' else '<(...)'}",
        )
