"""Removing the state of queues that nobody uses any more, of which there is else one per project.

Promises
- Exclusion never fails by it, whatever version of sandrun the others are, and wherever in between
  this process is killed or stopped.
- Only what is proved to be of no use is removed: a directory of ours under a name of ours, whose
  last run ended a day ago, in which nobody runs or waits, nothing is paused, no place is kept, no
  killed run is to be cleaned up after, and no file is of a kind that we do not know.

Invariants
- A lock file is removed only by the process that has locked it. Everybody compares fstat with stat
  after each lock (`sandrun.queue`; every version did from the first on), so the lock of a removed
  file is nobody's turn: who waited for it opens the file that is there now.
- The second homes are removed before the first: nobody finds only the second held.
- rmdir(2) removes an empty directory only. Who came into it before has a ticket there, so it stays;
  who has it open but no ticket yet can make none, and starts over (`StateGone`).
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
"""Seconds since the last run after which a queue is taken for unused."""
_LOOKS = 32
_TRIES = 4
"""Names that are looked at in one go, and directories that are tried: of the two milliseconds at
most that this may take from a run, each of those takes up to 0.4."""
_SPENT = {"queue.txt", "fallback-noted"}
"""Files that each run would make again."""


def remove_some(root: str) -> None:
    """Remove what is unused of the state below `root`, at most a few, beginning anywhere.

    Anywhere, so that what cannot be removed never hides the others for good.
    """
    seconds = _listing(lock_root())
    # A cleaner of /tmp removes a state directory and leaves its second home.
    stems = {name.partition(".")[0] for name in (*_listing(root), *seconds)}
    names = sorted(filter(_is_state, stems))
    first = int.from_bytes(os.urandom(4), "little") % max(1, len(names))
    since = time.time() - IDLE
    looked_at = (names[first:] + names[:first])[:_LOOKS]
    for name in [n for n in looked_at if _last_used(os.path.join(root, n)) < since][:_TRIES]:
        try:
            homes = [slot_file(name, slot) for slot in slot_numbers(name, seconds)]
            _remove(os.path.join(root, name), homes, since)
        except (OSError, SandrunError, StateGone):
            pass  # somebody has come, or made of it what we do not


def _listing(directory: str) -> "list[str]":
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _is_state(name: str) -> bool:
    """Whether it is exactly the name of a state directory of ours: others use the prefix too."""
    words = name.split("-")
    is_hash = len(words) == 4 and len(words[2]) == 8 and not words[2].strip("0123456789abcdef")
    return is_hash and is_state_name(name)


def _last_used(path: str) -> float:
    """When the last run in the first slot ended; looking (`sandrun status`) does not count."""
    for name in (os.path.join(path, slot_file("executor", 1)), path):
        try:
            return os.lstat(name).st_mtime
        except OSError:
            continue
    return 0.0


def _remove(path: str, seconds: "list[str]", since: float) -> None:
    """Remove a state directory, and `seconds`, the second homes of its run lock, unless somebody
    needs them or had a run `since` then."""
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
        if names - _SPENT - {file.name for file in files}:
            return
        for name in names & _SPENT:
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
    """Whether the slot's last run was killed, or ended `since` then."""
    was_killed = bool(read_holder_line(file.fd))
    return was_killed or not (file.is_new or os.fstat(file.fd).st_mtime < since)


def _lock_file(directory: int, path: str, name: str) -> LockFile:
    return LockFile(directory, os.path.join(path, name), name)
