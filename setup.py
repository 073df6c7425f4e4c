"""Which launcher a build gets; all else is in pyproject.toml.

- An entry point works in every environment: installers write its wrapper, also where a path has a
  space or is longer than a `#!` line may be, and put only one line into a script of ours. But the
  wrapper of pip before 25.3 imports `re`: 6 ms, half the price of a whole interpreter.
- So if pip installs this checkout right now into the environment whose Python builds it, and the
  path of that fits into such a line, the command is our own script. Nobody else gets that wheel:
  pip keeps only those of unpacked archives (and of commits), which lie in a directory of its own.
"""

import os
import sys
from typing import Any

from setuptools import Distribution, setup

_LINE = 127  # bytes of a `#!` line that every Linux reads, execve(2); pip's own bound as well


def installs_here() -> bool:
    """Whether the parent is `pip install`; where that cannot be seen, it is not."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
    except OSError:
        return False
    kept = any(name.startswith("pip-") for name in os.getcwd().split(os.sep))
    return b"install" in words and any(b"pip" in word for word in words[:3]) and not kept


def fits_into_a_line(python: str) -> bool:
    return len(os.fsencode(f"#!{python}\n")) <= _LINE and not set(python) & set(" \t")


class Build(Distribution):
    """What pyproject.toml says, with the faster of the two launchers where it is safe."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        super().parse_config_files(*args, **kwargs)
        if installs_here() and fits_into_a_line(sys.executable):
            self.entry_points = {}
            self.scripts = ["sandrun/bin/sandrun"]


setup(distclass=Build)
