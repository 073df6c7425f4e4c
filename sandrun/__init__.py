"""One project command at a time, inside a kernel limit on memory.

The command line is the interface; `sandrun.cli` starts there. Nothing is imported here, because
every `sandrun -- true` pays for it; the names for Python programs (`sandrun.api`) come when they
are asked for.
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
