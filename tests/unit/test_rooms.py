"""The import rules between rooms: imports point down only, and no modules form a cycle.

Read from the sources, so lazy imports and type-only imports count too.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYERS = (
    {"cli"},
    {"integrations", "doctor", "insight"},
    {"lifecycle"},
    {"queue", "supervise", "git"},
    {"backends", "config"},
    {"history"},
    {"messages", "errors"},
    {"platform"},
    {"model", "bare"},
    {"types"},
)
"""A room may import the rooms of the layers below its own, and none of its own layer."""
LEVEL = {room: number for number, layer in enumerate(LAYERS) for room in layer}
FACADE = {"sandrun", "sandrun.__main__", "sandrun.api", "sandrun.importer"}
"""What users start and import. Every room may read `sandrun.__version__`."""


@cache
def modules() -> "dict[str, Path]":
    """Every module of the package, by its name, with its file."""
    found = {}
    for top in ("sandrun", "backends"):
        for file in (ROOT / top).rglob("*.py"):
            parts = file.relative_to(ROOT).with_suffix("").parts
            parts = parts if top == "sandrun" else ("sandrun", *parts)
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


@cache
def imports(module: str) -> "frozenset[str]":
    """The modules of ours that `module` imports, anywhere in its source."""
    return frozenset(_imports(ast.parse(modules()[module].read_text())))


def _imports(tree: ast.AST) -> "Iterator[str]":
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] == "sandrun")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sandrun":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in modules() else node.module or ""


def room(module: str) -> str:
    return (module.split(".") + [""])[1]


def imports_between_rooms() -> "Iterator[tuple[str, str]]":
    """Each import that leaves its room."""
    for module in modules():
        for other in imports(module):
            if FACADE.isdisjoint((module, other)) and room(module) != room(other):
                yield module, other


def is_down(module: str, other: str) -> bool:
    # Backends get their limits as values and know no settings.
    if (room(module), room(other)) == ("backends", "config"):
        return False
    return LEVEL[room(module)] < LEVEL[room(other)]


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in modules().keys() - FACADE} == LEVEL.keys()


def test_imports_point_down() -> None:
    up = [
        f"{module} -> {other}"
        for module, other in imports_between_rooms()
        if not is_down(module, other)
    ]
    assert not up


def test_a_rooms_docstring_states_its_promise_and_its_imports() -> None:
    for name in LEVEL:
        file = modules()[f"sandrun.{name}"]
        if file.name == "__init__.py":
            words = ast.get_docstring(ast.parse(file.read_text())) or ""
            assert "Promises" in words and "Imports" in words, name


def test_no_modules_form_a_cycle() -> None:
    assert not set(cycles())


def cycles() -> "Iterator[frozenset[str]]":
    """The groups of modules that import each other, directly or indirectly."""
    reach = {module: set(_siblings(module)) for module in modules()}
    grows = True
    while grows:
        grows = False
        for module, seen in reach.items():
            reach[module] = seen.union(*(reach[other] for other in seen))
            grows = grows or reach[module] != seen
    for module, seen in reach.items():
        if module in seen:
            yield frozenset(other for other in seen if module in reach[other])


def _siblings(module: str) -> "Iterator[str]":
    """What a module imports, without the package files that choose an implementation."""
    packages = {name for name, file in modules().items() if file.name == "__init__.py"}
    return (other for other in imports(module) if other not in packages or module in packages)
