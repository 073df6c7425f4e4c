"""Writes suggested limits to the project's settings file.

Promises
- Comments, order and formatting stay, and no other value changes: the result is parsed and compared
  before it is written.
- The file is replaced atomically, with its mode and owner, at the end of a symbolic link (which may
  not lead out of the project). A file that changed meanwhile is left alone.
- Nothing is written if nothing changes.

The file is the `sandrun.toml` at the project's top; else the pyproject.toml there, if it has a
table of ours; else a new `sandrun.toml`. Whether the values take effect depends on trust
(`sandrun.config.settings`); messages report it.
"""

import os
from types import ModuleType
from typing import Any

from sandrun.config import settings, settings_files, trust
from sandrun.config.options import OPTIONS
from sandrun.config.values import Option
from sandrun.model import SandrunError, command_text
from sandrun.platform import folders
from sandrun.platform.small_files import read_small, replace

Values = dict[str, str | int]


def apply(tomlkit: ModuleType, values: Values, root: str, chosen: settings.Settings) -> "list[str]":
    """Write `values` and describe what was done, in lines. Raises SandrunError."""
    if not values:
        return ["nothing to write: too few runs"]
    file = _file(root)
    path = file.path if file else os.path.join(root, "sandrun.toml")
    before = _read(path, root)
    after, changes = _edited(tomlkit, before or "", values, path)
    if not changes:
        return [f"nothing to change in {path}"]
    is_known = file is not None and trust.is_known(path)
    _replace(path, before, after, root)
    return [f"{path}: {', '.join(changes)}", *_in_force(values, path, root, chosen, is_known)]


def _file(root: str) -> "settings_files.File | None":
    """The settings file at the project's top; None: there is none yet."""
    problems: list[str] = []
    found = settings.project_files(root, root, problems)
    if found and found[0].is_foreign:
        raise SandrunError(f"{found[0].path} belongs to another user", f"ls -l {found[0].path}")
    if not found and os.path.lexists(os.path.join(root, "sandrun.toml")):
        raise SandrunError(
            (problems or [f"{root}/sandrun.toml cannot be read"])[0], f"ls -l {root}"
        )
    return found[0] if found else None


def _read(path: str, root: str) -> "str | None":
    try:
        data = read_small(path, root)
        return None if data is None else data.decode()
    except OSError as error:
        raise SandrunError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SandrunError(f"{path} is not UTF-8, as TOML must be") from None


def _edited(tomlkit: ModuleType, text: str, values: Values, path: str) -> "tuple[str, list[str]]":
    """The text with the values, and a description of each change."""
    import tomllib

    mark = text[: text.startswith("\ufeff")]
    has_returns = "\r\n" in text
    try:
        document = tomlkit.parse(text.removeprefix(mark))
        expected = tomllib.loads(text.removeprefix(mark))
    except ValueError as error:
        raise SandrunError(f"{path}: {error}", "correct the file first") from None
    table, wanted = _table(document, path), _table(expected, path)
    changes = []
    for option in OPTIONS:
        if option.key in values and (change := _change(option, values[option.key], wanted)):
            key, old = change
            table[key] = wanted[key] = values[option.key]
            changes.append(
                f"{key} = {_shown(values[option.key])}" + (f" (was {old})" if old else "")
            )
    after = mark + tomlkit.dumps(document)
    if has_returns:
        after = after.replace("\r\n", "\n").replace("\n", "\r\n")
    if tomllib.loads(after.removeprefix(mark)) != expected:
        raise SandrunError(f"{path} has a form that cannot be edited", "add the lines by hand")
    return after, changes


def _table(document: Any, path: str) -> Any:
    if not path.endswith("pyproject.toml"):
        return document
    return document["tool"]["sandrun"]


def _change(
    option: Option, value: "str | int", table: "dict[str, object]"
) -> "tuple[str, str] | None":
    """The key to set and its old value as text; None: it already has an equal value."""
    key = next((name for name in option.names() if name in table), option.key)
    if key not in table:
        return key, ""
    try:
        if option.convert(str(table[key])) == option.convert(str(value)):
            return None
    except ValueError:
        pass
    return key, _shown(table[key])


def _shown(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _replace(path: str, before: "str | None", after: str, root: str) -> None:
    real = os.path.realpath(path)

    def finish(fd: int) -> None:
        if before is not None:
            folders.keep_rights(fd, os.stat(real))
        os.fsync(fd)
        if _read(path, root) != before:
            raise SandrunError(f"{path} has just been changed by another program", "try again")

    try:
        replace(real, after.encode(), finish=finish)
    except OSError as error:
        raise SandrunError(f"cannot write {real}: {error.strerror}", f"ls -ld {root}") from None


def _in_force(
    values: Values, path: str, root: str, chosen: settings.Settings, was_trusted: bool
) -> "list[str]":
    """Lines about the written values that do not take effect, and why."""
    shown = {key: getattr(chosen, key) for key in ("verbose", "quiet", "color")}
    now = settings.resolve(shown, root, root)
    lines = []
    kept = {key for file, keys in now.untrusted.items() if file.path == path for key in keys}
    how = f"sandrun trust {command_text([path])}"
    for key in values:
        if now.source[key] != path and key in kept:
            lines.append(f"{key} is looser than in your own file: in force after {how}")
        elif now.source[key] != path:
            lines.append(f"{key} is not in force: {now.source[key]} sets it")
    if was_trusted:
        lines.append(f"the file has changed, so trust in its other settings ended: {how}")
    return lines
