"""sandrun on Windows: what stands in for the core's modules that are about POSIX.

`stand_in` puts modules of this package into sys.modules under the core's names, as `os` does with
`posixpath` and `ntpath` for `os.path`. So the one path of a run (`sandrun.runner`) is the same
everywhere, no other module chooses a queue or a supervisor, and Linux pays nothing for it. A test
compares what the core takes from those names with what is there.

No system call but through `sandrun.platform.windows_api`.
"""

import sys

STAND_INS = ("keeper", "supervisor")
"""The modules of `sandrun` that this package has its own of."""


def stand_in() -> None:
    """Take the place of the core's modules; before any of them is imported."""
    core = sys.modules["sandrun"]
    for name in STAND_INS:
        module = __import__(f"sandrun.windows.{name}", fromlist=["*"])
        sys.modules[f"sandrun.{name}"] = module
        setattr(core, name, module)
