"""The wheel: what it contains, and that no top-level `backends` is installed."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.harness import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves its droppings in the source tree."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the checkout is gone (an installed wheel is being tested)")
    copy = tmp_path_factory.mktemp("source")
    for name in ("sandrun", "backends", "pyproject.toml", "README.md", "LICENSE"):
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        elif source.exists():
            shutil.copy(source, copy / name)
        else:
            (copy / name).touch()
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "."]
    subprocess.run([*build, "-w", "out"], cwd=copy, check=True)
    (built,) = (copy / "out").glob("*.whl")
    return built


def test_the_wheel_holds_every_module_once(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    modules = {
        str(path.relative_to(ROOT))
        for top in (
            "sandrun",
            *(f"sandrun/{name}" for name in ("cli", "entry", "gitguard", "windows")),
        )
        for path in (ROOT / top).glob("*.py")
    } | {f"sandrun/backends/{path.name}" for path in (ROOT / "backends").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {"sandrun/py.typed", "sandrun/entry/sandrun.mk"} <= set(names)


def test_nothing_else_is_installed_at_the_top(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {"sandrun"}


def test_the_distribution_has_a_name_of_its_own(wheel: Path) -> None:
    """PyPI's `sandrun` is another project; pip would take its next version for ours."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    assert b"\nName: sandrun-queue\n" in archive.read(metadata)


def test_the_command_is_our_own_script(wheel: Path) -> None:
    """The wrapper of an entry point would import `re` before our first line."""
    archive = zipfile.ZipFile(wheel)
    (script,) = [name for name in archive.namelist() if name.endswith("/scripts/sandrun")]
    assert b"import re" not in archive.read(script)
    assert archive.read(script).startswith(b"#!python")
