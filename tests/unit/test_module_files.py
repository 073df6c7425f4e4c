"""Modules that are loaded late are held open (`lifecycle.module_files`), whatever they import."""

import ast
import importlib
import py_compile
import sys
from collections.abc import Iterable, Iterator
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
KEEPER = {f"sandrun.supervise.{name}" for name in ("keeper", "posix_keeper")}
STARTED = OURS | KEEPER | {"sandrun.backends.sampler"}
SUPERVISING = KEEPER | {
    f"sandrun.supervise{name}" for name in ("", ".posix_supervisor", ".supervisor")
}
# Only while a git is waited for, before the command; only on other systems; only for a taken name;
# loaded before the wait where it is needed at all; what asks for escapes is that one itself.
ELSEWHERE = {
    *("sandrun.lifecycle.isolation", "sandrun.lifecycle.namespaces"),
    *("sandrun.backends.cgroup_common", "sandrun.git.inotify", "sandrun.git.waiter"),
}
OTHER_SYSTEMS = ("windows", "macos", "job_object")


def file_of(module: str) -> "Path | None":
    path = TOP / module.removeprefix("sandrun.").replace(".", "/")
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if file.exists()), None)


def imported(name: str) -> "Iterator[str]":
    """The modules of ours that a module imports anywhere, but for type checkers."""
    file = file_of(name)
    assert file
    tree = ast.parse(file.read_text())
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    checks = [node for node in checks if "TYPE_CHECKING" in ast.unparse(node.test)]
    types = {id(node) for check in checks for node in ast.walk(check)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or id(node) in types:
            continue
        module = node.module or ""
        if module.startswith("sandrun."):
            yield module
        if module.startswith("sandrun"):
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from filter(file_of, names)


@pytest.mark.parametrize("name", sorted(HELD | SUPERVISING))
def test_all_that_may_be_loaded_late_is_held(name: str) -> None:
    assert set(ours(imported(name))) <= HELD | STARTED | ELSEWHERE


def ours(names: "Iterable[str]") -> "Iterator[str]":
    """Those that are not of another system."""
    return (n for n in names if not any(word in n for word in OTHER_SYSTEMS))


@pytest.mark.parametrize("name", sorted(modules(module_files.REPORTING)))
def test_all_that_reports_an_end_is_held(name: str) -> None:
    """`End.prepare` has loaded the packages; only `sandrun status` asks who holds a lock."""
    known = {"sandrun", "sandrun.insight", "sandrun.integrations", "sandrun.queue.lock_holders"}
    held = modules(module_files.REPORTING) | HELD | STARTED | ELSEWHERE | known
    assert set(ours(imported(name))) <= held


# A waiter has loaded them, or what it is started by.
LOADED = {
    *(f"sandrun.{name}" for name in ("errors", "git.guard", "platform.linux_locks")),
    *(f"sandrun.queue.{name}" for name in ("nesting", "progress", "waiter", "posix_waiter")),
}


def test_a_waiter_holds_all_that_its_run_may_load() -> None:
    seen: set[str] = set()
    ahead = {"sandrun.lifecycle.runner", "sandrun.lifecycle.admission"}
    while ahead:
        name = ahead.pop()
        seen.add(name)
        ahead |= set(ours(imported(name))) - seen
    assert seen <= HELD | modules(module_files.WAITING) | STARTED | ELSEWHERE | LOADED


def test_a_held_module_is_loaded_from_the_open_file(tmp_path: Path) -> None:
    file = tmp_path / "late.py"
    file.write_text("value = 3\n")
    with open(file) as held:
        module_files._held["sandrun.late"] = held.fileno(), str(file)
        finder = module_files._Finder(first=True)
        try:
            file.unlink()
            file.write_text("raise SystemError\n")
            sys.meta_path.insert(0, finder)
            assert importlib.import_module("sandrun.late").value == 3
        finally:
            sys.meta_path.remove(finder)
            del module_files._held["sandrun.late"]


@pytest.mark.parametrize(
    ("change", "is_loaded"),
    [("", True), ("source gone", True), ("replaced", True), ("stale", False)],
)
def test_only_a_stale_compiled_file_is_left_to_python(
    tmp_path: Path, change: str, is_loaded: bool
) -> None:
    """Python could lose any other file between finding and opening it."""
    source = tmp_path / "late.py"
    source.write_text("value = 3\n")
    cached = Path(py_compile.compile(str(source), doraise=True) or "")
    with open(cached) as held:
        module_files._held["sandrun.late"] = held.fileno(), str(cached)
        try:
            if change == "source gone":
                source.unlink()
            elif change == "replaced":
                cached.unlink()
                source.write_text("raise SystemError\n")
                py_compile.compile(str(source), doraise=True)
            elif change == "stale":
                source.write_text("value = 4  # not compiled yet\n")
            spec = module_files._Finder(first=True).find_spec("sandrun.late")
            assert (spec is not None) == is_loaded
        finally:
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
