"""`sandrun git ARGS...`: guard one git command, then become git.

command line -> needed locks -> (none: exec) -> repository -> turn -> git's lock files -> exec
"""

import os
import sys

from sandrun import messages
from sandrun.bare import signal as _signal
from sandrun.git import classify, git_processes, record_locks, repository
from sandrun.model import EXIT_NOT_FOUND, SandrunError
from sandrun.platform import spawn

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

    from sandrun.git.waiter import Wait

_READS = classify.REFRESH | classify.PAGED | classify.ALWAYS_LOCKS
_SAME_HOLDER_SECONDS = 2.0
"""How long a `describe --dirty` waits for one holder of the tree's turn."""

SHIM_MARK = b"sandrun shim"
"""In the first lines of a shim, so that a search of PATH can tell it from the real git."""
SHIM_VARIABLE = "SANDRUN_SHIM"
"""The variable in which a shim keeps its state (`sandrun.git.shim`)."""


def main(arguments: "list[str]", flags: "Mapping[str, object]", caller: spawn.CallerState) -> int:
    """Wait for the locks that git needs for `arguments`, then become git; `unlock` returns."""
    # From here on signals act on us as on git: there is nothing to clean up.
    spawn.restore(caller)
    # Our own messages to a closed pipe must not end us, since git may print nothing.
    pipe = _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    verbose, quiet = (int(str(flags.get(name, 0))) for name in ("verbose", "quiet"))
    messages.setup(verbose, quiet, str(flags.get("color", "auto")))
    env = spawn.environment({})
    tool, place = _found_by_shim(env)
    if tool:
        _guard_other(tool, arguments, env, flags)
        _signal.signal(_signal.SIGPIPE, pipe)
        return _become(place, [tool, *arguments], env)
    command = classify.parse(arguments)
    if command.word == "unlock":
        from sandrun.git import unlock

        return unlock.main(_repository(command, env), command.arguments)
    git = place or real_git(env)
    needed = classify.needs(command)
    if needed is None:
        from sandrun.git import aliases

        needed = aliases.needs(git, command, env)
    if needed & ~_READS:
        _guard(_repository(command, env), needed, flags)
    elif needed:
        if not _may_refresh(_repository(command, env), needed, flags):
            env.setdefault("GIT_OPTIONAL_LOCKS", "0")  # only status obeys it
            if needed & classify.PAGED:
                arguments = ["-c", "diff.autoRefreshIndex=false", *arguments]
    elif not any(map(_is_terminal, (0, 1, 2))):
        # No terminal: a reader in the background must not take optional locks.
        env.setdefault("GIT_OPTIONAL_LOCKS", "0")
    _signal.signal(_signal.SIGPIPE, pipe)
    return _become(git, ["git", *arguments], env)


def _guard_other(
    tool: str, arguments: "list[str]", env: "Mapping[str, str]", flags: "Mapping[str, object]"
) -> None:
    """Acquire a turn for a program other than git that uses git's locks."""
    from sandrun.git import other_tools

    command = classify.parse_other(tool, arguments)
    needed = classify.needs(command) or 0
    if other_tools.is_paged(tool, arguments) and any(map(_is_terminal, (0, 1, 2))):
        needed = needed and classify.FOREIGN
    if needed:
        _guard(_repository(command, env), needed, flags)


def _repository(
    command: classify.Invocation, env: "Mapping[str, str]"
) -> "repository.Repository | None":
    try:
        cwd = os.path.join(os.getcwd(), *command.directories)
    except OSError:  # a deleted directory
        return None
    named = {**env, **command.variables}
    if command.bare and "GIT_DIR" not in named:
        named["GIT_DIR"] = cwd
    return repository.find(cwd, named)


def _guard(
    repo: "repository.Repository | None", needed: int, flags: "Mapping[str, object]"
) -> None:
    if repo is None:  # git reports it, or creates one
        return
    enclosing = git_processes.enclosing_git(repo)
    wait: Wait | None = None

    def patient() -> "Wait":
        nonlocal wait
        if wait is None:
            wait = _wait(repo, flags)
        return wait

    held = record_locks.acquire(repo, needed, enclosing, lambda *lock: patient().turn(*lock))
    for fd in held:
        os.set_inheritable(fd, True)
    if enclosing:
        messages.decision(f"{repo.top}: inside {git_processes.text([enclosing])}: not waiting")
        return
    from sandrun.git import lock_files

    if lock_files.first_of(lock_files.in_the_way(repo, needed)):
        patient().locks(needed)
    if needed == classify.FOREIGN:
        for fd in held:
            os.close(fd)


def _may_refresh(
    repo: "repository.Repository | None", needed: int, flags: "Mapping[str, object]"
) -> bool:
    """Whether a reader may lock the index to refresh it: only while it holds the tree's turn, so
    that no guarded writer meets that lock. It does not wait for the turn, except `describe`, which
    locks the index in any case. It does not hold the turn if a pager may keep it alive."""
    if repo is None:
        return True
    if needed & classify.PAGED and any(map(_is_terminal, (0, 1, 2))):
        return False
    refused = False

    def wait(*lock: int) -> bool:
        nonlocal refused
        patient = needed & classify.ALWAYS_LOCKS
        refused = not (patient and _wait(repo, flags, _SAME_HOLDER_SECONDS).turn(*lock))
        return not refused

    for fd in record_locks.acquire(repo, classify.REFRESH, git_processes.enclosing_git(repo), wait):
        os.set_inheritable(fd, True)
    return not refused


def _wait(
    repo: repository.Repository,
    flags: "Mapping[str, object]",
    per_holder: float = float("inf"),
) -> "Wait":
    """Settings are read only here, because a git that need not wait uses none of them."""
    from sandrun.config import project, settings
    from sandrun.git.waiter import Wait

    chosen = settings.resolve(flags, project.find(repo.top))
    return Wait(repo, chosen.git_wait, "running git anyway", per_holder)


def _found_by_shim(env: "Mapping[str, str]") -> "tuple[str, str]":
    """The tool, '' for git, and the path of it that the shim which became this process found; ('',
    '') without a shim."""
    fields = env.get(SHIM_VARIABLE, "").partition("\n")[0].split(":")
    if fields[0] != str(os.getpid()) or len(fields) < 8:
        return "", ""
    return "" if fields[5] == "git" else fields[5], fields[-2]


def real_git(env: "dict[str, str]") -> str:
    """The first git on PATH that is no shim of ours. It is recorded in `env` for the shim, in case
    that git comes back to it by PATH.

    Raises SandrunError.
    """
    for directory in env.get("PATH", os.defpath).split(":"):
        file = os.path.join(directory or ".", "git")
        if os.access(file, os.X_OK) and os.path.isfile(file) and not _is_shim(file):
            env[SHIM_VARIABLE] = f"{os.getpid()}:{os.getppid()}:0:0::git::{file}:\n\n"
            return os.path.abspath(file)
    raise SandrunError("git: command not found", "install git", EXIT_NOT_FOUND)


def _is_shim(file: str) -> bool:
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return SHIM_MARK in os.read(fd, 512)
    finally:
        os.close(fd)


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def _become(program: str, argv: "list[str]", env: "Mapping[str, str]") -> "NoReturn":
    try:
        os.execve(program, argv, env)
    except OSError as error:
        raise SandrunError(f"cannot execute {program}: {error.strerror}", "", 126) from None
