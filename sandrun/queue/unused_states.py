"""Removing the state of queues that nobody uses any more; otherwise one per project would remain.

Promises
- Exclusion is never lost by it, whatever version of sandrun the others run, and wherever this
  process is killed or stopped.
- Only what is proved to be unused is removed: a directory of ours with a name of ours, in which the
  last run ended a day ago, no ticket is alive, nothing is paused, no place is kept, no killed run
  remains to be cleaned up after, and every file is of a known kind.

Invariants
- Only the process that has locked a lock file removes it. Every version of sandrun compares fstat
  with stat after each lock, so the lock of a removed file admits nobody: a process that waited for
  it opens the file that is there now.
- The second lock files are removed before the first: nobody finds only the second held.
- rmdir(2) removes only an empty directory. If a run has a ticket in it, it stays. A run that has it
  open without a ticket cannot make one, and starts over (`StateGone`).
"""

import os
import sys
import time

assert sys.platform != "win32"

from sandrun.model import SandrunError
from sandrun.queue import Queue, read_holder_line
from sandrun.queue.posix_run_lock import LockFile
from sandrun.queue.queue import StateGone, slot_file, slot_numbers
from sandrun.queue.state import is_state_name, lock_root, open_state

IDLE = 86400.0
"""Seconds since the last run after which a queue counts as unused."""
_NAMES = 32
_TRIES = 4
"""How many names are checked at a time, and how many directories are tried. The whole may cost a
run two milliseconds, and a directory takes up to 0.4."""
_REPLACEABLE = {"queue.txt", "fallback-noted"}
"""Files that each run would make again."""


def remove_some(root: str) -> None:
    """Remove a few unused state directories below `root`, starting at a random one.

    At a random one, so that directories that cannot be removed do not hide the others forever.
    """
    seconds = _listing(lock_root())
    # A cleaner of /tmp removes a state directory, but not its second lock file.
    stems = {name.partition(".")[0] for name in (*_listing(root), *seconds)}
    names = sorted(filter(_is_state, stems))
    first = int.from_bytes(os.urandom(4), "little") % max(1, len(names))
    since = time.time() - IDLE
    checked = (names[first:] + names[:first])[:_NAMES]
    for name in [n for n in checked if _last_used(os.path.join(root, n)) < since][:_TRIES]:
        try:
            locks = [slot_file(name, slot) for slot in slot_numbers(name, seconds)]
            _remove(os.path.join(root, name), locks, since)
        except (OSError, SandrunError, StateGone):
            pass  # another run uses it, or it is not what we make


def _listing(directory: str) -> "list[str]":
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _is_state(name: str) -> bool:
    """Whether a name is exactly that of a state directory of ours; other programs use the
    prefix."""
    words = name.split("-")
    is_hash = len(words) == 4 and len(words[2]) == 8 and not words[2].strip("0123456789abcdef")
    return is_hash and is_state_name(name)


def _last_used(path: str) -> float:
    """When the last run in the first slot ended. Reading (`sandrun status`) does not count."""
    for name in (os.path.join(path, slot_file("executor", 1)), path):
        try:
            return os.lstat(name).st_mtime
        except OSError:
            continue
    return 0.0


def _remove(path: str, seconds: "list[str]", since: float) -> None:
    """Remove a state directory and `seconds`, the second files of its run lock, unless they are
    needed or a run ended after `since`."""
    queue = Queue(path)
    locks = lock_root()
    folder = -1
    files = [_lock_file(queue.dir, path, slot_file("executor", slot)) for slot in queue.slots()]
    try:
        if seconds:
            folder = open_state(locks)
            files += [_lock_file(folder, locks, name) for name in seconds]
        queue.sweep()
        if queue.tickets() or not all(file.try_lock() for file in files):
            return
        if any(file.directory == queue.dir and _is_needed(file, since) for file in files):
            return
        names = set(queue.listing())
        if names - _REPLACEABLE - {file.name for file in files}:
            return
        for name in names & _REPLACEABLE:
            queue.unlink(name)
        for file in reversed(files):
            os.unlink(file.name, dir_fd=file.directory)
        os.rmdir(path)
    finally:
        for file in files:
            file.close()
        if folder >= 0:
            os.close(folder)
        queue.close()


def _is_needed(file: LockFile, since: float) -> bool:
    """Whether the slot's last run was killed, or ended after `since`."""
    was_killed = bool(read_holder_line(file.fd))
    return was_killed or not (file.is_new or os.fstat(file.fd).st_mtime < since)


def _lock_file(directory: int, path: str, name: str) -> LockFile:
    return LockFile(directory, os.path.join(path, name), name)
