"""git's own lock files: which ones a command would fail on, and waiting until they are gone.

Promises to change none of them. A lock is held while its file exists: git creates it with O_EXCL
and renames it over the file that it protects, or removes it. git does not keep it open: during the
editor of `git commit -a` no process has index.lock open. So neither that nor its age tells whether
the owner lives (`sandrun.git.stale` proves it).
"""

import os
import sys
import time

from sandrun import messages
from sandrun.git import classify, git_processes
from sandrun.git.repository import Repository, head_ref
from sandrun.model import span_text

assert sys.platform != "win32"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_REFTABLE = "reftable/tables.list.lock"
_PACKING = (
    "gc.pid.lock",
    "objects/maintenance.lock",  # `maintenance run` does nothing if it exists, with exit code 0
    "objects/info/commit-graph.lock",
    "objects/info/commit-graphs/commit-graph-chain.lock",
    "objects/pack/multi-pack-index.lock",
)
SILENCE = 0.3
"""Seconds; a shorter wait is not reported."""


def in_the_way(repo: Repository, needs: int) -> "list[str]":
    """The lock files that would make a command with these needs fail."""
    paths = []
    names = [_REFTABLE]
    if needs & (classify.TREE | classify.ALL):
        paths += [repo.index + ".lock", os.path.join(repo.git_dir, "HEAD.lock")]
        if repo.git_dir != repo.common_dir:  # HEAD of a linked worktree
            paths.append(os.path.join(repo.git_dir, _REFTABLE))
        branch = head_ref(repo)
        names += [branch + ".lock"] if branch else []
    if needs & (classify.REFS | classify.ALL):
        names += ["packed-refs.lock", "config.lock"]
    if needs & (classify.REMOTE | classify.ALL):
        names.append("shallow.lock")
    if needs & classify.ALL:
        names += _PACKING
    return paths + [os.path.join(repo.common_dir, name) for name in names]


def first_of(paths: "list[str]") -> str:
    """The first of the files that exists; '' if none does."""
    return next((path for path in paths if os.path.lexists(path)), "")


def wait_gone(
    repo: Repository, paths: "list[str]", deadline: float, heal: "Callable[[str], bool]"
) -> str:
    """Wait until none of the lock files exists; return the one that remained, or ''.

    `heal` is called once for each: it moves the lock aside and returns True if it is provably
    stale.
    """
    from sandrun.git.inotify import Watch

    watch = Watch({os.path.dirname(path) for path in paths})
    began = time.monotonic()
    asked: set[str] = set()
    reported = ""
    try:
        while lock := first_of(paths):
            if lock not in asked:
                asked.add(lock)
                if heal(lock):
                    continue
            now = time.monotonic()
            if now >= deadline:
                return lock
            if lock != reported and now - began >= SILENCE:
                reported = lock
                messages.status(f"{repo.top}: waiting for {owner_text(repo, lock)}")
            until = deadline if reported == lock else min(deadline, began + SILENCE)
            watch.sleep(max(0.01, until - now))
    finally:
        watch.close()
    return ""


def owner_text(repo: Repository, lock: str) -> str:
    """The owner of a lock and its name, for a message."""
    name = os.path.relpath(lock, repo.common_dir)
    owners = git_processes.openers(lock) or git_processes.possible_owners(repo)
    who = git_processes.text([pid for pid in owners if pid != os.getpid()])
    return f"{who or 'an unknown process'}, which has held {name} for {age_text(lock)}"


def age_text(lock: str) -> str:
    """The age of a lock file."""
    try:
        return span_text(max(0.0, time.time() - os.lstat(lock).st_ctime))
    except OSError:
        return "0 s"
