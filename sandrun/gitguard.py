"""Letting a git operation that is under way finish before a run starts.

A live lock is never touched: this only waits. An ancestor git (a hook inside `git commit`) holds
the lock while it waits for us, so it never blocks.
"""

import os
import time

from sandrun import kernel, messages
from sandrun.model import span_text


def wait_quiet(project: str, patience: float) -> None:
    """Wait up to `patience` seconds for `.git/index.lock` in `project` to go; warn if it stays."""
    lock = os.path.join(project, ".git", "index.lock")
    if _inside_git():
        return
    deadline = time.monotonic() + patience
    messages.status(f"waiting for git: {lock} exists")
    while os.path.lexists(lock):
        if time.monotonic() >= deadline:
            messages.warn(
                f"{lock} is still there after {span_text(patience)}; going on without waiting",
                "a git command is under way, or one was killed: look with ps, then remove the lock",
            )
            return
        time.sleep(0.02)


def _inside_git() -> bool:
    for pid in kernel.ancestors(os.getpid()):
        try:
            if kernel.Stat(pid).name.startswith("git"):
                return True
        except OSError:
            continue
    return False
