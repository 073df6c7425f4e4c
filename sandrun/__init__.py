"""One project command at a time, inside a kernel limit on memory.

The main interface is the command line (`sandrun.cli`). This module imports nothing, because every
`sandrun -- true` would pay for it. The names for Python programs (`sandrun.api`) are imported when
a program uses one.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandrun.api import (
        GaveUp,
        Options,
        Outcome,
        Run,
        Settings,
        run,
        run_async,
        start,
    )
    from sandrun.model import SandrunError

__all__ = [
    "GaveUp",
    "Options",
    "Outcome",
    "Run",
    "SandrunError",
    "Settings",
    "run",
    "run_async",
    "start",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        from sandrun import api

        return getattr(api, name)
    raise AttributeError(f"module 'sandrun' has no attribute {name!r}")
