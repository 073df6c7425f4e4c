"""`sandrun init`: what a project needs so that its entry points take their turns; and its undoing.

Promises: nothing is asked, and nothing is kept about what was done, so it can be said again at any
time: each step looks at the files as they are. A file of the user's is never replaced, only a line
of ours is put into it or taken out of it. A file that we wrote is removed only while it is still
what we wrote; a shim, which all projects share, only if we added it and no other project wants it.
A step that would have to do more than that says why it is left to the user.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator

from sandrun import gitguard, options, project
from sandrun.entry import shims
from sandrun.model import MIB, SandrunError

MAKEFILES = ("GNUmakefile", "makefile", "Makefile")  # the order in which GNU make looks
INCLUDE_LINE = "-include sandrun.mk\n"
# A directive, not a recipe (tab) or a comment that names the file.
_HAS_INCLUDE = re.compile(
    r"^ *[-s]?include[ \t](?:[^#\n]|\\\n)*(?<![\w.-])sandrun\.mk(?![\w.-])", re.MULTILINE
)
HOOK_LINE = (
    f'[ -n "${{{gitguard.HOOK_MARK}-}}" ] || ! command -v sandrun >/dev/null || '
    f'{gitguard.HOOK_MARK}="$0" exec sandrun -- "$0" "$@" # sandrun init\n'
)
_HAS_HOOK = re.compile(rf"^[^#\n]*\b{gitguard.HOOK_MARK}=", re.MULTILINE)
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

    def do(self) -> None:
        """Do it. Raises SandrunError."""
        try:
            if self.act:
                self.act()
        except OSError as error:
            raise SandrunError(
                f"cannot {self.says}: {error.strerror}",
                "make that writable and say it again; sandrun init --dry-run shows all that is due",
            ) from error


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
        yield _line(os.path.join(root, makefile), INCLUDE_LINE, 0, undo, _HAS_INCLUDE)
    yield from _hook(root, undo)
    yield from _shims(root, undo)


def _has_table(root: str) -> str:
    settled = os.path.join(root, "pyproject.toml")
    return settled if b"[tool.sandrun]" in _read(settled) else ""


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise SandrunError(f"cannot read {path}: {error.strerror}", f"ls -l {path}") from error


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


def _line(path: str, line: str, at: int, undo: bool, has: "re.Pattern[str]") -> Step:
    """A line of ours in a file of the user's, after `at` of theirs; `has` finds one like it.

    After a last line without its end ours has none either, so that undoing finds that out.
    """
    text = _read(path).decode("utf-8", "surrogateescape")
    bare = line.rstrip()
    if undo:
        if f"\n{text}".endswith(f"\n{bare}"):
            rest = text[: -len(bare)].removesuffix("\n")
        elif f"\n{line}" in f"\n{text}":
            rest = f"\n{text}".replace(f"\n{line}", "\n", 1)[1:]
        else:
            return Step(f"nothing of ours in {path}")
        return Step(f"take out of {path}: {bare}", lambda: _rewrite(path, rest))
    if has.search(text):
        return Step(f"keep {path}: it has the line")
    lines = text.split("\n")
    lines.insert(at, bare)
    return Step(f"put into {path}: {bare}", lambda: _rewrite(path, "\n".join(lines)))


def _rewrite(path: str, text: str) -> None:
    """Replace a file's text in one step, under its own mode, through its links."""
    path = os.path.realpath(path)
    private = f"{path}.sandrun.{os.getpid()}"
    with open(private, "x", encoding="utf-8", errors="surrogateescape", newline="") as file:
        file.write(text)
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
        yield _line(path, HOOK_LINE, 1, undo, _HAS_HOOK)
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
    has = {tool: shims.wanted_by(tool) for tool in shims.installed()}
    if undo:
        yield from (_without_shim(root, tool, has[tool]) for tool in has if root in has[tool])
        return
    for tool, marks in _TOOLS.items():
        if any(os.path.exists(os.path.join(root, mark)) for mark in marks):
            yield _with_shim(root, tool, has.get(tool))
    if not shims.active():
        yield Step(
            'shims are not on PATH yet: eval "$(sandrun shims activate bash)" (or zsh, fish)'
        )


def _with_shim(root: str, tool: str, wanted: "list[str] | None") -> Step:
    """The shim for a tool of this project; `wanted` by which projects, None: there is none yet."""
    if wanted is None:
        path = os.path.join(shims.directory(), tool)
        return Step(f"add a shim for {tool}: {path}", lambda: shims.add(tool, [root]))
    if root in wanted or not wanted:
        return Step(f"keep the shim for {tool}")
    text = f"keep the shim for {tool}, which was added for {wanted[0]}, for this project too"
    return Step(text, lambda: shims.add(tool, [*wanted, root]))


def _without_shim(root: str, tool: str, wanted: "list[str]") -> Step:
    others = [other for other in wanted if other != root and os.path.isdir(other)]
    if others:
        text = f"leave the shim for {tool}, which {others[0]} wants too"
        return Step(text, lambda: shims.add(tool, others))
    return Step(f"remove the shim for {tool}", lambda: shims.remove(tool))
