"""The everyday tasks: `nox -l` lists them, `nox -s TASK -- ARGUMENT...` runs one.

Each is a command that also stands alone and brings its own environment (`tests/setup`, the
laboratories), so sessions have none; only `matrix` asks nox for a Python of each version.
"""

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "test"]
PYTHONS = nox.project.python_versions(nox.project.load_toml("pyproject.toml"), max_version="3.14")


def run(session: nox.Session, *command: str) -> None:
    session.run(*command, *session.posargs, external=True)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff, mypy, codespell, shellcheck, zizmor."""
    run(session, "tests/setup", "lint")


@nox.session
def test(session: nox.Session) -> None:
    """pytest on an installed wheel: `-- tests/unit -k sizes`."""
    run(session, "tests/setup", "test")


@nox.session(python=PYTHONS, venv_backend="virtualenv")
def matrix(session: nox.Session) -> None:
    """The same on each Python that there is: `nox -s matrix-3.13 -- tests/unit`."""
    python = session.run("python", "-c", "import sys; print(sys.executable)", silent=True)
    session.env["PYTHON"] = str(python).strip()
    run(session, "tests/setup", "test")


@nox.session
def coverage(session: nox.Session) -> None:
    """The same, and which lines and branches ran, those of sandrun's processes included."""
    run(session, "tests/setup", "coverage")


@nox.session
def bench(session: nox.Session) -> None:
    """What things cost beside their peers: `-- launch`, `-- queue`, `-- git`, `-- contain`."""
    run(session, "tests/setup", "bench")


@nox.session
def dist(session: nox.Session) -> None:
    """Build and check what a release publishes."""
    run(session, "tests/setup", "dist")


@nox.session
def lab(session: nox.Session) -> None:
    """Tests on a real kernel: `-- --kernel v1 -- pytest tests/vm`."""
    run(session, "vagrant/lab", "run")


@nox.session
def wine(session: nox.Session) -> None:
    """Tests on the Windows CPython: `-- -- pytest tests/windows`."""
    run(session, "vagrant/wine-lab", "run")


@nox.session
def ci(session: nox.Session) -> None:
    """Every test and check; needs root."""
    run(session, ".ci/run")
