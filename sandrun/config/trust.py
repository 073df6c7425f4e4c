"""`sandrun trust`: which files of projects may decide over more than limits.

A project's file comes with a clone, so what it says about the user's protection, other runs or
terminal counts only after the user has said so (`sandrun.config.settings`; git's protected
configuration and `direnv allow` are of the same kind). Trust is kept per path and content in the
user's state folder: `trusted/<SHA-256 of the path>` has the SHA-256 of the settings, then the path.
Per path too, because a line such as `backend = "none"` is easily guessed: trusting it once must not
let every clone have it. An edited file waits for trust anew. An entry counts only if it is ours.

Imported only where a project's file says something that needs it.
"""

import os

from sandrun import messages
from sandrun.config import project
from sandrun.model import SandrunError, command_text
from sandrun.platform import folders
from sandrun.platform.small_files import read_small

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandrun.config.settings_files import File


def _sha256(text: str) -> str:
    import sys

    # The interpreter's own: hashlib would load OpenSSL (3 ms).
    name = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
    try:
        digest = __import__(name).sha256
    except ImportError:
        from hashlib import sha256 as digest
    return str(digest(text.encode("utf-8", "surrogateescape")).hexdigest())


def _entry(path: str) -> str:
    return os.path.join(folders.state_home(), "trusted", _sha256(path))


def _put(path: str, text: str) -> None:
    """Write a file of the user's in one step. Raises OSError."""
    private = f"{path}.{os.getpid()}"
    folders.make_folders(os.path.dirname(path), 0o700)
    fd = folders.create(private, most=0o600)
    try:
        os.write(fd, os.fsencode(text))
    finally:
        os.close(fd)
    os.replace(private, path)


def _read(entry: str) -> "tuple[str, str]":
    """The settings' hash and the path in an entry; ('', '') where there is none of ours."""
    try:
        if not project.speaks_for_us(os.lstat(entry).st_uid):
            return "", ""
        data = read_small(entry, os.path.dirname(entry)) or b""
    except OSError:
        return "", ""
    digest, _, path = os.fsdecode(data).partition(" ")
    return digest, path.removesuffix("\n")


def _digest(file: "File") -> str:
    texts = file.texts()
    return _sha256("\n".join(f"{key} = {texts[key]!r}" for key in sorted(texts)))


def is_known(path: str) -> bool:
    """Whether the user has trusted what was at that path at any time."""
    return bool(folders.state_home()) and _read(_entry(path))[1] == path


def is_trusted(file: "File") -> bool:
    """Whether the user has trusted the file with just these settings."""
    return is_known(file.path) and _read(_entry(file.path))[0] == _digest(file)


def add(file: "File") -> None:
    """Trust a file as it is. Raises SandrunError."""
    if not folders.state_home():
        raise SandrunError("there is no home directory to keep trust in", "set HOME")
    entry = _entry(file.path)
    try:
        _put(entry, f"{_digest(file)} {file.path}\n")
    except OSError as error:
        raise SandrunError(
            f"cannot keep trust in {entry}: {error.strerror}", f"ls -ld {os.path.dirname(entry)}"
        ) from None


def revoke(path: str) -> bool:
    """Trust what is at that path no more; False: it was not trusted. Raises OSError."""
    known = is_known(path)
    if known:
        os.unlink(_entry(path))
    return known


def paths() -> "list[str]":
    """The paths of all files that were trusted."""
    folder = os.path.join(folders.state_home(), "trusted")
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [(name, _read(os.path.join(folder, name))[1]) for name in names]
    return sorted(path for name, path in found if path and name == _sha256(path))


def _user_text(uid: int) -> str:
    """A user for people: `uid 1000 (anna)`."""
    try:
        import pwd

        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except (ImportError, KeyError):
        return f"uid {uid}"


def held_text(file: "File", keys: "list[str]") -> str:
    """What of a file is not in force, and why."""
    whose = f"belongs to {_user_text(file.owner)} and " if file.foreign else ""
    texts = file.texts()
    said = ", ".join(f"{key} = {texts[key][:40]}" for key in keys)
    return f"{file.path} {whose}is not trusted; not in force: {said or 'all of it'}"


def notify(waiting: "Mapping[File, list[str]]", root: str, owner: int) -> None:
    """Report, once per boot and content, or with -v: what is not in force, and how to change that;
    and that the project `root` is the checkout of another user, `owner` (-1: it is not)."""
    for file, keys in waiting.items():
        how = f"sandrun trust {command_text([file.path])}"
        _once(f"{held_text(file, keys)}; to allow it: {how}")
    if owner < 0:
        return
    whose = f"the project {root} is a checkout of {_user_text(owner)}"
    if not project.git_directory(root):
        messages.decision(f"{whose}: you may not write it, so your runs wait only for each other")
    elif os.geteuid() == 0:  # anybody else may write it because its users share it
        _once(f"{whose}: your runs and theirs take turns")


def _once(text: str) -> None:
    if messages.level >= 1 or (messages.level >= 0 and _is_news(_sha256(text)[:32])):
        messages.status(text)


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "boot"


def _is_news(mark: str) -> bool:
    """Whether `mark` was not noted since the boot; it is from now on, where that can be written."""
    folder, boot = folders.state_home(), _boot()
    if not folder:
        return True
    path = os.path.join(folder, "told")
    try:
        noted = (read_small(path, folder) or b"").decode("ascii", "replace").split()
        if noted[:1] == [boot] and mark in noted:
            return False
        _put(path, "\n".join([*(noted if noted[:1] == [boot] else [boot]), mark, ""]))
    except OSError:
        pass
    return True
