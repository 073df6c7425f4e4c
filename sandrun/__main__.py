"""`python -m sandrun` is the command `sandrun`, and so is the entry point: see setup.py.

The environment is the command's, and no part of ours: a `queue.py` on PYTHONPATH must not become
our own. Python sees to that by -E and -P, which our own script's first line has. An installer's
wrapper and `-m` have no such line, so there `isolate` does what can be done after the start. Not
undone is what Python did before: with PYTHONHOME, with a `sitecustomize` on PYTHONPATH, or with
another package named `sandrun` there, which is imported in our place.
"""

import gc
import os
import sys

from sandrun.bare import signal as _signal


def start() -> None:
    """Do what bin/sandrun does, which says why."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    gc.set_threshold(50_000)
    isolate()
    from sandrun.cli import main

    main()


def isolate() -> None:
    """Import nothing from where the user's environment points to, but what is nowhere else.

    Such directories leave sys.path. Those of installed packages, and the one that we are in, go to
    its end, behind all that they could shadow. If a module of the standard library has come from
    one of them already (the wrapper of a pip before 25.3 imports `re`), start again.
    """
    own = os.path.dirname(os.path.dirname(_absolute(__file__)))
    standard = os.path.dirname(_absolute(os.__file__))
    foreign = []
    if sys.path[0] == own:  # put there by who started us
        del sys.path[0]
    elif not sys.flags.safe_path:
        foreign = sys.path[:1]  # the script's, or the current one
    if not sys.flags.ignore_environment and (named := os.environ.get("PYTHONPATH")):
        foreign += [path for path in map(_absolute, named.split(os.pathsep)) if path != standard]
    users = getattr(sys.modules.get("site"), "USER_SITE", None)
    spare = [p for p in sys.path if p == users or (p in foreign and p.endswith("-packages"))]
    sys.path[:] = [p for p in sys.path if p not in (users, *foreign)] + spare
    if own not in sys.path:
        sys.path.append(own)
    if foreign and _is_shadowed(tuple(os.path.join(path, "") for path in foreign), standard):
        _start_again(own)


def _absolute(path: str) -> str:
    """As sys.path has it."""
    try:
        return os.path.abspath(path)
    except OSError:  # the current directory is gone
        return path


def _is_shadowed(folders: "tuple[str, ...]", standard: str) -> bool:
    """Whether a module of the standard library, by its name, was loaded from one of `folders`."""
    for name in sys.stdlib_module_names & sys.modules.keys():
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(folders) and not file.startswith(standard):
            return True
    return False


def _start_again(own: str) -> None:
    """The same process, command line and environment, without what Python takes from there."""
    from sandrun.platform import spawn

    code = f"import sys; sys.path.insert(0, {own!r}); from sandrun.__main__ import start; start()"
    words = [sys.executable, "-EP", "-c", code, *sys.argv[1:]]
    os.execve(sys.executable, words, spawn.environment({}))


if __name__ == "__main__":
    start()
