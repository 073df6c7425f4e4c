"""Modules that are loaded late are held open (`lifecycle.module_files`), whatever they import."""

import ast
import importlib
import py_compile
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandrun
from sandrun.lifecycle import module_files
from tests.integration.test_start import OURS

TOP = Path(sandrun.__file__).parent


def modules(names: "tuple[str, ...]") -> "set[str]":
    return {f"sandrun.{name.replace('/', '.')}" for name in names}


HELD = modules(module_files.LATE)
# Before the command starts, and in every run with a container: what may come late comes from there.
STARTED = OURS | {"sandrun.supervise.keeper", "sandrun.backends.sampler"}
# Only while a git is waited for, before the command; only on other systems; only for a taken name;
# loaded before the wait where it is needed at all; what asks for escapes is that one itself.
ELSEWHERE = {
    *("sandrun.lifecycle.namespaces", "sandrun.backends.cgroup_common"),
    *(
        "sandrun.git.inotify",
        "sandrun.git.waiter",
        "sandrun.platform.macos_processes",
        "sandrun.platform.macos_sigwait",
    ),
    *("sandrun.windows", "sandrun.platform.windows_files", "sandrun.platform.windows_console"),
}


def imported(name: str) -> "Iterator[str]":
    """The modules of ours that a module imports anywhere, but for type checkers."""
    path = TOP / name.removeprefix("sandrun.").replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text())
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    checks = [node for node in checks if "TYPE_CHECKING" in ast.unparse(node.test)]
    types = {id(node) for check in checks for node in ast.walk(check)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in types:
            continue
        module = node.module or ""
        if module in ("sandrun", "sandrun.git.guard", "sandrun.backends", "sandrun.windows"):
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif module.startswith("sandrun."):
            yield module


@pytest.mark.parametrize("name", sorted(HELD | {"sandrun.supervise", "sandrun.supervise.keeper"}))
def test_all_that_may_be_loaded_late_is_held(name: str) -> None:
    assert set(imported(name)) <= HELD | STARTED | ELSEWHERE


# A waiter has loaded them, or what it is started by.
LOADED = {
    *(f"sandrun.{name}" for name in ("feedback", "leaving", "nesting", "waiting")),
    "sandrun.git.guard",
}


def test_a_waiter_holds_all_that_its_run_may_load() -> None:
    seen: set[str] = set()
    ahead = {"sandrun.lifecycle.runner", "sandrun.lifecycle.admission"}
    systems = {"sandrun.backends.rlimit_macos", "sandrun.backends.job_object"}
    while ahead:
        name = ahead.pop()
        seen.add(name)
        if (
            not name.startswith(("sandrun.windows", "sandrun.platform.macos_processes"))
            and name not in systems
        ):
            ahead |= set(imported(name)) - seen
    allowed = HELD | modules(module_files.WAITING) | STARTED | ELSEWHERE | LOADED | systems
    assert {name for name in seen if "windows" not in name} <= allowed


def test_a_held_module_is_loaded_from_the_open_file(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text("value = 3\n")
    with open(file) as held:
        module_files._held["sandrun.late"] = held.fileno(), str(file)
        finder = module_files._Finder(first=True)
        try:
            assert finder.find_spec("sandrun.late") is None  # as long as it is in its place
            file.unlink()
            file.write_text("raise SystemError\n")
            sys.meta_path.insert(0, finder)
            assert importlib.import_module("sandrun.late").value == 3
        finally:
            sys.meta_path.remove(finder)
            del module_files._held["sandrun.late"]


def test_a_package_that_is_half_gone_is_whole_for_us(tmp_path: Path) -> None:
    """`rm -r` took the source, and not yet the compiled file: that is no module for Python."""
    folder = tmp_path / "sandrun_half"
    folder.mkdir()
    (folder / "__init__.py").touch()
    source = folder / "late.py"
    source.write_text("value = 3\n")
    compiled = str(py_compile.compile(str(source), doraise=True))
    source.unlink()
    finders = [module_files._Finder(first) for first in (True, False)]
    sys.path.insert(0, str(tmp_path))
    with open(compiled) as held:
        module_files._held["sandrun_half.late"] = held.fileno(), compiled
        try:
            sys.meta_path[:] = [finders[0], *sys.meta_path, finders[1]]
            assert importlib.import_module("sandrun_half.late").value == 3
        finally:
            sys.meta_path[:] = [each for each in sys.meta_path if each not in finders]
            sys.path.remove(str(tmp_path))
            del module_files._held["sandrun_half.late"]
