"""Our own modules are imported as Python would import them, only faster (`sandrun.importer`)."""

import importlib
import marshal
import os
import py_compile
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun import importer
from tests.harness import installed_env

MAGIC = importlib.util.MAGIC_NUMBER
CODE = "value = 1\n"


@pytest.fixture
def package(tmp_path: Path) -> "Iterator[tuple[Path, importer._Finder]]":
    """A package with a module `one` and a package `queue`, both compiled; and a finder for it."""
    (tmp_path / "queue").mkdir()
    for name in ("one.py", "queue/__init__.py", "queue/two.py"):
        (tmp_path / name).write_text(CODE)
        py_compile.compile(str(tmp_path / name), doraise=True)
    yield tmp_path, importer._Finder(str(tmp_path), MAGIC)


def test_modules_and_packages_are_found_as_by_python(
    package: "tuple[Path, importer._Finder]",
) -> None:
    folder, finder = package
    for name, file in (
        ("sandrun.one", "one.py"),
        ("sandrun.queue", "queue/__init__.py"),
        ("sandrun.queue.two", "queue/two.py"),
    ):
        path = str(folder / file)
        places = [str(folder / "queue")] if file.endswith("__init__.py") else None
        python = importlib.util.spec_from_file_location(
            name, path, submodule_search_locations=places
        )
        spec = finder.find_spec(name)
        assert spec and python
        for key in ("name", "origin", "cached", "parent", "submodule_search_locations"):
            assert getattr(spec, key) == getattr(python, key), key
        module = importlib.util.module_from_spec(spec)
        assert spec.loader
        spec.loader.exec_module(module)
        assert (module.value, module.__file__) == (1, path)


def test_other_packages_are_left_alone(package: "tuple[Path, importer._Finder]") -> None:
    assert all(package[1].find_spec(name) is None for name in ("one", "sandrun", "sandrunx.one"))


@pytest.mark.parametrize(
    "change", ["newer", "longer", "gone", "no source", "cut", "other Python", "checked hash"]
)
def test_a_file_that_is_not_of_the_current_source_is_left_to_python(
    package: "tuple[Path, importer._Finder]", change: str
) -> None:
    folder, finder = package
    source = folder / "one.py"
    cached = Path(importlib.util.cache_from_source(str(source)))
    info = source.stat()
    if change == "newer":
        os.utime(source, (info.st_atime, info.st_mtime + 2))
    elif change == "longer":
        source.write_text(CODE + CODE)
        os.utime(source, (info.st_atime, info.st_mtime))
    elif change == "gone":
        cached.unlink()
    elif change == "no source":
        source.unlink()
    elif change == "cut":
        cached.write_bytes(cached.read_bytes()[:-10])
    elif change == "other Python":
        cached.write_bytes(b"\0\0\r\n" + cached.read_bytes()[4:])
    else:
        mode = py_compile.PycInvalidationMode.CHECKED_HASH
        py_compile.compile(str(source), invalidation_mode=mode, doraise=True)
    assert finder.find_spec("sandrun.one") is None


def test_every_package_of_ours_is_known() -> None:
    folder = Path(importer.__file__).parent
    found = {path.parent.name for path in folder.glob("*/__init__.py")}
    assert found == importer._PACKAGES


def test_the_code_is_the_compiled_one(package: "tuple[Path, importer._Finder]") -> None:
    """Not read from the source, whose compiling costs more than a whole start."""
    folder, finder = package
    cached = Path(importlib.util.cache_from_source(str(folder / "one.py")))
    other = compile("value = 2\n", "one.py", "exec")
    cached.write_bytes(cached.read_bytes()[:16] + marshal.dumps(other))
    spec = finder.find_spec("sandrun.one")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.value == 2


def test_install_asks_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "pycache_prefix", None)
    importer.install()
    assert isinstance(sys.meta_path[0], importer._Finder)
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.setattr(sys, "pycache_prefix", "/elsewhere")
    importer.install()
    assert sys.meta_path == []


STARTERS = {
    "the script": "runpy.run_path({top!r} + '/bin/sandrun')",
    "the entry point": "from sandrun.__main__ import start; start()",
    "a shim's launcher": "sys.argv = ['launch', '--guard', '/bin/true']; "
    "runpy.run_path({top!r} + '/cli/launch.py', run_name='__main__')",
}


@pytest.mark.parametrize("how", STARTERS)
def test_every_way_to_start_installs_it(how: str) -> None:
    top = str(Path(__file__).resolve().parents[2] / "sandrun")
    code = (
        "import runpy, sys; from sandrun import cli; "
        "cli.main = lambda: print(type(sys.meta_path[0]).__module__); "
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code + STARTERS[how].format(top=top)],
        env=installed_env(dict(os.environ)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "sandrun.importer\n", done.stderr
