"""`sandrun init`: what a project needs so that its entry points take their turns; and its undoing.

Promises: nothing is asked, and nothing is kept about what was done, so it can be said again at any
time: each step looks at the files as they are. A file of the user's is never replaced, only a line
of ours is put into it or taken out of it. A file that we wrote is removed only while it is still
what we wrote. A step that would have to do more than that says why it is left to the user.
"""

import os
import stat
from collections.abc import Callable, Iterator

from sandrun import options, project
from sandrun.entry import shims
from sandrun.model import MIB

MAKEFILES = ("GNUmakefile", "makefile", "Makefile")  # the order in which GNU make looks
INCLUDE_LINE = "-include sandrun.mk\n"
HOOK_LINE = (
    '[ -n "${SANDRUN_HOOK-}" ] || ! command -v sandrun >/dev/null || '
    'SANDRUN_HOOK=1 exec sandrun -- "$0" "$@" # sandrun init\n'
)
_SHELLS = (b"sh", b"bash", b"dash", b"zsh", b"ksh")
_TOOLS = {
    "make": MAKEFILES,
    "ninja": ("build.ninja",),
    "cmake": ("CMakeLists.txt",),
    "pytest": ("pytest.ini", "conftest.py", "tests/conftest.py", "tox.ini"),
    "npm": ("package.json",),
    "cargo": ("Cargo.toml",),
    "go": ("go.mod",),
    "git": (".git",),
}


class Step:
    """One thing to do: `says` it, and `act` does it; without an `act` it is left as it is."""

    def __init__(self, says: str, act: "Callable[[], object] | None" = None) -> None:
        self.says = says
        self.act = act


def include() -> str:
    """The path of our own copy of sandrun.mk."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandrun.mk")


def settings_text() -> str:
    """A sandrun.toml in which every setting stands with its default, commented out."""
    lines = [
        "# Settings of sandrun for this project; each is optional: sandrun config shows them all"
    ]
    for option in options.OPTIONS:
        if option.scope != "all":
            continue
        value = option.default
        if option.kind == "size" and isinstance(value, int):
            value = f"{value // MIB}M"
        unset = value in ("", -1) or (value == 0.0 and option.kind == "share")
        shown = "..." if unset else value if isinstance(value, int | float) else f'"{value}"'
        lines.append(f"#{option.key} = {shown}  # {option.help}")
    return "\n".join(lines) + "\n"


def steps(root: str, undo: bool) -> "Iterator[Step]":
    """What is to be done, or undone, in the project `root`."""
    yield _own_file(os.path.join(root, "sandrun.toml"), settings_text(), undo, _has_table(root))
    makefile = next((m for m in MAKEFILES if os.path.isfile(os.path.join(root, m))), "")
    if makefile:
        with open(include(), encoding="utf-8") as file:
            yield _own_file(os.path.join(root, "sandrun.mk"), file.read(), undo)
        yield _line(os.path.join(root, makefile), INCLUDE_LINE, 0, undo, "sandrun.mk")
    yield from _hook(root, undo)
    yield from _shims(root, undo)


def _has_table(root: str) -> str:
    settled = os.path.join(root, "pyproject.toml")
    return settled if b"[tool.sandrun]" in _read(settled) else ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _own_file(path: str, text: str, undo: bool, instead: str = "") -> Step:
    """A file that is wholly ours."""
    if undo:
        if not os.path.lexists(path):
            return Step(f"no {path}")
        if _read(path) != text.encode():
            return Step(f"leave {path}: it was edited, or is of another version")
        return Step(f"remove {path}", lambda: os.unlink(path))
    if instead:
        return Step(f"leave out {path}: {instead} has the settings")
    if os.path.lexists(path):
        same = _read(path) == text.encode()
        return Step(f"keep {path}" + ("" if same else ": it was edited, or is of another version"))
    return Step(f"write {path}", lambda: _write_new(path, text))


def _write_new(path: str, text: str) -> None:
    with open(path, "x", encoding="utf-8", newline="\n") as file:
        file.write(text)


def _line(path: str, line: str, at: int, undo: bool, mark: str) -> Step:
    """A line of ours in a file of the user's, after `at` of theirs; `mark` tells that one is in."""
    lines = _read(path).decode("utf-8", "surrogateescape").splitlines(keepends=True)
    if undo:
        if line not in lines:
            return Step(f"nothing of ours in {path}")
        lines.remove(line)
        return Step(f"take out of {path}: {line.rstrip()}", lambda: _rewrite(path, lines))
    if any(mark in other and not other.startswith("#") for other in lines):
        return Step(f"keep {path}: it has the line")
    lines.insert(at, line)
    return Step(f"put into {path}: {line.rstrip()}", lambda: _rewrite(path, lines))


def _rewrite(path: str, lines: "list[str]") -> None:
    """Replace a file's text in one step, under its own mode, through its links."""
    path = os.path.realpath(path)
    private = f"{path}.sandrun.{os.getpid()}"
    with open(private, "x", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.writelines(lines)
    os.chmod(private, stat.S_IMODE(os.stat(path).st_mode))
    os.replace(private, path)


def _hook(root: str, undo: bool) -> "Iterator[Step]":
    """The pre-commit hook, if there is one: it goes on as a run of itself."""
    path = os.path.join(_hooks(root), "pre-commit")
    if not os.path.isfile(path):
        if os.path.isfile(os.path.join(root, ".pre-commit-config.yaml")) and not undo:
            yield Step("no pre-commit hook yet: pre-commit install, then sandrun init once more")
        return
    first = _read(path).partition(b"\n")[0]
    words = first[2:].replace(b"/", b" ").split()
    if first.startswith(b"#!") and any(word in _SHELLS for word in words):
        yield _line(path, HOOK_LINE, 1, undo, "SANDRUN_HOOK")
    else:
        yield Step(f"leave {path}: no shell script; call it through sandrun -- yourself")


def _hooks(root: str) -> str:
    """The folder of the repository's hooks, which core.hooksPath may have moved."""
    import subprocess

    if not project.git_directory(root):
        return os.path.join(root, ".git", "hooks")
    try:
        said = subprocess.run(
            ["git", "-C", root, "rev-parse", "--git-path", "hooks"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return os.path.join(root, ".git", "hooks")
    return os.path.join(root, said.stdout.rstrip("\n"))


def _shims(root: str, undo: bool) -> "Iterator[Step]":
    has = shims.installed()
    for tool, marks in _TOOLS.items():
        if not any(os.path.exists(os.path.join(root, mark)) for mark in marks):
            continue
        if undo:
            if tool in has:
                yield Step(f"leave the shim for {tool}, which all projects share: "
                           f"sandrun shims remove {tool}")  # fmt: skip
        elif tool in has:
            yield Step(f"keep the shim for {tool}")
        else:
            yield Step(f"add a shim for {tool}: {os.path.join(shims.directory(), tool)}",
                       lambda tool=tool: shims.add(tool))  # type: ignore[misc]  # fmt: skip
    if not undo and not shims.active():
        yield Step(
            'shims are not on PATH yet: eval "$(sandrun shims activate bash)" (or zsh, fish)'
        )
