"""Our own modules are imported as Python would import them, only faster (`sandrun.importer`)."""

import compileall
import importlib
import marshal
import os
import py_compile
import shutil
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


COUNTING = """
import os, sys
sys.path.insert(0, sys.argv[1])
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
from sandrun import importer
importer.install()
import sandrun.cli
from sandrun import messages
own = [path for path in opened if f"{os.sep}sandrun{os.sep}" in str(path)]
print(len([path for path in own if str(path).endswith(".pyc")]), getattr(messages, "changed", 0))
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A compiled copy of the package, whose modules are imported from there."""
    for name in ("sandrun", "backends"):
        source = Path(importer.__file__).parent
        source = source if name == "sandrun" else source / "backends"
        ignored = shutil.ignore_patterns("__pycache__", "backends")
        shutil.copytree(source, tmp_path / "sandrun" / name.removeprefix("sandrun"), ignore=ignored)
    assert compileall.compile_dir(tmp_path, quiet=1)
    return tmp_path


def start(folder: Path, *options: str) -> "tuple[int, int]":
    """Import `sandrun.cli` as a start does, from that folder. Returns the number of compiled files
    that were opened, and what was changed in `sandrun.messages`."""
    words = [sys.executable, "-I", "-S", *options, "-c", COUNTING, str(folder)]
    out = subprocess.run(words, umask=0o077, check=True, capture_output=True, text=True).stdout
    return tuple(map(int, out.split()))  # type: ignore[return-value]


def test_what_is_imported_together_is_read_at_once_the_next_time(copy: Path) -> None:
    cached = Path(importlib.util.cache_from_source(str(copy / "sandrun/cli/__init__.py")))
    before = cached.stat()
    first, _ = start(copy, "-B")
    # Python was told to write no compiled files.
    assert (cached.stat().st_mtime_ns, cached.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert start(copy)[0] > first  # read once more, to write the bundle
    assert cached.read_bytes().endswith(importer.MARK)
    assert (cached.stat().st_mode, cached.stat().st_uid) == (before.st_mode, before.st_uid)
    assert start(copy)[0] <= first - 10
    # Python, which does not look behind the code, uses the same file.
    plain = "import sys; sys.path.insert(0, sys.argv[1]); import sandrun.cli"
    written = cached.stat()
    subprocess.run([sys.executable, "-I", "-S", "-c", plain, str(copy)], check=True)
    assert cached.stat().st_mtime_ns == written.st_mtime_ns


def test_a_bundle_with_another_source_is_not_used(copy: Path) -> None:
    start(copy)
    source = copy / "sandrun/messages.py"
    source.write_text(source.read_text() + "changed = 1\n")
    assert start(copy)[1] == 1
    assert start(copy)[1] == 1  # also by the bundle that the last start has written
    source.write_text(source.read_text().replace("changed = 1", "changed = 2"))
    info = source.stat()
    os.utime(source, ns=(info.st_atime_ns, info.st_mtime_ns + 2_000_000_000))
    assert start(copy)[1] == 2


def test_a_bundle_that_is_cut_short_is_not_used(copy: Path) -> None:
    start(copy)
    few = start(copy)[0]
    cached = Path(importlib.util.cache_from_source(str(copy / "sandrun/cli/__init__.py")))
    data = cached.read_bytes()
    end = importer.bundle_start(data)
    for rest in (data[end : end + 1000] + data[-len(importer.MARK) - 8 :], data[end:-1]):
        cached.write_bytes(data[:end] + rest)
        assert start(copy)[0] > few + 5


def test_a_bundle_is_not_used_without_the_packages_that_were_loaded_before(copy: Path) -> None:
    begin = "import sys; sys.path.insert(0, sys.argv[1]); from sandrun import importer; "
    begin += "importer.install(); "
    for before in ("import sandrun.lifecycle; ", ""):  # the first start writes the bundle
        code = f"{begin}{before}import sandrun.insight.run_log"
        subprocess.run([sys.executable, "-I", "-S", "-c", code, str(copy)], check=True)


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
