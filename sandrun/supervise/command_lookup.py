"""Whether a command can be executed, whether it may still appear, and what the user meant if not.

Imported only by a run that waits for its turn or for a git, or that could not start. A mistyped
command is refused before the wait; a command that may still be created is not.
"""

import errno
import os
import sys

from sandrun import messages
from sandrun.config import options
from sandrun.model import command_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OPERATORS = frozenset("|&;<>$`\n")
"""Characters that mean something to a shell and are rare in the name of a command."""
_BUILTINS = frozenset(
    (".", "alias", "cd", "eval", "exec", "export", "set", "source", "ulimit", "umask", "unset")
)

_OURS = {"help": "--help", "version": "--version", "run": ""}
"""Subcommands of many tools, and the option of sandrun for it; '': none is needed."""


def refusal(name: str, project: str, since: float) -> int:
    """The errno with which the command `name` would fail to start, so that it need not wait; 0: it
    may wait.

    It may also wait if a run ahead could be creating it: a relative path, a path below the
    `project`, or a word where PATH leads into the project. A file that exists and cannot be
    executed is being created only if it changed since `since`, when the first of those runs began.
    """
    number, file = _find(name)
    if not number:
        return 0
    if file:
        is_done = os.path.isdir(file) or os.stat(file).st_ctime < since
        return number if is_done else _allow_wait(name)
    if not name or _is_line(name):
        return number
    if os.path.dirname(name):
        may_appear = not os.path.isabs(name) or _is_below(name, project)
    else:
        may_appear = any(_is_below(f, project) for f in _folders()) and not _meant(name)
    return _allow_wait(name) if may_appear else number


def _allow_wait(name: str) -> int:
    messages.status(f"{name}: cannot be executed yet; waiting, because what runs now may create it")
    return 0


def _find(name: str) -> "tuple[int, str]":
    """0 if `name` can be executed (execvp(3)), else the errno and the file that causes it."""
    if sys.platform == "win32":
        from sandrun.platform import spawn

        try:
            return 0, spawn.program(name, os.environ)
        except FileNotFoundError:
            return errno.ENOENT, ""
    found = ""
    folders = [""] if os.path.dirname(name) else _folders()
    for file in [os.path.join(folder, name) for folder in folders] if name else []:
        if os.path.isfile(file) and os.access(file, os.X_OK):
            return 0, file
        if os.path.exists(file):
            found = found or file
    return errno.EACCES if found else errno.ENOENT, found


def _folders() -> "list[str]":
    return os.environ.get("PATH", os.defpath).split(os.pathsep)


def _is_below(path: str, project: str) -> bool:
    return os.path.realpath(path).startswith(os.path.join(os.path.realpath(project), ""))


def hint(command: "list[str]") -> str:
    """What the user may have meant by a command that does not exist; '' if nothing is close."""
    name = command[0]
    if name in _BUILTINS or _is_line(name):
        import shlex

        line = name if len(command) == 1 else shlex.join(command)
        return f"a shell's line goes to a shell: sandrun -- sh -c {shlex.quote(line)}"
    if not _find(name)[0]:
        return "it exists, but the interpreter that its first line (#!) names does not"
    if os.path.dirname(name):
        return ""
    if "=" in name:
        return "a variable for the command: sandrun -- env NAME=VALUE COMMAND"
    if os.path.isfile(name) and os.access(name, os.X_OK):
        return f"did you mean: sandrun -- {os.path.join(os.curdir, name)}"
    if name in _OURS:
        line = command_text(["--", *(command[1:] or ["COMMAND"])])
        return f"did you mean: sandrun {_OURS[name] or line}"
    if meant := _meant(name):
        return f"did you mean: sandrun {meant}"
    near = options.closest(name, {entry for folder in _folders() for entry in _entries(folder)})
    return f"did you mean: sandrun -- {near}" if near else ""


def _is_line(name: str) -> bool:
    """Whether it is a shell's command line, not the name of a program: `make test`, `a && b`."""
    words = name.split()
    starts = len(words) > 1 and (words[0] in _BUILTINS or not _find(words[0])[0])
    return starts or bool(_OPERATORS & {*name})


def _meant(name: str) -> str:
    """Our subcommand that `name` resembles; '': none."""
    return options.closest(name, options.SUBCOMMANDS)


def _entries(folder: str) -> "Iterator[str]":
    try:
        yield from os.listdir(folder or ".")
    except OSError:
        return
