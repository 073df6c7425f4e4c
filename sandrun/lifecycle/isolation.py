"""The directories that `--private-tmp` and `--private-ipc` cover, and the paths that stay visible.

The covered directories are /tmp, /var/tmp and TMPDIR, or /dev/shm. Paths below them that the
command needs or may use are bound back: the project, its git directories, the directory where it
starts, its program, sandrun itself, the state of the queues that the run holds (so that a run
inside of it finds them), and paths in the environment (HOME, PATH, SSH_AUTH_SOCK, ...). TMPDIR is
not bound back: below a covered directory it is created empty, elsewhere it is covered itself.

`sandrun.lifecycle.namespaces` makes the mounts.
"""

import os
import sys

assert sys.platform == "linux"

from sandrun import messages
from sandrun.config import project
from sandrun.lifecycle import Request
from sandrun.lifecycle.namespaces import Plan, attempt, is_below, is_current
from sandrun.model import SandrunError
from sandrun.queue.state import lock_root, open_state, pool_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TEMPORARY = ("TMPDIR", "TEMP", "TMP")
"""Variables that name a directory for temporary files: in POSIX, and in Python's tempfile."""
_NOT_KEPT = frozenset((*_TEMPORARY, "PWD", "OLDPWD", "_"))
"""Variables whose directories are not bound back."""


def check(request: Request) -> None:
    """Raise SandrunError unless the run can have these directories. Called before the wait."""
    planned = plan(request, request.environment())
    for directory, _, _, kept in planned.steps:
        messages.decision(f"{directory} is the run's own, except: {', '.join(kept) or 'nothing'}")
    refused = attempt(planned)
    if refused:
        raise refused


def plan(request: Request, env: "Mapping[str, str]") -> Plan:
    """The plan for a run whose command gets the environment `env`. Raises SandrunError."""
    settings, cwd = request.settings, project.working_directory()  # its path may have changed
    top = _project(request, cwd)
    covered = ["/dev/shm"] if settings.private_ipc else []
    temporary: list[str] = []
    if settings.private_tmp:
        covered += ["/tmp", "/var/tmp"]
        temporary += (env.get(name, "") for name in _TEMPORARY)
    own = {os.path.realpath(path) for path in covered if os.path.isdir(path)}
    directories = own | {
        os.path.realpath(path) for path in temporary if os.path.isabs(path) and os.path.isdir(path)
    }
    _refuse({top, cwd, "/"}, env, own, directories - own)
    names = {top, cwd, "/", *temporary, *_state(request), *_git((top, cwd), env)}
    names |= {*_programs(request.command[0], cwd), *named(env)}
    if is_current(env.get("PWD", "")):
        names.add(env["PWD"])
    planned = Plan(sorted(directories), names, cwd, bool(settings.private_ipc))
    if settings.backend != "none":  # a monitor does not count a file that no process has open
        planned.options = f"size={settings.memory}"
    return planned


def _project(request: Request, cwd: str) -> str:
    """The project's path now that we are in `cwd`: it may have been renamed during the wait."""
    start, top = request.cwd, request.project
    is_inside = start == top or is_below(start, top)
    inner = start[len(top) :]
    return cwd.removesuffix(inner) if is_inside and cwd.endswith(inner) else top


def _refuse(
    needed: "set[str]", env: "Mapping[str, str]", own: "set[str]", temporary: "set[str]"
) -> None:
    """Raise SandrunError if covering a directory would hide what the run needs, or what it writes
    to HOME.

    `own` are the directories that the options cover, `temporary` those that only TMPDIR names. The
    latter may be any directory, so no other variable may name it, except sandrun's and those for
    temporary files (SLURM_TMPDIR, RUNNER_TEMP).
    """
    names = dict.fromkeys(map(os.path.realpath, needed), "")
    for name, value in env.items():
        is_temporary = "TMP" in name.upper() or "TEMP" in name.upper()
        if not (is_temporary or name in _NOT_KEPT or name.startswith("SANDRUN_")):
            paths = filter(os.path.isabs, {value, *value.split(":")})
            for path in map(os.path.realpath, paths):
                if path in temporary or name == "HOME":
                    names.setdefault(path, name)
    for path in sorted((own | temporary) & set(names)):
        name = names[path]
        hint = f"have {'TMPDIR' if path in temporary else name} name another one"
        raise SandrunError(
            f"the run cannot have a {path} of its own: "
            + (f"{name} names it" if name else "its project or directory is there"),
            hint if name else "start in a directory below it, or have TMPDIR name another one",
        )


def _state(request: Request) -> "Iterator[str]":
    """The state directories that a run inside of this one shares with it. Creates those of the pool
    and the locks, which any run may need."""
    for path in (pool_path(), lock_root()):
        try:
            os.close(open_state(path))
            yield path
        except SandrunError:
            continue  # the run that needs it reports the error
    yield request.state
    yield from map(os.path.dirname, request.enclosing.split(os.pathsep))


def _git(starts: "tuple[str, str]", env: "Mapping[str, str]") -> "Iterator[str]":
    from sandrun.git import repository

    for start in starts:
        found = repository.find(start, env)
        if found:
            yield from (found.git_dir, found.common_dir, found.top)


def _programs(name: str, cwd: str) -> "Iterator[str]":
    """The command's program, if it is given as a path, and sandrun's own files."""
    if "/" in name:
        path = os.path.normpath(os.path.join(cwd, name))
        yield path
        yield from _with_prefix(os.path.dirname(path))
    # Without `site`, sys.prefix is not that of the virtual environment (Python 3.11).
    prefix = os.path.dirname(os.path.dirname(sys.executable))
    yield from (os.path.join(cwd, path) for path in (prefix, sys.prefix, *filter(None, sys.path)))


_SEPARATORS = str.maketrans(":;,=@", "     ")


def named(env: "Mapping[str, str]") -> "Iterator[str]":
    """The absolute paths in the environment's values: alone, in lists, in D-Bus addresses."""
    for name, value in env.items():
        if name not in _NOT_KEPT:
            words = {value, *value.translate(_SEPARATORS).split()}
            for path in filter(os.path.isabs, words):
                yield from _with_prefix(os.path.normpath(path))
    host, _, number = env.get("DISPLAY", "").rpartition(":")
    if number and host in ("", "unix"):
        yield "/tmp/.X11-unix/X" + number.partition(".")[0]  # X(7)


def _with_prefix(path: str) -> "Iterator[str]":
    """`path`; for a directory of programs also its parent, which has their files (as in a venv)."""
    yield path
    above, name = os.path.split(path)
    if name in ("bin", "sbin"):
        yield above
