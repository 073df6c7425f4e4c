"""The wheel: what it contains, and that its command runs wherever and however it is installed."""

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.entering import need
from tests.harness import ROOT, Box


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built: setuptools leaves its droppings in the source tree."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("the checkout is gone (an installed wheel is being tested)")
    copy = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("sandrun", "backends"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "."]
    subprocess.run([*build, "-w", "out"], cwd=source, check=True)
    (built,) = (source / "out").glob("*.whl")
    return built


def test_the_wheel_holds_every_module_once(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    own = ((ROOT / top).rglob("*.py") for top in ("sandrun", "backends"))
    modules = {str(path.relative_to(ROOT)) for found in own for path in found}
    modules = {name if name.startswith("sandrun/") else f"sandrun/{name}" for name in modules}
    assert {name for name in names if name.endswith(".py")} == modules
    assert {
        f"sandrun/{name}"
        for name in (
            *("py.typed", "lifecycle/podman.conf", "integrations/sandrun.mk"),
            "insight/report/style.css",
        )
    } <= set(names)


def test_nothing_else_is_installed_at_the_top(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {"sandrun"}


def test_an_archive_of_the_sources_holds_both_launchers(source: Path, tmp_path: Path) -> None:
    """Unpacked it is installed like a checkout."""
    build = [sys.executable, "setup.py", "-q", "sdist", "--formats=tar", "-d", str(tmp_path)]
    subprocess.run(build, cwd=source, check=True)
    (archive,) = tmp_path.glob("*.tar")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"setup.py", "sandrun/bin/sandrun", "backends/__init__.py"} <= names


def test_a_build_warns_of_nothing(source: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-v", "."]
    env = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [*build, "-w", tmp_path], cwd=source, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = [line for line in (done.stdout + done.stderr).splitlines() if "Warning" in line]
    assert not said, said


def test_the_license_is_an_spdx_expression(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    assert b"\nLicense-Expression: MIT\n" in archive.read(metadata)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in archive.namelist())


def test_the_distribution_has_a_name_of_its_own(wheel: Path) -> None:
    """PyPI's `sandrun` is another project; pip would take its next version for ours."""
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    assert b"\nName: sandrun-queue\n" in archive.read(metadata)


PLACES = {"plain": "venv", "space": "a b/venv", "long": f"{'l' * 140}/{'o' * 140}/venv"}
"""Where an environment may lie: a `#!` line can hold neither a space nor 281 characters."""


def environment(top: Path, place: str) -> Path:
    """The programs of a new virtual environment."""
    where = top / PLACES[place]
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", where], check=True)
    return where / "bin"


def install(bin: Path, what: Path, *options: str) -> str:
    """... with the pip and setuptools of this one; the text of the command.

    setuptools first: the distribution's own, which may be too old, lies beside its `wheel`.
    """
    homes = [importlib.import_module(name).__path__[0] for name in ("setuptools", "wheel")]
    homes = [os.path.realpath(home) for home in homes]  # the links are beside a sandrun
    pip = [sys.executable, "-m", "pip", "--python", str(bin / "python"), "install", "-q"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.dirname, homes))}
    words = [*pip, "--no-deps", "--no-build-isolation", *options, str(what)]
    subprocess.run(words, check=True, env=env)
    return (bin / "sandrun").read_text()


def runs(box: Box, bin: Path) -> None:
    """By execve(2), and from a shell, which takes for its own script what no kernel can start."""
    for argv in ([str(bin / "sandrun")], ["sh", "-c", '"$0" "$@"', str(bin / "sandrun")]):
        done = box.run("--", "echo", "a  b", "", "c", argv=argv)
        assert (done.returncode, done.stdout) == (0, "a  b  c\n"), done.stderr
        assert box.run("--", "sh", "-c", "exit 3", argv=argv).returncode == 3


@pytest.mark.parametrize("place", PLACES)
def test_a_wheel_runs_wherever_it_is_installed(
    box: Box, wheel: Path, tmp_path: Path, place: str
) -> None:
    bin = environment(tmp_path, place)
    install(bin, wheel)
    runs(box, bin)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", [[], ["-e"]], ids=["copied", "editable"])
def test_a_checkout_runs_wherever_it_is_installed(
    box: Box, source: Path, tmp_path: Path, place: str, options: "list[str]"
) -> None:
    """Where it can, the command is our own script: an old pip's wrapper imports `re` before us."""
    bin = environment(tmp_path, place)
    text = install(bin, source, *options)
    runs(box, bin)
    if sys.platform == "linux":  # elsewhere nobody sees that it is pip who builds
        assert ("from sandrun.__main__" in text) == (place != "plain")
        assert text.startswith(f"#!{bin}/python -EPS\n") == (place == "plain")


@pytest.mark.skipif(sys.platform != "linux", reason="needs to see that it is pip who builds")
def test_a_run_starts_without_site_and_finds_what_only_site_knows(
    box: Box, source: Path, tmp_path: Path
) -> None:
    bin = environment(tmp_path, "plain")
    install(bin, source)
    (folder,) = bin.parent.glob("lib/*/site-packages")
    mark = tmp_path / "ran"
    (folder / "a.pth").write_text(f"import os; os.mkdir({str(mark)!r})\n")
    argv = [str(bin / "sandrun")]
    assert box.run("--backend", "none", "--", "true", argv=argv).returncode == 0
    assert not mark.exists()
    (folder / "b.pth").write_text(os.path.dirname(importlib.import_module("click").__path__[0]))
    done = box.run("--version", argv=argv)
    assert (done.returncode, mark.exists()) == (0, True), done.stderr


# What our modules import, by its name; enum, operator and types are in the way of a wrapper that
# an older pip has written, and of any `-m`, before our first line.
SHADOWS = ["resource", "select", "queue", "signal", "json", "calendar", "platform", "shutil"]
EARLY = ["enum", "operator", "types", "token", "functools", "keyword"]
PREDICTABLE = {"PYTHONSAFEPATH": "", "PYTHONDONTWRITEBYTECODE": "1"}


def shadow(box: Box, names: "list[str]") -> Path:
    """A folder whose modules break who imports them."""
    folder = box.root / "users"
    folder.mkdir()
    for name in names:
        (folder / f"{name}.py").write_text(f"raise SystemExit('of the user: {name}')\n")
    return folder


def starts(box: Box, argv: "list[str | Path]", variable: str, value: str, **more: Any) -> None:
    """The command runs, and has the variable."""
    show = ["--", "sh", "-c", f'echo "${variable}"']
    for backend in ("auto", "rlimit"):
        words = ["-q", "--backend", backend, *show]
        env = PREDICTABLE | {variable: value}
        done = box.run(*words, argv=[str(word) for word in argv], env=env, **more)
        assert (done.returncode, done.stdout) == (0, f"{value}\n"), done.stderr


@pytest.mark.parametrize("launcher", ["script", "wrapper", "module"])
def test_the_modules_of_the_user_are_not_ours(
    box: Box, source: Path, wheel: Path, tmp_path: Path, launcher: str
) -> None:
    bin = environment(tmp_path, "plain")
    install(bin, source if launcher == "script" else wheel)
    folder = shadow(box, SHADOWS + EARLY if launcher == "script" else SHADOWS)
    argv: list[str | Path] = [bin / "sandrun"]
    if launcher == "module":
        argv = [bin / "python", "-m", "sandrun"]
        starts(box, argv, "PYTHONSAFEPATH", "", cwd=folder)
    starts(box, argv, "PYTHONPATH", str(folder))
    starts(box, argv, "PYTHONPATH", f":{folder}:", cwd=folder)


@pytest.mark.skipif(sys.platform != "linux", reason="needs to see that it is pip who builds")
@pytest.mark.parametrize(
    "variable",
    ["PYTHONHOME=/nonexistent", "PYTHONPLATLIBDIR=x", "PYTHONVERBOSE=1", "PYTHONWARNINGS=error",
     "PYTHONINSPECT=1", "PYTHONHASHSEED=none", "PYTHONOPTIMIZE=2", "PYTHONPATH=."],
)  # fmt: skip
def test_the_environment_of_python_is_the_commands(
    box: Box, source: Path, tmp_path: Path, variable: str
) -> None:
    """A folder `sandrun` in the current directory too; and no change of what the command gets."""
    bin = environment(tmp_path, "plain")
    install(bin, source)
    for name in ("sandrun/__init__.py", "sitecustomize.py"):
        (box.project / name).parent.mkdir(exist_ok=True)
        (box.project / name).write_text("raise SystemExit('the project')\n")
    starts(box, [bin / "sandrun"], *variable.split("=", 1))


def test_what_a_wrapper_has_imported_of_the_users_is_not_kept(
    box: Box, wheel: Path, tmp_path: Path
) -> None:
    """As the one of an older pip does `re`. What Python puts into LC_CTYPE is not the command's."""
    bin = environment(tmp_path, "plain")
    install(bin, wheel)
    folder = shadow(box, [])
    (folder / "select.py").write_text("poll = None\n")
    code = "import select; from sandrun.__main__ import start; start()"
    argv: list[str | Path] = [bin / "python", "-c", code]
    starts(box, argv, "PYTHONPATH", str(folder))
    env = {**PREDICTABLE, "PYTHONPATH": str(folder), "LANG": "C", "LC_ALL": ""}
    words = ["-q", "--", "sh", "-c", "echo ${LC_CTYPE-none}"]
    done = box.run(*words, argv=[str(word) for word in argv], env=env)
    assert (done.returncode, done.stdout) == (0, "none\n"), done.stderr


def test_a_target_that_only_pythonpath_leads_to(box: Box, source: Path, tmp_path: Path) -> None:
    """`pip install --target DIR`, and what PYTHONPATH names beside it."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    target = tmp_path / "target"
    subprocess.run([*pip, "--target", target, source], check=True)
    folder = shadow(box, SHADOWS)
    starts(box, [target / "bin/sandrun"], "PYTHONPATH", f"{folder}:{target}")
    (box.project / "sandrun").mkdir()
    (box.project / "sandrun/cli.py").write_text("raise SystemExit('the project')\n")
    done = box.run("--version", argv=[str(target / "bin/sandrun")], env={"PYTHONPATH": ""})
    assert "the project" not in done.stderr  # it has none of its own, or another that is installed


def test_the_standard_library_stays_where_pythonpath_names_it(box: Box, source: Path) -> None:
    """In a clone, whose folder comes before it."""
    box.env["PYTHONPATH"] = os.path.dirname(os.__file__)
    done = box.run("config", argv=[sys.executable, "-m", "sandrun"], cwd=source)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["tool install", "tool run", "run"])
def test_uv_runs_it(source: Path, box: Box, how: str) -> None:
    """From a path with a space, and from a clone, for which uv locks all extras: none is built."""
    need("uv")
    kept = {key: os.environ[key] for key in os.environ if key.startswith(("UV_", "SSL_", "PIP_"))}
    tools = {"UV_TOOL_DIR": str(box.root / "a b"), "UV_TOOL_BIN_DIR": str(box.root / "bin")}
    box.env |= {**kept, **tools, "UV_PYTHON": sys.executable, "UV_PYTHON_DOWNLOADS": "never"}
    box.env.pop("PYTHONPATH", None)
    words: list[str | Path] = ["uv", *how.split()]
    if how == "tool install":
        done = box.run(source, argv=["uv", "tool", "install"], seconds=200)
        assert done.returncode == 0, done.stderr
        words = [box.root / "bin/sandrun"]
    else:
        words += ["--from" if how == "tool run" else "--project", source, "sandrun"]
    done = box.run("--", "echo", "ok", argv=[str(word) for word in words], seconds=200)
    assert (done.returncode, done.stdout) == (0, "ok\n"), done.stderr


def test_pipx_runs_it(source: Path, box: Box) -> None:
    need("pipx")
    kept = {key: os.environ[key] for key in os.environ if key.startswith(("SSL_", "PIP_"))}
    homes = {"PIPX_HOME": str(box.root / "a b"), "PIPX_BIN_DIR": str(box.root / "bin")}
    box.env |= {**kept, **homes}
    box.env.pop("PYTHONPATH", None)
    done = box.run("install", source, argv=["pipx"], seconds=200)
    assert done.returncode == 0, done.stdout + done.stderr
    runs(box, box.root / "bin")
