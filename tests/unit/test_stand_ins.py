"""What the core takes from the modules that Windows has its own of is there, with the same call.

Told by the sources alone, so that it is checked where no such module can be run.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from sandrun.windows import STAND_INS

ROOT = Path(__file__).resolve().parents[2] / "sandrun"
# What a run and every subcommand on Windows is made of, besides the stand-ins.
_NOT_THERE = {"doctor", "namespaces", "outside", "terminal", "unused_states", "witness"}
_NOT_THERE |= set(STAND_INS)
CORE = [
    *(path for path in ROOT.glob("*.py") if path.stem not in _NOT_THERE),
    *(ROOT / "cli").glob("*.py"),
    *(ROOT / "windows" / f"{name}.py" for name in ("doctor", "emergency", "git", "shims")),
    *(ROOT.parent / "backends" / f"{name}.py" for name in ("__init__", "job", "none")),
]
# Methods that only their own module calls; others have these names too (str, time, Queue.keep).
ALONE = {"keep", "replace", "sleep"}
# Named only where it is said that this is not Windows.
ELSEWHERE = {
    ("nesting", "kernel", "read"),
    *((user, "kernel", "PROC") for user in ("nesting", "clocks", "emergency")),
    *(("emergency", "kernel", name) for name in ("NOWHERE", "MOUNT_PROC")),
}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def definitions(path: Path) -> "dict[str, ast.stmt]":
    """The names that a module defines at its top, and by what."""
    found: dict[str, ast.stmt] = {}
    for node in ast.walk(parsed(path)):
        if isinstance(node, Function | ast.ClassDef):
            found.setdefault(node.name, node)
    for statement in parsed(path).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else []
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else targets
        found |= {t.id: statement for t in targets if isinstance(t, ast.Name)}
    return found


def taken(path: Path) -> "Iterator[tuple[str, str]]":
    """Which names of which stand-in a module takes."""
    nodes = list(ast.walk(parsed(path)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    modules = {a.name for node in imports if node.module == "sandrun" for a in node.names}
    for statement in imports:
        package, _, module = (statement.module or "").rpartition(".")
        if package == "sandrun" and module in STAND_INS:
            yield from ((module, alias.name) for alias in statement.names)
    for node in (node for node in nodes if isinstance(node, ast.Attribute)):
        if isinstance(node.value, ast.Name) and node.value.id in modules.intersection(STAND_INS):
            yield node.value.id, node.attr


def parameters(function: ast.stmt) -> "list[str]":
    """The parameters that every call has to give."""
    assert isinstance(function, Function)
    given = function.args
    return [a.arg for a in given.args[: len(given.args) - len(given.defaults)] if a.arg != "self"]


def methods(definition: ast.stmt) -> "dict[str, ast.stmt]":
    """By name, those of a base class in `sandrun.queue.ticket` included."""
    assert isinstance(definition, ast.ClassDef)
    shared = definitions(ROOT / "ticket.py")
    found: dict[str, ast.stmt] = {}
    for base in definition.bases:
        if isinstance(base, ast.Name) and base.id in shared:
            found |= methods(shared[base.id])
    return found | {node.name: node for node in definition.body if isinstance(node, Function)}


USES = sorted({(path.stem, *use) for path in CORE for use in taken(path)} - ELSEWHERE)
CALLED = {
    node.attr for path in CORE for node in ast.walk(parsed(path)) if isinstance(node, ast.Attribute)
} - ALONE


@pytest.mark.parametrize(("user", "module", "name"), USES)
def test_the_core_finds_what_it_takes(user: str, module: str, name: str) -> None:
    here = definitions(ROOT / "windows" / f"{module}.py")
    there = definitions(ROOT / f"{module}.py")
    assert name in here, f"sandrun.{user} takes it"
    if isinstance(there.get(name), Function):
        assert parameters(here[name]) == parameters(there[name])
    if isinstance(there.get(name), ast.ClassDef) and isinstance(here[name], ast.ClassDef):
        own = methods(here[name])
        for method, definition in methods(there[name]).items():
            made = method == "__init__" and name != "Heritage"  # which only `take` makes
            if made or (method in CALLED and method[0] != "_"):
                assert method in own, f"{name}.{method}"
                assert parameters(own[method]) == parameters(definition), f"{name}.{method}"


def test_the_contract_is_kept_on_windows_or_it_is_said_why_not() -> None:
    tests = ROOT.parent / "tests"
    posix, windows = (
        {name.removeprefix("test_") for name in definitions(tests / place / "test_contract.py")
         if name.startswith("test_")}
        for place in ("contract", "windows")
    )  # fmt: skip
    absent = definitions(tests / "windows/test_contract.py")["ABSENT"]
    assert isinstance(absent, ast.Assign)
    assert posix - windows == set(ast.literal_eval(absent.value))


def test_something_is_compared() -> None:
    assert {module for _, module, _ in USES} >= {"kernel", "queue", "runlock", "spawn", "waiting"}
