"""Names in shared directories: whose they are, and where else to go when one is taken.

A user can appear as another one in two ways: in a user namespace (`unshare -Ur`, rootless
containers), whose uids mean nothing outside, and under fakeroot(1), whose preloaded library answers
geteuid(2) and stat(2). Names carry the uid that the rest of the host sees, so that neither makes
names of root's; and an entry of another user that has a name of ours is passed by.

Imported only where one of these is found.
"""

import os
import stat
import sys

from sandrun import messages
from sandrun.config import project
from sandrun.model import SandrunError
from sandrun.platform import folders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def kernel_uid(uid: int) -> int:
    """Our effective uid as the kernel has it, whatever a preloaded library says; else `uid`."""
    for line in _lines("/proc/self/status"):
        if line.startswith("Uid:"):
            return int(line.split()[2])  # real, effective, saved, file system (proc(5))
    return uid


def outside_uid(uid: int) -> int:
    """What `uid` is outside of our user namespace (user_namespaces(7)): in its parent."""
    for line in _lines("/proc/self/uid_map"):
        inside, outside, count = map(int, line.split())
        if inside <= uid < inside + count:
            return outside + uid - inside
    return uid


def _lines(path: str) -> "list[str]":
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []


def owner(path: str) -> "int | None":
    """Who else has taken the name `path`; None: nobody."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    is_dir = stat.S_ISDIR(info.st_mode)
    return None if is_dir and project.is_ours(info.st_uid) else info.st_uid


def spare_roots() -> "Iterator[str]":
    """Directories that only we can have made, the first choice first; those that exist.

    Where the user named a directory (SANDRUN_STATE_DIR) there is none: that one is meant.
    """
    if os.environ.get("SANDRUN_STATE_DIR") or sys.platform == "win32":
        return
    # The XDG base directory specification: owned by the user, mode 0700, local, gone at logout.
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    # In /run, which is root's, root finds one even without a home.
    for path, mask in ((session, 0o077), (folders.state_home(), 0o022), ("/run", 0o022)):
        try:
            info = os.stat(path)
        except OSError:
            continue
        if os.path.isabs(path) and project.is_ours(info.st_uid) and not info.st_mode & mask:
            yield path


def spare(name: str, taken: str) -> str:
    """The directory `name` where nobody else can take it; `taken` if there is no such place."""
    _make_home()
    path = next((os.path.join(root, name) for root in spare_roots()), taken)
    if path != taken:
        messages.decision(f"{taken} is taken by uid {owner(taken)}: using {path}")
    return path


def spare_locks(name: str, taken: str) -> str:
    """The same for locks: always below the state home, which cron, ssh and an IDE agree on."""
    _make_home()
    home = folders.state_home()
    return os.path.join(home, name) if home in spare_roots() else taken


def _make_home() -> None:
    path = folders.state_home()
    try:
        if path:
            folders.make_folders(path, 0o700)
    except OSError:
        pass  # `spare_roots` sees that it is not there


def count_foreign() -> "tuple[int, str]":
    """How many names of our queues other users have taken, and one of them."""
    root = project.state_root()
    try:
        names = sorted(filter(project.is_state_name, os.listdir(root)))
    except OSError:
        return 0, ""
    owners = ((path, owner(path)) for path in (os.path.join(root, name) for name in names))
    taken = [path for path, uid in owners if uid is not None and not project.is_ours(uid)]
    return len(taken), taken[0] if taken else ""


def bad_root(root: str) -> SandrunError:
    """Why SANDRUN_STATE_DIR cannot be `root`, which is relative or in everybody's hands.

    A relative one is refused rather than made absolute: it would still be another queue in each
    directory that sandrun is started in.
    """
    if not os.path.isabs(root):
        return SandrunError(
            f"SANDRUN_STATE_DIR={root} is not an absolute path: each directory had its own queues",
            f"export SANDRUN_STATE_DIR={os.path.abspath(root)}",
        )
    return SandrunError(
        f"SANDRUN_STATE_DIR={root}: everybody may rename what is in there "
        f"(mode {stat.S_IMODE(os.stat(root).st_mode):o}, not sticky)",
        f"chmod +t {root}, or name a directory that only you can write",
    )
