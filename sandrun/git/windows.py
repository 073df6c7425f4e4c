"""`sandrun git ARGS...` on Windows: plain git, without a guard."""

import os

from sandrun import messages
from sandrun.model import EXIT_NOT_FOUND
from sandrun.platform import windows_spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def main(
    arguments: "list[str]", flags: "Mapping[str, object]", caller: windows_spawn.CallerState
) -> int:
    """Run git; its exit code."""
    import subprocess

    windows_spawn.restore(caller)
    try:
        path = windows_spawn.program("git", os.environ)
    except FileNotFoundError:
        messages.error("git: command not found")
        return EXIT_NOT_FOUND
    return subprocess.call([path, *arguments])
