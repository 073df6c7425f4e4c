"""The state directories of queues: their names, and opening one.

Promises
- The name of a state directory depends only on the user and on the project's real path, or on the
  queue's name. Apart from SANDRUN_STATE_DIR it does not depend on the environment, so cron, ssh, an
  IDE and a git hook agree.
- The directory is in a shared /tmp, so nothing about it is trusted: it is opened once, checked
  through the descriptor, and everything below it is reached through that descriptor.

What another user made under such a name is never used (`sandrun.queue.taken_names`).
"""

import os
import sys

from sandrun.model import SandrunError, out_of_descriptors
from sandrun.platform import folders

SHARED_QUEUES = "/var/lib/sandrun/queues"
"""Where the administrator makes a directory for each queue that users share."""


def state_path(project: str, queue: str = "") -> str:
    """The state directory of a project's queue, or of the queue with the name `queue`.

    `/tmp/seq-exec-<hash>-<uid>`; `pwd | shasum | head -c 8` in the project prints <hash>, and
    SANDRUN_STATE_DIR replaces /tmp. On Windows `%LOCALAPPDATA%\\sandrun\\seq-exec-<hash>`.
    """
    # A name can never equal a path: a real path starts with a slash.
    identity = f"queue {queue}" if queue else project
    digest = sha1(os.fsencode(identity) + b"\n")[:8]
    return _own_directory(f"seq-exec-{digest}{_user_suffix()}")


def _own_directory(name: str) -> str:
    """The path of `name` in the state root, or elsewhere if another user has taken that name.

    Once made, the directory stays ours: in a sticky directory nobody else can remove or rename it.
    A run that still found the name free is excluded by the second lock file of the run lock.
    """
    path = os.path.join(state_root(), name)
    if _is_free(path):
        return path
    from sandrun.queue import taken_names

    return taken_names.fallback_path(name, path)


def _is_free(path: str) -> bool:
    """Whether a directory of ours can be, or already is, at this path."""
    try:
        info = os.lstat(path)
    except OSError:
        return True
    return info.st_mode & 0o170000 == 0o040000 and folders.is_own(info.st_uid)  # stat.S_ISDIR


def _user_suffix() -> str:
    """The end of our names, which distinguishes them from other users' names."""
    if sys.platform == "win32":
        return ""
    return f"-{folders.own_uids()[1]}"


def is_state_name(name: str) -> bool:
    """Whether `name` has the form of a state directory of ours."""
    return name.startswith("seq-exec-") and name.endswith(_user_suffix())


def sha1(text: bytes) -> str:
    """The SHA-1 of `text` in hexadecimal."""
    try:
        from _sha1 import sha1 as digest  # hashlib would load OpenSSL: 3 ms
    except ImportError:  # an interpreter that was built without it
        from hashlib import sha1 as digest
    return str(digest(text).hexdigest())


def shared_queue(name: str) -> str:
    """The directory that the administrator made for the queue `name`, so that its users' runs
    exclude each other; '' if there is none. Only root can make one, so nobody else imposes it."""
    path = os.path.join(SHARED_QUEUES, name)
    return path if "/" not in name and name[0] != "." and os.path.isdir(path) else ""


def lock_root() -> str:
    """The directory of the second lock files of queues without a checkout."""
    name = f"sandrun-locks{_user_suffix()}"
    root = os.environ.get("SANDRUN_STATE_DIR") or "/dev/shm"
    if not os.path.isdir(root):
        root = "/tmp"
    path = os.path.join(root, name)
    if sys.platform == "win32" or os.environ.get("SANDRUN_STATE_DIR"):
        return path
    home = folders.state_home()
    fallback = os.path.join(home, name)
    # Once the fallback exists, all runs use it, even if the other name has become free.
    if home and os.path.isdir(fallback):
        return fallback
    if _is_free(path):
        return path
    from sandrun.queue import taken_names

    return taken_names.fallback_lock_root(name, path)


def slot_file(stem: str, slot: int) -> str:
    """The name of a slot's lock file: `executor.lock`, `executor.2.lock`."""
    return f"{stem}.lock" if slot == 1 else f"{stem}.{slot}.lock"


def slot_numbers(stem: str, names: "list[str]") -> "list[int]":
    """The numbers of the slots whose lock files are among `names`."""
    locks = [n for n in names if n.startswith(f"{stem}.") and n.endswith(".lock")]
    numbers = [n[len(stem) + 1 : -5] for n in locks]
    return [int(number or 1) for number in numbers if not number or number.isdecimal()]


def state_root() -> str:
    """The directory that holds the state directories of all queues. Raises SandrunError."""
    root = os.environ.get("SANDRUN_STATE_DIR")
    if root:
        if not os.path.isabs(root) or _is_writable_without_sticky(root):
            from sandrun.queue import taken_names

            raise taken_names.bad_root(root)
        return root
    if sys.platform == "win32":
        return os.path.join(folders.local_folder(), "sandrun")
    return "/tmp"


def _is_writable_without_sticky(directory: str) -> bool:
    try:
        return sys.platform != "win32" and os.stat(directory).st_mode & 0o1002 == 0o0002
    except OSError:
        return False  # `open_state` reports what is wrong


def pool_path() -> str:
    """The state directory of the memory pool (`sandrun.queue.memory_pool`)."""
    return _own_directory(f"sandrun-pool{_user_suffix()}")


def all_states() -> "list[str]":
    """The state directories of this user's queues, without those that others made under our
    names."""
    from sandrun.queue import taken_names

    roots = (state_root(), *taken_names.private_roots())
    return [path for root in roots for path in states_below(root)]


def states_below(root: str) -> "list[str]":
    """The state directories of this user's queues in the directory `root`."""
    from sandrun.queue import taken_names

    paths = _paths_below(root)
    return [p for p in paths if os.path.isdir(p) and taken_names.foreign_owner(p) is None]


def _paths_below(root: str) -> "list[str]":
    try:
        names = sorted(filter(is_state_name, os.listdir(root)))
    except OSError:
        return []
    return [os.path.join(root, name) for name in names]


def foreign_states() -> "tuple[int, str]":
    """The number of our queues' names that other users have taken, and one of these paths."""
    from sandrun.queue import taken_names

    owners = [(path, taken_names.foreign_owner(path)) for path in _paths_below(state_root())]
    taken = [path for path, uid in owners if uid is not None and not folders.is_own(uid)]
    return len(taken), taken[0] if taken else ""


if sys.platform != "win32":

    def open_state(path: str) -> int:
        """Open the state directory, after making it if it is missing; its descriptor.

        Raises SandrunError unless it is a real directory, owned by us and writable by nobody else.
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
                    f"{path}: {error.strerror}: "
                    "the state directory must be a real directory of yours",
                    f"see: ls -ld {path}; or set SANDRUN_STATE_DIR to a directory of yours",
                ) from None
            if _check_state(path, fd):
                return fd
            os.close(fd)
        raise SandrunError(f"{path}: another process keeps removing the state directory")

    def _make_state(path: str) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise SandrunError(
                f"cannot make the state directory {path}: {error.strerror}",
                f"make {os.path.dirname(path)} a directory that you can write to, or set "
                "SANDRUN_STATE_DIR to one",
            ) from None

    def _check_state(path: str, fd: int) -> bool:
        """Whether the directory can be used; False: it was removed.

        In a run's private /tmp, where it is mounted, its name remains after it was removed
        outside, but nothing can be created in it or in its place.
        """
        info = os.fstat(fd)
        if not info.st_nlink:
            return False
        if not folders.is_own(info.st_uid):
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
            os.fchmod(fd, 0o700)  # it was made under an umask that removes the owner's permissions
        return True
