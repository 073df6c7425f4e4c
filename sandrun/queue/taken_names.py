"""Names of ours in shared directories that another user has taken, and what is used instead.

Names contain the uid that the rest of the host sees (`folders.own_uids`), so a process in a user
namespace or under fakeroot(1) does not use root's names. An entry that another user has made under
a name of ours is never used.

Imported only where there is such an entry.
"""

import os
import stat
import sys

from sandrun import messages
from sandrun.model import SandrunError
from sandrun.platform import folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def foreign_owner(path: str) -> "int | None":
    """The owner of the entry at `path` if it is not a directory of ours; None: it is one, or there
    is no entry."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    is_dir = stat.S_ISDIR(info.st_mode)
    return None if is_dir and folders.is_own(info.st_uid) else info.st_uid


def private_roots() -> "Iterator[str]":
    """The existing directories in which only we can make names, best first.

    There is none when the user chose a directory with SANDRUN_STATE_DIR.
    """
    if os.environ.get("SANDRUN_STATE_DIR") or sys.platform == "win32":
        return
    # The XDG base directory specification: owned by the user, mode 0700, local, removed at logout.
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    # Only root can write to /run, so root has a private directory even without a home.
    for path, mask in ((session, 0o077), (folders.state_home(), 0o022), ("/run", 0o022)):
        try:
            info = os.stat(path)
        except OSError:
            continue
        if os.path.isabs(path) and folders.is_own(info.st_uid) and not info.st_mode & mask:
            yield path


def fallback_path(name: str, taken: str) -> str:
    """The path of `name` in a private root; `taken` if there is no private root."""
    _make_state_home()
    path = next((os.path.join(root, name) for root in private_roots()), taken)
    if path != taken:
        messages.decision(f"{taken} is taken by uid {foreign_owner(taken)}: using {path}")
    return path


def fallback_lock_root(name: str, taken: str) -> str:
    """The same for lock files, but only in the state home, on which cron, ssh and an IDE agree."""
    _make_state_home()
    home = folders.state_home()
    return os.path.join(home, name) if home in private_roots() else taken


def _make_state_home() -> None:
    path = folders.state_home()
    try:
        if path:
            folders.make_folders(path, 0o700)
    except OSError:
        pass  # `private_roots` checks that it exists


def bad_root(root: str) -> SandrunError:
    """The error for a SANDRUN_STATE_DIR that is relative, or in which everybody may rename entries.

    A relative path is refused and not made absolute: the queues would still be different ones in
    each directory in which sandrun is started.
    """
    if not os.path.isabs(root):
        return SandrunError(
            f"SANDRUN_STATE_DIR={root} is not an absolute path: "
            "each directory would have its own queues",
            f"export SANDRUN_STATE_DIR={os.path.abspath(root)}",
        )
    return SandrunError(
        f"SANDRUN_STATE_DIR={root}: everybody may rename entries in it "
        f"(mode {stat.S_IMODE(os.stat(root).st_mode):o}, not sticky)",
        f"chmod +t {root}, or name a directory that only you can write",
    )
