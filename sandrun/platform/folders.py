"""The user's directories, and making files and directories in them.

The XDG base directory specification applies on every system, with the system's own defaults
(%LOCALAPPDATA% and %APPDATA% on Windows). As it demands, a relative path in a variable is ignored.

A new file or directory gets no more rights than its parent directory has:
- A user without access to the parent directory cannot open it, whatever the umask is.
- What root makes in a user's directory gets that directory's owner and group, because the user must
  be able to change it.
- Only a new inode changes its owner, through its own descriptor: O_EXCL proves that a file is new;
  a new directory is opened without following a link and must be empty. The owner of the parent
  directory could have removed either anyway, and so gains nothing.
On Windows a new file inherits the access rights of its parent directory, which has the same effect.
"""

import os
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from sandrun.model import Outcome


def call_in_root(directory: str, call: "Callable[[], Outcome]") -> "Outcome":
    """Call `call` in `/`, so that the caller's `directory` can be unmounted or removed once the
    command has left it. Then return to it, because the environment may name files by a relative
    path (GIT_DIR), unless its path leads to another directory by now."""
    if sys.platform == "win32":
        return call()
    try:
        here = os.stat(os.curdir)
        os.chdir("/")
    except OSError:
        return call()  # no right to search the directory
    try:
        return call()
    finally:
        try:
            if os.path.samestat(os.stat(directory), here):
                os.chdir(directory)
        except OSError:
            pass


def home() -> str:
    """The user's home directory; '' if there is none (no HOME, and a uid without an account)."""
    found = os.path.expanduser("~")
    return found if os.path.isabs(found) else ""


def config_home() -> str:
    """`$XDG_CONFIG_HOME`, by default ~/.config, on Windows %APPDATA%; '' without a home."""
    return _base("XDG_CONFIG_HOME", ".config", "APPDATA", "Roaming")


def data_home() -> str:
    """`$XDG_DATA_HOME`, by default ~/.local/share, on Windows %LOCALAPPDATA%; '' without a home."""
    return _base("XDG_DATA_HOME", ".local/share", "LOCALAPPDATA", "Local")


def state_home() -> str:
    """The directory `sandrun` in `$XDG_STATE_HOME`, by default ~/.local/state, on Windows
    %LOCALAPPDATA%; '' without a home."""
    state = _base("XDG_STATE_HOME", ".local/state", "LOCALAPPDATA", "Local")
    return os.path.join(state, "sandrun") if state else ""


def _base(variable: str, below_home: str, windows_variable: str, windows_name: str) -> str:
    named = os.environ.get(variable) or ""
    if os.path.isabs(named):
        return named
    if sys.platform == "win32":
        return _windows_folder(windows_variable, windows_name)
    return os.path.join(home(), below_home) if home() else ""


def private_name(path: str) -> str:
    """A name beside `path` for a file that will replace it. It is random, because a pid is used
    again, and at the same time in another pid namespace."""
    return f"{path}.{os.urandom(8).hex()}"


_uids: "tuple[int, int] | None" = None

if sys.platform == "win32":

    def is_own(owner: int) -> bool:
        """True: on Windows every file in a user's own directory is that user's."""
        return True

    def _windows_folder(variable: str, name: str) -> str:
        return os.environ.get(variable) or os.path.expanduser(f"~\\AppData\\{name}")

    def local_folder() -> str:
        """The directory for what belongs to this machine: %LOCALAPPDATA%."""
        return _windows_folder("LOCALAPPDATA", "Local")

else:

    def is_own(owner: int) -> bool:
        """Whether a file with that owner, by stat(2), is ours."""
        return owner in (os.geteuid(), own_uids()[0])

    def own_uids() -> "tuple[int, int]":
        """Our effective uid in the kernel: here, and outside our user namespace."""
        global _uids
        if _uids is None:
            inner = outer = os.geteuid()
            if sys.platform == "linux":
                is_preloaded = "LD_PRELOAD" in os.environ  # fakeroot(1) changes geteuid(2)
                try:
                    # PROC_USER_INIT_INO in Linux's include/linux/proc_ns.h: the first namespace.
                    is_inside = os.readlink("/proc/self/ns/user") != "user:[4026531837]"
                except OSError:
                    is_inside = False
                if is_preloaded or is_inside:
                    from sandrun.platform import user_ids

                    inner = user_ids.kernel_uid(inner) if is_preloaded else inner
                    outer = user_ids.outside_uid(inner) if is_inside else inner
            _uids = inner, outer
        return _uids


NEW = os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)

if sys.platform == "win32":

    def make_folders(path: str, most: int = 0o755) -> None:
        """Make a directory, and those above it that are missing. Raises OSError."""
        os.makedirs(path, exist_ok=True)

    def create(path: str, flags: int = os.O_WRONLY, most: int = 0o666) -> int:
        """Make a file that does not exist yet; its descriptor. Raises OSError."""
        return os.open(path, flags | NEW | os.O_BINARY | os.O_NOINHERIT, most)

else:
    _DIRECTORY = os.O_DIRECTORY | os.O_CLOEXEC
    # Making a file in a directory needs no right to read it, so opening the directory must not.
    FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | _DIRECTORY

    def make_folders(path: str, most: int = 0o755) -> None:
        """Make a directory with at most the rights `most`, and those above it that are missing.
        Raises OSError."""
        above, name = os.path.split(path)
        try:
            parent = os.open(above or ".", FOLDER)
        except FileNotFoundError:
            make_folders(above, most | 0o755)
            parent = os.open(above, FOLDER)
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            made = os.open(name, os.O_RDONLY | _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            try:
                if not os.listdir(made):
                    _adapt(made, parent, most | stat.S_ISGID)
            finally:
                os.close(made)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        finally:
            os.close(parent)

    def create(path: str, flags: int = os.O_WRONLY, most: int = 0o666) -> int:
        """Make a file that does not exist yet, with at most the rights `most`; its descriptor.
        Raises OSError."""
        above, name = os.path.split(path)
        parent = os.open(above or ".", FOLDER)
        try:
            return create_in(parent, name, flags, most)
        finally:
            os.close(parent)

    def create_in(parent: int, name: str, flags: int = os.O_WRONLY, most: int = 0o666) -> int:
        """`create` in the open directory `parent`."""
        fd = os.open(name, flags | NEW, 0o600, dir_fd=parent)
        _adapt(fd, parent, most)
        return fd

    def _adapt(fd: int, parent: int, most: int) -> None:
        above = os.fstat(parent)
        mode = above.st_mode & most
        if above.st_mode & stat.S_ISVTX:  # as in /tmp, where others must not change our files
            mode &= ~0o022
        try:
            if os.geteuid() == 0 and above.st_uid:
                os.fchown(fd, above.st_uid, above.st_gid)
            else:
                mask = os.umask(0o077)
                os.umask(mask)
                mode &= ~mask
            os.fchmod(fd, mode)
        except OSError:
            pass  # an unmapped user, or a file system without owners: it stays ours, 0600


def keep_rights(fd: int, info: os.stat_result) -> None:
    """Give a new file the mode and the owner of the file that it will replace. Raises OSError."""
    if sys.platform != "win32":
        own = os.fstat(fd)
        if (own.st_uid, own.st_gid) != (info.st_uid, info.st_gid):
            os.fchown(fd, info.st_uid, info.st_gid)
        os.fchmod(fd, info.st_mode & 0o7777)
