"""`python -m sandrun` and the entry point (setup.py) do what the command `sandrun` does.

The environment is meant for the command: a `queue.py` on PYTHONPATH must not replace a module that
sandrun imports. The options -E and -P, in the first line of our own script, make Python ignore that
environment, and -S leaves out `site`, which a run does not need (2 ms and more, by what is
installed). An installer's wrapper and `-m` lack these options, so `isolate` does what can be done
after the start. It cannot undo what Python has already done with PYTHONHOME, with a `sitecustomize`
on PYTHONPATH, or with another package named `sandrun` there, which Python imports instead of ours.
"""

import gc
import os
import sys

from sandrun.bare import signal as _signal


def start() -> None:
    """Do what bin/sandrun does, for the reasons given there."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    gc.set_threshold(50_000)
    isolate()
    from sandrun import importer

    importer.install()
    from sandrun.cli import main

    main()


def isolate() -> None:
    """Let no directory from the user's environment shadow a module that exists elsewhere.

    Such directories are removed from sys.path. Those of installed packages, and our own, move to
    its end, behind everything that they could shadow. If a module of the standard library has
    already come from one of them (the wrapper of a pip before 25.3 imports `re`), start again.
    """
    own = os.path.dirname(os.path.dirname(_absolute(__file__)))
    standard = os.path.dirname(_absolute(os.__file__))
    foreign = []
    if sys.path[0] == own:  # our starter put it there
        del sys.path[0]
    elif not sys.flags.safe_path:
        foreign = sys.path[:1]  # the script's directory, or the current one
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
    """An absolute path, as in sys.path."""
    try:
        return os.path.abspath(path)
    except OSError:  # the current directory is gone
        return path


def _is_shadowed(folders: "tuple[str, ...]", standard: str) -> bool:
    """Whether a module named like one of the standard library was loaded from `folders`."""
    for name in sys.stdlib_module_names & sys.modules.keys():
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(folders) and not file.startswith(standard):
            return True
    return False


def _start_again(own: str) -> None:
    """Execute this process again with the same command line, without the user's directories."""
    from sandrun.platform import spawn

    code = f"import sys; sys.path.insert(0, {own!r}); from sandrun.__main__ import start; start()"
    words = [sys.executable, "-EPS", "-c", code, *sys.argv[1:]]
    os.execve(sys.executable, words, spawn.environment({}))


if __name__ == "__main__":
    start()
