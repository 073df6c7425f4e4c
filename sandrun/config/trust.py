"""`sandrun trust`: the project files whose settings other than limits are in force.

A project's file comes with a clone. So settings in it that affect the user's protection, other runs
or terminal need the user's consent (`sandrun.config.settings`); git's protected configuration and
`direnv allow` have the same purpose. Trust is kept per path and content in the user's state
directory: `trusted/<SHA-256 of the path>` contains the SHA-256 of the settings, and the path. The
path is included because a line such as `backend = "none"` is easily guessed: trusting it once must
not enable it in every clone. An edited file needs trust again. An entry counts only if its owner is
one whose files count as ours (`project.is_trusted_uid`).

Imported only where a project's file has settings that need trust.
"""

import os
import sys

from sandrun import messages
from sandrun.config import project
from sandrun.model import SandrunError, command_text
from sandrun.platform import folders, small_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    class SettingsFile(Protocol):
        """A settings file (`settings_files.File`)."""

        path: str
        owner: int
        is_foreign: bool

        def texts(self) -> "dict[str, str]": ...


def _sha256(text: str) -> str:
    # The interpreter's own: hashlib would load OpenSSL (3 ms).
    name = "_sha2" if sys.version_info >= (3, 12) else "_sha256"
    try:
        digest = __import__(name).sha256
    except ImportError:
        from hashlib import sha256 as digest
    return str(digest(text.encode("utf-8", "surrogateescape")).hexdigest())


def _entry(path: str) -> str:
    return os.path.join(folders.state_home(), "trusted", _sha256(path))


def _write(path: str, text: str) -> None:
    """Replace a file of the user's atomically. Raises OSError."""
    folders.make_folders(os.path.dirname(path), 0o700)
    small_files.replace(path, os.fsencode(text), small_files.create_private)


def _read(entry: str) -> "tuple[str, str]":
    """The hash of the settings and the path in an entry; ('', '') if the entry is not ours."""
    try:
        if not project.is_trusted_uid(os.lstat(entry).st_uid):
            return "", ""
        data = small_files.read_small(entry, os.path.dirname(entry)) or b""
    except OSError:
        return "", ""
    digest, _, path = os.fsdecode(data).partition(" ")
    return digest, path.removesuffix("\n")


def _digest(file: "SettingsFile") -> str:
    texts = file.texts()
    return _sha256("\n".join(f"{key} = {texts[key]!r}" for key in sorted(texts)))


def is_known(path: str) -> bool:
    """Whether the user has trusted the file at that path, with these settings or others."""
    return bool(folders.state_home()) and _read(_entry(path))[1] == path


def is_trusted(file: "SettingsFile") -> bool:
    """Whether the user has trusted the file with exactly these settings."""
    return is_known(file.path) and _read(_entry(file.path))[0] == _digest(file)


def add(file: "SettingsFile") -> None:
    """Trust a file with its present settings. Raises SandrunError."""
    if not folders.state_home():
        raise SandrunError("there is no home directory to keep trust in", "set HOME")
    entry = _entry(file.path)
    try:
        _write(entry, f"{_digest(file)} {file.path}\n")
    except OSError as error:
        raise SandrunError(
            f"cannot keep trust in {entry}: {error.strerror}", f"ls -ld {os.path.dirname(entry)}"
        ) from None


def revoke(path: str) -> bool:
    """Stop trusting the file at that path. False: it was not trusted. Raises OSError."""
    known = is_known(path)
    if known:
        os.unlink(_entry(path))
    return known


def paths() -> "list[str]":
    """The paths of all trusted files."""
    folder = os.path.join(folders.state_home(), "trusted")
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [(name, _read(os.path.join(folder, name))[1]) for name in names]
    return sorted(path for name, path in found if path and name == _sha256(path))


def _user_text(uid: int) -> str:
    """A user as messages name them: `uid 1000 (anna)`."""
    if sys.platform == "win32":
        return f"uid {uid}"
    import pwd

    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except KeyError:
        return f"uid {uid}"


def describe_ignored(file: "SettingsFile", keys: "list[str]") -> str:
    """A message: the settings of a file that are not in force, and why."""
    owner = f"belongs to {_user_text(file.owner)} and " if file.is_foreign else ""
    texts = file.texts()
    ignored = ", ".join(f"{key} = {texts[key][:40]}" for key in keys)
    return f"{file.path} {owner}is not trusted; not in force: {ignored or 'all of it'}"


def notify(untrusted: "Iterable[tuple[SettingsFile, list[str]]]", root: str, owner: int) -> None:
    """Report the settings that are not in force, and how to change that. Also report that the
    project `root` is a checkout of another user, `owner` (-1: it is not). Each message is written
    once per boot; with -v always."""
    for file, keys in untrusted:
        how = f"sandrun trust {command_text([file.path])}"
        _once(f"{describe_ignored(file, keys)}; to allow it: {how}")
    if owner < 0:
        return
    checkout = f"the project {root} is a checkout of {_user_text(owner)}"
    if not project.git_directory(root):
        messages.decision(
            f"{checkout}: you may not write to it, so your runs wait only for each other"
        )
    elif sys.platform != "win32" and os.geteuid() == 0:  # any other user knows that it is shared
        _once(f"{checkout}: your runs and theirs take turns")


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
    """Whether `mark` has not been noted since the boot. Notes it, if the file can be written."""
    folder, boot = folders.state_home(), _boot()
    if not folder:
        return True
    path = os.path.join(folder, "told")
    try:
        noted = (small_files.read_small(path, folder) or b"").decode("ascii", "replace").split()
        if noted[:1] == [boot] and mark in noted:
            return False
        _write(path, "\n".join([*(noted if noted[:1] == [boot] else [boot]), mark, ""]))
    except OSError:
        pass
    return True
