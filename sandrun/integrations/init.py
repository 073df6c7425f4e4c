"""`sandrun init`: set a project up so that make, hooks and tools use its queue, and undo that.

Promises: it asks nothing and stores no state, so it can be run again at any time: each step
examines the files as they are. A user's file is never rewritten; one line of ours is added to it or
removed from it. A file that we wrote is removed only if it is unchanged, and a shim, which all
projects share, only if we added it and no other project wants it. A file that is generated, or that
belongs to more than this project, is not changed; a message gives the reason and an alternative.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator

from sandrun.integrations import files, hooks, shims
from sandrun.model import SandrunError
from sandrun.platform import folders
from sandrun.platform.small_files import has_table

MAKEFILES = ("GNUmakefile", "makefile", "Makefile")  # the order in which GNU make looks
INCLUDE_LINE = "-include sandrun.mk\n"
# Matches a directive, but not a recipe (tab) or a comment that names the file.
_HAS_INCLUDE = re.compile(
    r"^ *[-s]?include[ \t](?:[^#\n]|\\\n)*(?<![\w.-])sandrun\.mk(?![\w.-])", re.MULTILINE
)
# The first comments of a Makefile that cmake, automake, configure, qmake, MakeMaker, premake, gyp,
# imake or the build of Linux generates.
_GENERATED = re.compile(
    r"^#.*\b(do not|don'?t) (edit|modify)\b(?=\W*$| (this|it\b|by hand))"
    r"|^#(.*\bmakefile(\.\w+)?)?\W*((is|was|it was) )?"
    r"(auto(matically )?)?generated (auto\w+ )?(by|from)",
    re.MULTILINE | re.IGNORECASE,
)
_LEADING_COMMENTS = re.compile(r"(\ufeff?#.*\n|[ \t\r]*\n)*")
# Lines that must stay first: an interpreter, an editor's mode, a licence tag.
_FIRST = re.compile(
    r"\ufeff?(#!{0})?(#.*(-\*-|SPDX-){0})*".replace("{0}", r"(.*\\\r?\n)*.*(\n|\Z)")
)
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
    """One step: `text` describes it, and `act` does it. Without `act` there is nothing to do."""

    def __init__(self, text: str, act: "Callable[[], object] | None" = None) -> None:
        self.text = text
        self.act = act

    def do(self) -> None:
        """Do the step. Raises SandrunError."""
        try:
            if self.act:
                self.act()
        except OSError as error:
            raise SandrunError(
                f"cannot {self.text}: {error.strerror}",
                "make that writable and run it again; sandrun init --dry-run shows all steps",
            ) from error


def include() -> str:
    """The path of our own copy of sandrun.mk."""
    return os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandrun.mk")


def settings_text() -> str:
    """A sandrun.toml that contains every setting, commented out."""
    return files.text(include().removesuffix("mk") + "toml")


def check(root: str) -> None:
    """Raise SandrunError if the directory is certainly not a project, so init is a mistake."""
    if os.path.lexists(os.path.join(root, "sandrun.toml")) or not os.access(root, os.W_OK):
        return  # sandrun.toml makes it a project; the first step reports that it is not writable
    hint = "cd to a project; or, to make this one: touch sandrun.toml, then run it again"
    if root in (os.path.realpath(home) for home in (folders.home(), _home_of_owner(root)) if home):
        raise SandrunError(f"{root} is a home directory, not a project", hint)
    if os.path.dirname(root) == root:
        raise SandrunError(f"{root} is the root of the system, not a project", hint)
    if os.stat(root).st_mode & 0o1002 == 0o1002:
        raise SandrunError(f"{root} is a directory for all users, not a project", hint)
    if {"HEAD", "objects", "refs"}.issubset(names := os.listdir(root)):
        raise SandrunError(f"{root} is a git directory, not a project", hint)
    if not names:
        raise SandrunError(f"{root} is empty, not a project", hint)


def _home_of_owner(root: str) -> str:
    if sys.platform == "win32":
        return ""
    import pwd

    try:
        return pwd.getpwuid(os.stat(root).st_uid).pw_dir
    except KeyError:
        return ""


def steps(root: str, undo: bool) -> "Iterator[Step]":
    """The steps to set up, or to undo, in the project `root`. Raises SandrunError."""
    if not undo:
        check(root)
    yield _own_file(os.path.join(root, "sandrun.toml"), settings_text(), undo, _has_table(root))
    yield from _make(root, undo)
    yield from _hook(root, undo)
    yield from _shims(root, undo)


def _has_table(root: str) -> str:
    settled = os.path.join(root, "pyproject.toml")
    return settled if has_table(files.read(settled)) else ""


def _make(root: str, undo: bool) -> "Iterator[Step]":
    """The steps for the Makefile and sandrun.mk. A generated Makefile gets only the shim."""
    name = next((m for m in MAKEFILES if os.path.isfile(os.path.join(root, m))), "")
    if not name:
        return
    path = os.path.join(root, name)
    text = files.text(path)
    real = os.path.realpath(path)
    why = ""
    comments = _LEADING_COMMENTS.match(text)
    found = _GENERATED.search(comments[0]) if comments else None
    if not hooks.is_below(real, root):
        why = f"it is {real}, outside of this project"
    elif found and not undo:
        why = f"it is generated ({text[found.start() :].splitlines()[0].strip('# ')})"
    if why:
        yield Step(f"leave {path}: {why}; the shim for make does the same")
    if not why or undo:
        with open(include(), encoding="utf-8") as file:
            yield _own_file(os.path.join(root, "sandrun.mk"), file.read(), undo)
    if not why:
        yield _line(path, INCLUDE_LINE, undo, _HAS_INCLUDE)


def _own_file(path: str, text: str, undo: bool, instead: str = "") -> Step:
    """The step for a file that contains only our text."""
    if undo:
        if not os.path.lexists(path):
            return Step(f"no {path}")
        if files.read(path) != text.encode():
            return Step(f"leave {path}: it was edited, or another version wrote it")
        return Step(f"remove {path}", lambda: os.unlink(path))
    if instead:
        return Step(f"leave out {path}: {instead} has the settings")
    if os.path.lexists(path):
        is_ours = files.read(path) == text.encode()
        why = "" if is_ours else ": it was edited, or another version wrote it"
        return Step(f"keep {path}{why}")
    return Step(f"write {path}", lambda: files.write_new(path, text))


def _line(path: str, line: str, undo: bool, has: "re.Pattern[str]") -> Step:
    """The step for our line in a user's file, near to its top. `has` matches a line that does the
    same.

    If our line comes after a last line without a newline, ours has none either, so that undoing
    restores the file exactly.
    """
    text = files.text(path)
    bare = line.rstrip()
    shown = bare if len(bare) < 40 else "the line that makes it use the queue"
    if undo:
        if _without(text, bare) is None:
            return Step(f"nothing of ours in {path}")
        step = f"remove from {path}: {shown}"
        return Step(step, lambda: files.change(path, lambda text: _without(text, bare) or ""))
    if has.search(text):
        return Step(f"keep {path}: it has the line")
    return Step(f"add to {path}: {shown}", lambda: files.change(path, lambda t: _with(t, bare)))


def _with(text: str, line: str) -> str:
    first = _FIRST.match(text)
    at = first.end() if first else 0
    if at and text[at - 1] not in "\n\ufeff":
        return f"{text}\n{line}"
    return f"{text[:at]}{line}\n{text[at:]}"


def _without(text: str, line: str) -> "str | None":
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    body = "\n" + text.removeprefix(mark)
    if body.endswith(f"\n{line}"):
        return mark + body[1 : -len(line)].removesuffix("\n")
    if f"\n{line}\n" in body:
        return mark + body.replace(f"\n{line}\n", "\n", 1)[1:]
    return None


def _hook(root: str, undo: bool) -> "Iterator[Step]":
    """The step for the pre-commit hook, which our line starts again in a run; and advice."""
    hook = hooks.find(root)
    if not hook.path:
        if hook.why and not undo:
            yield Step(hook.why)
    elif hook.why and not (undo and hook.undone):
        yield Step(f"leave {hook.path}: {hook.why}")
    else:
        text = files.text(hook.path)
        there = [line for line in (hooks.LINE, hooks.HUSKY_LINE) if line.rstrip() in text]
        line = there[0] if undo and there else hook.line  # husky may have been added or removed
        yield _line(hook.path, line, undo, hooks.HAS_LINE)
    if not undo:
        yield from map(Step, hooks.by_config(root))
        yield from (Step(f"{text}: {hooks.MAKE_THEM}") for text in hooks.missing(root))


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
    """The step for the shim of a tool. `wanted` lists the projects that want it; None: there is no
    shim yet."""
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
    text = f"remove the shim for {tool}: configure again builds that recorded it (CMakeCache.txt)"
    return Step(text, lambda: shims.remove(tool))
