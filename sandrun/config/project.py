"""Which queue a run joins: the project around a directory, and the state directory of its queue.

The state directory's name depends on the project's real path and the user alone, never on the
environment, so that cron, ssh, an IDE and a git hook agree. It lives in a shared /tmp, therefore
nothing about it is trusted: it is opened once, checked through the descriptor, and everything
below it is reached through that descriptor.

Whose mark counts. `.git`, `sandrun.toml` and `pyproject.toml` choose the queue when they are ours
(`speaks_for_us`) or belong to the owner of the directory that they are in: who owns a directory
decides over all names below it anyway (a colleague's checkout, a container's mount, root in a
user's clone). Anybody else put it into a directory that others may write, as into /tmp. Their
settings count only when the file is ours, or after `sandrun trust` (`sandrun.config.settings`).
"""

import os
import stat
import sys

from sandrun.model import SandrunError, out_of_descriptors
from sandrun.platform import folders

SHARED_QUEUES = "/var/lib/sandrun/queues"


def find(start: str) -> str:
    """The project around the directory `start`, as a real path.

    The git worktree's top level, else the nearest ancestor with `sandrun.toml` or
    `[tool.sandrun]` in its pyproject.toml, else `start` itself. Where the home directory is a
    worktree (of dotfiles), such an ancestor below it comes first.
    """
    top = os.path.realpath(start)
    here = top
    marked = ""
    while True:
        if _is_worktree(here) and counts(here, ".git"):
            return marked if marked and here == os.path.realpath(folders.home()) else here
        if not marked and _is_marked(here):
            marked = here
        parent = os.path.dirname(here)
        if parent == here:
            return marked or top
        here = parent


def _is_worktree(directory: str) -> bool:
    """Whether there is a .git directory with a HEAD, or a .git file that names one."""
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
        return counts(directory, "sandrun.toml")
    path = os.path.join(directory, "pyproject.toml")
    try:
        if not os.path.lexists(path) or not counts(directory, "pyproject.toml"):
            return False
        from sandrun.platform.small_files import has_table, read_small

        return has_table(read_small(path) or b"")
    except OSError:
        return False


def speaks_for_us(uid: int) -> bool:
    """Whether what belongs to `uid` speaks for us: ourselves, root, and for root the user who
    became root by sudo. (git's own rule, without root: setup.c, safe.directory in git-config(1).)
    """
    if sys.platform == "win32":
        return True
    me = os.geteuid()
    return uid in (0, me) or (me == 0 and str(uid) == os.environ.get("SUDO_UID"))


def counts(directory: str, name: str) -> bool:
    """Whether the mark `name` may speak for `directory` and all below it (see above)."""
    try:
        owner = os.lstat(os.path.join(directory, name)).st_uid
        return speaks_for_us(owner) or owner == os.stat(directory).st_uid
    except OSError:
        return False


def working_directory() -> str:
    """Where we are. A deleted directory still has a name, and the command may run in it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        try:
            return os.readlink("/proc/self/cwd").removesuffix(" (deleted)")
        except OSError:
            return os.environ.get("PWD") or "/"


def start(wish: object) -> str:
    """Where to look for the project: the directory that the user named with --project, or where
    we are. Raises SandrunError."""
    directory = str(wish) if wish else working_directory()
    if wish and not os.path.isdir(directory):
        raise SandrunError(f"--project {directory}: no such directory")
    return directory


def owner(root: str) -> int:
    """The other user whose checkout the project `root` is; -1: it is ours, or no checkout."""
    try:
        uid = os.lstat(os.path.join(root, ".git")).st_uid
    except OSError:
        return -1
    return -1 if speaks_for_us(uid) else uid


def state_path(project: str, queue: str = "") -> str:
    """The state directory of a project's queue, or of the queue of that name.

    `/tmp/seq-exec-<hash>-<uid>`, where <hash> is what `pwd | shasum | head -c 8` prints in the
    project; SANDRUN_STATE_DIR replaces /tmp. On Windows `%LOCALAPPDATA%\\sandrun\\seq-exec-<hash>`.
    """
    # A name can never equal a path: a real path starts with a slash.
    identity = f"queue {queue}" if queue else project
    digest = sha1(os.fsencode(identity) + b"\n")[:8]
    return _untaken(f"seq-exec-{digest}{_mine()}")


def _untaken(name: str) -> str:
    """The directory `name` below the state root; elsewhere if another user has taken that name.

    Once made it is ours: in a sticky directory nobody else can remove or rename it. The run lock's
    second home excludes those who did not find the name taken.
    """
    path = os.path.join(state_root(), name)
    if _is_free(path):
        return path
    from sandrun.queue import taken_names

    return taken_names.spare(name, path)


def _is_free(path: str) -> bool:
    """Whether no other user has taken the name of a directory of ours."""
    try:
        info = os.lstat(path)
    except OSError:
        return True
    return info.st_mode & 0o170000 == 0o040000 and is_ours(info.st_uid)  # stat.S_ISDIR


_uids: "tuple[int, int] | None" = None


def _own_uids() -> "tuple[int, int]":
    """Our effective uid as the kernel has it here, and as it is outside of our user namespace."""
    global _uids
    if _uids is None:
        inner = outer = os.geteuid()
        if sys.platform == "linux":
            from_library = "LD_PRELOAD" in os.environ  # fakeroot(1), which lies to geteuid(2)
            try:
                # PROC_USER_INIT_INO in Linux's include/linux/proc_ns.h: the first namespace.
                within = os.readlink("/proc/self/ns/user") != "user:[4026531837]"
            except OSError:
                within = False
            if from_library or within:
                from sandrun.queue import taken_names

                inner = taken_names.kernel_uid(inner) if from_library else inner
                outer = taken_names.outside_uid(inner) if within else inner
        _uids = inner, outer
    return _uids


def is_ours(owner: int) -> bool:
    """Whether a file of that owner, as stat(2) tells it, is ours; on Windows, below a folder of the
    user's, everything."""
    return sys.platform == "win32" or owner in (os.geteuid(), _own_uids()[0])


def _mine() -> str:
    """The end of the name of a directory of ours where other users have theirs."""
    return "" if sys.platform == "win32" else f"-{_own_uids()[1]}"


def is_state_name(name: str) -> bool:
    """Whether a state directory of ours would have that name."""
    return name.startswith("seq-exec-") and name.endswith(_mine())


def sha1(text: bytes) -> str:
    """The SHA-1 of `text` in hexadecimal."""
    try:
        from _sha1 import sha1 as digest  # hashlib would load OpenSSL: 3 ms
    except ImportError:  # an interpreter that was built without it
        from hashlib import sha1 as digest
    return str(digest(text).hexdigest())


def git_directory(root: str) -> str:
    """The git directory of a worktree's top level (gitrepository-layout(5)); '' if there is none.

    `.git` is that directory, or a file that names it (a linked worktree, a submodule).
    """
    path = os.path.join(root, ".git")
    if not counts(root, ".git"):
        return ""
    if os.path.isdir(path):
        git = path if os.path.exists(os.path.join(path, "HEAD")) else ""
        return git if git and _may_lock(root, git) else ""
    from sandrun.platform.small_files import read_small

    try:
        line = (read_small(path) or b"").partition(b"\0")[0]  # as C, so git, reads it
    except OSError:
        return ""
    if not line.startswith(b"gitdir:"):
        return ""
    named = os.fsdecode(line[7:].split(b"\n")[0].strip())
    git = os.path.normpath(os.path.join(root, named))
    return git if git and _may_lock(root, git) else ""


def _may_lock(root: str, git: str) -> bool:
    """Whether a lock in the git directory `git` may hold us up; git asks the same of it.

    Another user's only if it is the owner's of the checkout, and we may write it: who may only
    read a repository does not share it, so its owner cannot keep him waiting.
    """
    try:
        owner = os.stat(git).st_uid
        if speaks_for_us(owner):
            return True
        return owner == os.stat(root).st_uid and os.access(git, os.W_OK)
    except OSError:
        return False


def shared_queue(name: str) -> str:
    """The directory that the administrator made for the queue `name`, whose users exclude each
    other; '' if there is none. Only root can make it, so nobody else can lay one for us."""
    path = os.path.join(SHARED_QUEUES, name)
    return path if "/" not in name and name[0] != "." and os.path.isdir(path) else ""


def lock_root() -> str:
    """The directory of run locks for queues without a checkout (see `sandrun.queue`)."""
    name = f"sandrun-locks{_mine()}"
    root = os.environ.get("SANDRUN_STATE_DIR") or "/dev/shm"
    if not os.path.isdir(root):
        root = "/tmp"
    path = os.path.join(root, name)
    if sys.platform == "win32" or os.environ.get("SANDRUN_STATE_DIR"):
        return path
    above = folders.state_home()
    spare = os.path.join(above, name)
    # Used once, it is used by all that follow: who took the other name may give it up meanwhile.
    if above and os.path.isdir(spare):
        return spare
    if _is_free(path):
        return path
    from sandrun.queue import taken_names

    return taken_names.spare_locks(name, path)


def state_root() -> str:
    """The directory that holds the state directories of all queues. Raises SandrunError."""
    root = os.environ.get("SANDRUN_STATE_DIR")
    if root:
        if not os.path.isabs(root) or _everybody_may_rename_in(root):
            from sandrun.queue import taken_names

            raise taken_names.bad_root(root)
        return root
    if sys.platform == "win32":
        return os.path.join(folders.local_folder(), "sandrun")
    return "/tmp"


def _everybody_may_rename_in(directory: str) -> bool:
    try:
        return sys.platform != "win32" and os.stat(directory).st_mode & 0o1002 == 0o0002
    except OSError:
        return False  # `open_state` says what is wrong


def pool_path() -> str:
    """The state directory of the pool (see `sandrun.queue.memory_pool`)."""
    return _untaken(f"sandrun-pool{_mine()}")


def all_states() -> "list[str]":
    """The state directories of this user's queues; what others made under such names left out."""
    from sandrun.queue import taken_names

    return [p for root in (state_root(), *taken_names.spare_roots()) for p in states_below(root)]


def states_below(root: str) -> "list[str]":
    """Those of them that are in the directory `root`."""
    from sandrun.queue import taken_names

    try:
        names = sorted(filter(is_state_name, os.listdir(root)))
    except OSError:
        return []
    paths = [os.path.join(root, name) for name in names]
    return [p for p in paths if os.path.isdir(p) and taken_names.owner(p) is None]


def foreign_states() -> "tuple[int, str]":
    """How many names of our queues other users have taken, and one of them."""
    from sandrun.queue import taken_names

    return taken_names.count_foreign()


def open_state(path: str) -> int:
    """Open the state directory, made first if need be; return its descriptor.

    Raises SandrunError unless it is a real directory, ours, and writable by nobody else.
    """
    for _ in range(100):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            _make_state(path)
            continue
        except OSError as error:
            if out_of_descriptors(error):
                raise
            raise SandrunError(
                f"{path}: {error.strerror}: the state directory must be a real directory of yours",
                f"look at it with: ls -ld {path}; or set SANDRUN_STATE_DIR to a directory of yours",
            ) from None
        if _check_state(path, fd):
            return fd
        os.close(fd)
    raise SandrunError(f"{path}: somebody keeps removing the state directory")


def _make_state(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise SandrunError(
            f"cannot make the state directory {path}: {error.strerror}",
            f"make {os.path.dirname(path)} a directory that you can write, or set "
            "SANDRUN_STATE_DIR to one",
        ) from None


def _check_state(path: str, fd: int) -> bool:
    """Whether it can be used; False: it was removed. Where it is bound into a run's own /tmp, its
    name stays when it is removed outside, and nothing can be made in it or in its place."""
    info = os.fstat(fd)
    if not info.st_nlink:
        return False
    if not is_ours(info.st_uid):
        raise SandrunError(
            f"{path} belongs to uid {info.st_uid}, not to you (uid {os.geteuid()})",
            "set SANDRUN_STATE_DIR to a directory of yours, or have that one removed",
        )
    if info.st_mode & 0o022:
        raise SandrunError(
            f"{path} is writable by others (mode {info.st_mode & 0o7777:o})",
            f"chmod 700 {path}",
        )
    if info.st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)  # made under an umask that takes the owner's own bits away
    return True
