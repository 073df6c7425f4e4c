"""Which launcher a build gets; all else is in pyproject.toml.

- An entry point works in every environment: installers write its wrapper, also where a path has a
  space or is longer than a `#!` line may be, and put only one line into a script of ours. But the
  wrapper of pip before 25.3 imports `re`: 6 ms, half the price of a whole interpreter.
- So if pip installs this checkout right now into the environment whose Python builds it, and the
  path of that fits into such a line, the command is our own script. Nobody else gets that wheel:
  pip keeps only those of unpacked archives (and of commits), which lie in a directory of its own.
- The script's first line has options that keep the user's PYTHONPATH and PYTHONHOME out, and that
  leave out `site`: 2 ms and more. Installers write a `#!python` line anew, without them (fix_script
  in pip's operations/install/wheel.py), so that line is written here; not where another program
  than this Python installs (uv).
"""

import os
import sys
from typing import Any

from setuptools import Distribution, setup  # before distutils, which is setuptools' then

from distutils.command.build_scripts import build_scripts  # isort: skip

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
    return len(os.fsencode(f"#!{python} -EPS\n")) <= _LINE and not set(python) & set(" \t")


class Scripts(build_scripts):
    """Scripts for this Python, where it is the one that runs pip."""

    def finalize_options(self) -> None:
        super().finalize_options()
        try:
            if os.path.samefile(f"/proc/{os.getppid()}/exe", sys.executable):
                self.executable = sys.executable
        except OSError:
            pass  # `#!python`, which the installer replaces


class Build(Distribution):
    """What pyproject.toml says, with the faster of the two launchers where it is safe."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        super().parse_config_files(*args, **kwargs)
        if installs_here() and fits_into_a_line(sys.executable):
            self.entry_points = {}
            self.scripts = ["sandrun/bin/sandrun"]
            self.cmdclass["build_scripts"] = Scripts


setup(distclass=Build)
