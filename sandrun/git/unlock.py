"""`sandrun git unlock`: examine a repository's lock files and move stale ones aside.

Promises that a lock whose owner may live is left alone with any options; `--force` only vouches for
owners that would be invisible from here. Exit 0: no lock is left; 1: one is.
"""

import os
import sys

from sandrun import messages
from sandrun.git import classify, git_processes, lock_paths, record_locks, stale
from sandrun.git.repository import Repository
from sandrun.model import SandrunError, UsageError

assert sys.platform != "win32"

USAGE = "sandrun git [-C DIR] unlock [--dry-run] [--force] | unlock --restore [NAME]"
_HELP = f"""usage: {USAGE}

Moves git's stale lock files aside: those of the repository, its worktrees and submodules, and of
your git configuration. A lock whose owner may live is left alone with any options.

  -n, --dry-run     only show what would be moved
  --force           also where an owner would be invisible: in a container, on a network file
                    system, as another user
  --restore [NAME]  restore the locks that were moved last, or under that name

Exit 0: no lock is left; 1: one is.
"""


def main(repo: "Repository | None", arguments: "list[str]") -> int:
    """Run the subcommand; its exit code."""
    options = {word for word in arguments if word[:1] == "-"}
    words = [word for word in arguments if word[:1] != "-"]
    if options & {"-h", "--help"}:
        messages.write(_HELP)
        return 0
    wrong = options - {"--restore", "--force", "--dry-run", "-n"}
    if wrong or len(words) > ("--restore" in options):
        raise UsageError(f"git unlock: unexpected {' '.join([*wrong, *words])}", USAGE)
    if repo is None:
        raise SandrunError("git unlock: not in a git repository", "cd there, or: " + USAGE)
    if "--restore" in options:
        return _restore(repo, words[0] if words else "")
    return _unlock(repo, "--force" in options, bool(options & {"--dry-run", "-n"}))


def _unlock(repo: Repository, force: bool, dry: bool) -> int:
    found = lock_paths.every_lock(repo, os.environ)
    if not found:
        messages.status(f"{repo.top}: no lock files")
        return 0
    busy: list[int] = []

    def note(fd: int, operation: int, byte: int) -> bool:
        busy.append(record_locks.holder(fd, operation, byte))
        return False

    # Held until we exit, so that no guarded git starts between the check and the move. One for
    # each common directory: all guarded git commands of its worktrees share its ALL_BYTE.
    for each in {owner.common_dir: owner for owner in found.values() if owner}.values():
        record_locks.acquire(each, classify.ALL, 0, note)
    judged = [_unlock_one(repo, *each, busy, force, dry) for each in found.items()]
    return 0 if all(judged) else 1


def _unlock_one(
    repo: Repository,
    lock: str,
    owner: "Repository | None",
    busy: "list[int]",
    force: bool,
    dry: bool,
) -> bool:
    shown = stale.describe(repo, lock)
    if not os.path.lexists(lock):
        return True
    owners = stale.owners(owner, lock) or busy
    if owners:
        who = git_processes.text(owners) or "a git that cannot be seen from here"
        messages.error(
            f"{shown} may belong to {who}: left alone",
            "let it finish, or end it, then try again",
        )
        return False
    blind = stale.blind_spots(lock)
    if blind and not force:
        messages.error(
            f"{shown}: no git is active, but {'; '.join(blind)}: left alone",
            "if no git is active there either: sandrun git unlock --force",
        )
        return False
    if dry:
        messages.status(f"{shown}: no git is active; would be moved aside")
        return False
    try:
        aside, stamp = stale.move_aside(owner, lock, repo)
    except SandrunError as error:
        messages.error(error.text, error.hint)
        return False
    messages.status(f"{shown}: no git is active; moved to {aside}")
    messages.status(f"hint: to restore it: sandrun git unlock --restore {stamp}")
    return True


def _restore(repo: Repository, stamp: str) -> int:
    moved = stale.moved_aside(repo, os.environ, stamp)
    if not moved:
        messages.error(f"nothing to restore in {os.path.join(repo.common_dir, stale.ASIDE)}")
        return 1
    code = 0
    for aside, lock in moved:
        try:
            stale.restore(aside, lock)
            messages.status(f"restored {lock}")
        except FileExistsError:
            messages.error(f"cannot restore {lock}: there is a new one")
            code = 1
        except OSError as error:
            messages.error(f"cannot restore {lock}: {error.strerror}")
            code = 1
    return code
