"""Which project a run belongs to.

Markers (`.git`, `sandrun.toml`, `pyproject.toml`) choose the project only if their owner is trusted
(`is_trusted_uid`) or owns the directory that they are in. The owner of a directory controls all
names below it anyway (a colleague's checkout, a container's mount, root in a user's clone). Any
other owner put the file into a directory that others may write, such as /tmp. For the settings in
these files a stricter rule applies (`sandrun.config.settings`).
"""

import os
import stat
import sys

from sandrun.model import SandrunError
from sandrun.platform import folders


def find(start: str) -> str:
    """The real path of the project that contains the directory `start`.

    It is the top level of the git worktree, else the nearest ancestor with `sandrun.toml` or
    `[tool.sandrun]` in its pyproject.toml, else `start` itself. If the home directory is a
    worktree (of dotfiles), such an ancestor below it takes precedence.
    """
    first = os.path.realpath(start)
    here = first
    marked = ""
    while True:
        if _is_worktree(here) and is_trusted_marker(here, ".git"):
            return marked if marked and here == os.path.realpath(folders.home()) else here
        if not marked and _is_marked(here):
            marked = here
        parent = os.path.dirname(here)
        if parent == here:
            return marked or first
        here = parent


def _is_worktree(directory: str) -> bool:
    """Whether `directory` has a .git directory with a HEAD, or a .git file that names one."""
    git = os.path.join(directory, ".git")
    try:
        if stat.S_ISDIR(os.stat(git).st_mode):
            return os.path.isfile(os.path.join(git, "HEAD"))
        from sandrun.platform.small_files import read_small

        return (read_small(git) or b"").startswith(b"gitdir:")
    except OSError:
        return False


def _is_marked(directory: str) -> bool:
    if os.path.isfile(os.path.join(directory, "sandrun.toml")):
        return is_trusted_marker(directory, "sandrun.toml")
    path = os.path.join(directory, "pyproject.toml")
    try:
        if not os.path.lexists(path) or not is_trusted_marker(directory, "pyproject.toml"):
            return False
        from sandrun.platform.small_files import has_table, read_small

        return has_table(read_small(path) or b"")
    except OSError:
        return False


def is_trusted_uid(uid: int) -> bool:
    """Whether files of `uid` count as ours: our own, root's, and for root those of the user who ran
    sudo. git's rule is the same, except that it does not trust root (setup.c; safe.directory in
    git-config(1))."""
    if sys.platform == "win32":
        return True
    me = os.geteuid()
    return uid in (0, me) or (me == 0 and str(uid) == os.environ.get("SUDO_UID"))


def is_trusted_marker(directory: str, name: str) -> bool:
    """Whether the marker `name` may make `directory` the project of all directories below it."""
    try:
        owner = os.lstat(os.path.join(directory, name)).st_uid
        return is_trusted_uid(owner) or owner == os.stat(directory).st_uid
    except OSError:
        return False


def working_directory() -> str:
    """The current directory. A deleted one still has a name, and the command may run in it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        try:
            return os.readlink("/proc/self/cwd").removesuffix(" (deleted)")
        except OSError:
            return os.environ.get("PWD") or "/"


def start_directory(flag: object) -> str:
    """The directory in which the search for the project starts: `flag`, which is the value of
    --project, or the current directory. Raises SandrunError."""
    directory = str(flag) if flag else working_directory()
    if flag and not os.path.isdir(directory):
        raise SandrunError(f"--project {directory}: no such directory")
    return directory


def foreign_owner(root: str) -> int:
    """The uid of the other user who owns the checkout `root`; -1: it is ours, or not a checkout."""
    try:
        uid = os.lstat(os.path.join(root, ".git")).st_uid
    except OSError:
        return -1
    return -1 if is_trusted_uid(uid) else uid


def git_directory(root: str) -> str:
    """The git directory of a worktree's top level (gitrepository-layout(5)); '' if there is none.

    `.git` is that directory, or a file that names it (in a linked worktree or a submodule). Also ''
    for a git directory of another user who does not share it with us, but could delay us by a lock
    in it.
    """
    path = os.path.join(root, ".git")
    if not is_trusted_marker(root, ".git"):
        return ""
    if os.path.isdir(path):
        git = path if os.path.exists(os.path.join(path, "HEAD")) else ""
        return git if git and _may_lock(root, git) else ""
    from sandrun.platform.small_files import read_small

    try:
        line = (read_small(path) or b"").partition(b"\0")[0]  # git reads it as a C string
    except OSError:
        return ""
    if not line.startswith(b"gitdir:"):
        return ""
    named = os.fsdecode(line[7:].split(b"\n")[0].strip())
    git = os.path.normpath(os.path.join(root, named))
    return git if git and _may_lock(root, git) else ""


def _may_lock(root: str, git: str) -> bool:
    """Whether a lock in the git directory `git` may delay us.

    In another user's git directory it may only if that user also owns the checkout and we may write
    to it. Users who may only read a repository do not share it, so its owner cannot delay them.
    """
    try:
        owner = os.stat(git).st_uid
        if is_trusted_uid(owner):
            return True
        return owner == os.stat(root).st_uid and os.access(git, os.W_OK)
    except OSError:
        return False
