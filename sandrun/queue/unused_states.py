"""Removing the state of queues that are no longer used; otherwise one per project would remain.

Promises
- Removal never breaks exclusion, whatever version of sandrun other processes run, and at whatever
  point this process is killed or stopped.
- Only a directory that is proved to be unused is removed: it is ours and has a name of ours, its
  last run ended over a day ago, no ticket is alive, nothing is paused, no place is kept, no killed
  run is yet to be cleaned up after, and every file is of a known kind.

Invariants
- Only the process that has locked a lock file removes it. Every version of sandrun compares fstat
  with stat after each lock, so the lock of a removed file admits no run: a process that waited for
  it opens the file that now has the name.
- The second lock files are removed before the first, so no run finds only the second one held.
- rmdir(2) removes only an empty directory, so one with a ticket remains. A run that has a removed
  directory open cannot make a ticket in it, and starts over (`StateGone`).
"""

import os
import sys
import time

assert sys.platform != "win32"

from sandrun.model import SandrunError
from sandrun.queue import Queue, read_holder_line
from sandrun.queue.posix_run_lock import LockFile
from sandrun.queue.queue import StateGone
from sandrun.queue.state import is_state_name, lock_root, open_state, slot_file, slot_numbers

IDLE = 86400.0
"""Seconds since the last run after which a queue counts as unused."""
_NAMES = 32
_TRIES = 4
"""How many names a run checks, and how many directories it then tries to remove. That may take two
milliseconds in all, and a directory takes up to 0.4."""
_REPLACEABLE = {"queue.txt", "fallback-noted"}
"""Files that any run would create again."""


def remove_some(root: str) -> None:
    """Remove a few unused state directories below `root`.

    It starts at a random one, so that others are not hidden forever by some that cannot be removed.
    """
    second_files = _listing(lock_root())
    # A cleaner of /tmp removes a state directory, but not its second lock file.
    stems = {name.partition(".")[0] for name in (*_listing(root), *second_files)}
    names = sorted(filter(_is_state, stems))
    first = int.from_bytes(os.urandom(4), "little") % max(1, len(names))
    since = time.time() - IDLE
    checked = (names[first:] + names[:first])[:_NAMES]
    for name in [n for n in checked if _last_used(os.path.join(root, n)) < since][:_TRIES]:
        try:
            locks = [slot_file(name, slot) for slot in slot_numbers(name, second_files)]
            _remove(os.path.join(root, name), locks, since)
        except (OSError, SandrunError, StateGone):
            pass  # another run uses it, or it is not one of ours


def _listing(directory: str) -> "list[str]":
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _is_state(name: str) -> bool:
    """Whether a name has exactly the form of a state directory of ours; other programs use the
    prefix, too."""
    words = name.split("-")
    is_hash = len(words) == 4 and len(words[2]) == 8 and not words[2].strip("0123456789abcdef")
    return is_hash and is_state_name(name)


def _last_used(path: str) -> float:
    """When the last run in the first slot ended. Mere reading (`sandrun status`) does not count."""
    for name in (os.path.join(path, slot_file("executor", 1)), path):
        try:
            return os.lstat(name).st_mtime
        except OSError:
            continue
    return 0.0


def _remove(path: str, second_files: "list[str]", since: float) -> None:
    """Remove a state directory and `second_files`, the second files of its run lock, unless they
    are needed or a run ended after `since`."""
    queue = Queue(path)
    locks = lock_root()
    folder = -1
    files = [_lock_file(queue.dir, path, slot_file("executor", slot)) for slot in queue.slots()]
    try:
        if second_files:
            folder = open_state(locks)
            files += [_lock_file(folder, locks, name) for name in second_files]
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
