"""Measures the coverage of this process: `tests/setup coverage` has `sandrun` start it.

coverage's own patch of exec writes into the new program's environment, which is the command's and
must stay as it is. So what was measured is saved here, and nothing else is done: a git or a make
that takes sandrun's place would lose all of it.
"""

import atexit
import os
import sys
from collections.abc import Callable
from typing import Any

import coverage


def start(ini: str) -> None:
    measured = coverage.Coverage(config_file=ini, messages=False)
    measured.start()
    atexit.register(measured.save)
    os.execv, os.execve = _saving(os.execv), _saving(os.execve)


def note_all_files(ini: str) -> None:
    """A file that no process has imported is in no other data: it was not run at all."""
    nothing = coverage.Coverage(config_file=ini, source=["sandrun", "backends"], messages=False)
    nothing.start()
    nothing.save()


def _saving(exec: "Callable[..., Any]") -> "Callable[..., Any]":
    def save_and_exec(*arguments: Any) -> Any:
        running = coverage.Coverage.current()  # a forked child's is not its parent's
        if running:
            running.save()
        return exec(*arguments)

    return save_and_exec


if __name__ == "__main__":
    note_all_files(sys.argv[1])
