"""The package goes away while a run is on: an upgrade over it, a virtual environment made anew.

Each test has an installation of its own, which the run's command moves away as its first deed.
"""

import compileall
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sandrun
from sandrun.git import stale
from sandrun.platform import processes
from tests.harness import INJECT, ON_MACOS, Box, alive, is_keeper, pretending, wait_for

LEFT = 'setsid sh -c "trap \\"\\" TERM; while :; do sleep 0.05; done" & '
HOG = """
import time
kept = []
while True:
    kept.append(bytearray(b"x") * (4 << 20)); time.sleep(0.02)
"""


class _Own(Box):
    """A box with an installation of its own."""

    def __init__(self, root: Path, backend: str) -> None:
        super().__init__(root, backend)
        library = root / "library"
        self.package = library / "sandrun"
        shutil.copytree(Path(sandrun.__file__).parent, self.package)
        start = f"import sys; sys.path.insert(0, {str(library)!r}); from sandrun.cli import main; "
        self.launcher = [sys.executable, "-P", "-c", start + "main()"]
        self.env["PYTHONPATH"] = pretending({"PYTHONPATH": ""})["PYTHONPATH"]
        # An installer compiles what it installs.
        compileall.compile_dir(self.package, quiet=1)

    def start(
        self, *args: "str | Path", argv: "list[str] | None" = None, **more: Any
    ) -> "subprocess.Popen[str]":
        return super().start(*args, argv=argv or self.launcher, **more)

    def away(self, how: str = "mv") -> str:
        """A script's first line: the package is gone, or another one is in its place."""
        old = f"{self.package}.old"
        # One file with many names: on a tmpfs many files would be reported as memory that is left.
        over = f"mv {self.package} {old}; cd {old}; echo 'raise SystemError' >wrong; "
        over += "find . -name '*.py' | while read f; do "
        over += f"mkdir -p {self.package}/${{f%/*}}; ln wrong {self.package}/$f; "
        ways = {"mv": f"mv {self.package} {old}", "rm": f"rm -r {self.package}"}
        return {**ways, "over": over + "done"}[how] + "\n"

    def shell(self, *words: str) -> "tuple[int, str]":
        """Run the script that is the last word; the code and what was said."""
        done = self.run(*words[:-1], "--", "sh", "-c", words[-1])
        assert "rror:" not in done.stderr, done.stderr
        return done.returncode, done.stderr


@pytest.fixture(params=["rlimit", "auto"])
def place(tmp_path: Path, request: pytest.FixtureRequest) -> "Iterator[_Own]":
    box = _Own(tmp_path, request.param)
    yield box
    box.close()


@pytest.fixture
def bare(tmp_path: Path) -> "Iterator[_Own]":
    """Without a container, thus without what its modules have loaded."""
    box = _Own(tmp_path, "none")
    yield box
    box.close()


@pytest.mark.parametrize("how", ["mv", "rm", "over"])
def test_an_exit_code(place: _Own, how: str) -> None:
    code, said = place.shell("-q", f"{place.away(how)}exit 7")
    assert (code, said) == (7, "")


@pytest.mark.parametrize("how", ["mv", "rm", "over"])
def test_the_time_is_over(place: _Own, how: str) -> None:
    options = ["-t", "1.5", "--grace", "0.2"]
    code, said = place.shell(*options, f"{place.away(how)}exec sleep 1000")
    assert code == 124
    assert "timeout: ended the run after 1.5 s" in said
    assert not place.leftovers()


def test_without_a_container(bare: _Own) -> None:
    assert bare.shell(f"{bare.away()}exit 7") == (7, "")
    shutil.move(f"{bare.package}.old", bare.package)
    code, said = bare.shell("-t", "1.5", "--grace", "0.2", f"{bare.away()}exec sleep 1000")
    assert code == 124
    assert "timeout: ended the run after 1.5 s" in said


def test_it_is_idle(place: _Own) -> None:
    code, said = place.shell("--idle-timeout", "1", f"{place.away()}exec sleep 1000")
    assert code == 124
    assert "idle-timeout" in said


def test_it_ends_by_a_signal(place: _Own) -> None:
    assert place.shell(f"{place.away()}kill -KILL $$")[0] == 137


def test_the_memory_limit(place: _Own) -> None:
    script = f"{place.away()}exec {sys.executable} -c '{HOG}'"
    code, said = place.shell("-m", "64M", script)
    assert code == 137
    assert "memory limit of 64.0 MiB reached" in said


def test_leftovers(place: _Own) -> None:
    code, said = place.shell("--grace", "0.2", f"{place.away()}{LEFT}exit 7")
    assert code == 7
    assert "that the command left behind" in said
    assert not place.leftovers()


def up(place: _Own, script: str) -> "subprocess.Popen[str]":
    """Start a script whose package is gone already when this returns."""
    file = place.root / "up"
    run = place.start("--", "sh", "-c", f"{place.away()}echo >{file}; {script}")
    wait_for(file.exists, 20, "the command is up")
    return run


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_is_told_to_end(place: _Own, signum: int) -> None:
    """As `sandrun kill` tells it, or Ctrl-C."""
    run = up(place, "exec sleep 1000")
    run.send_signal(signum)
    done = place.finish(run)
    assert done.returncode in (128 + signum, -signum)
    assert "rror:" not in done.stderr


@pytest.mark.skipif(ON_MACOS, reason="not on macOS: its keeper is forked at once")
@pytest.mark.parametrize("how", ["gone", "not compiled", "stale"])
def test_the_supervisor_is_killed_in_its_first_instant(place: _Own, how: str) -> None:
    """The keeper is a shell then, and what it becomes has the open files of our modules."""
    path = f"{INJECT}:{place.env['PYTHONPATH']}"
    stop = {"PYTHONPATH": path, "SANDRUN_TEST_STOP": "posix_supervisor.py:_block:sigtimedwait"}
    if how == "not compiled":
        stop["PYTHONDONTWRITEBYTECODE"] = "1"
        for folder in list(place.package.rglob("__pycache__")):
            shutil.rmtree(folder)
    run = place.start("--", "sh", "-c", f"{LEFT}exec sleep 1000", env=stop)
    wait_for(lambda: processes.Stat(run.pid).state == "T", 10, "the supervisor is stopped")

    def names() -> "list[str]":
        return [processes.Stat(pid).name for pid in processes.children(run.pid)]

    wait_for(lambda: "early-keeper" in names(), what="its keeper is the shell")
    if how == "stale":  # compiled from another source, which Python would not use either
        for file in place.package.glob("lifecycle/__pycache__/recovery.*"):
            file.write_bytes(file.read_bytes()[:8] + b"\1" * 8 + b"damaged")
    else:
        shutil.rmtree(place.package)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_for(lambda: not place.leftovers(), 10, "nothing lives, no keeper either")
    assert [record["reason"] for record in place.records()] == ["lost"]


def test_the_supervisor_is_killed(place: _Own) -> None:
    """Its keeper cleans up: processes, git's lock, the record."""
    git = place.project / ".git"
    for name in ("objects", "refs"):
        (git / name).mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    run = up(place, f"echo >{git}/index.lock; {LEFT}exec sleep 1000")
    wait_for((git / "index.lock").exists, 20, "the lock is there")
    keepers = [pid for pid in processes.children(run.pid) if is_keeper(pid)]
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, keepers)), 10, "the keeper is done")
    run.wait()
    wait_for(lambda: not place.leftovers(), 10, "nothing lives, no second keeper either")
    assert [record["reason"] for record in place.records()] == ["lost"]
    # A lock is healed where nobody can be out of sight.
    seen = not ON_MACOS and os.readlink("/proc/self/ns/pid") == stale.INITIAL_PID_NAMESPACE
    assert not seen or not (git / "index.lock").exists()


def test_the_keeper_is_killed(place: _Own) -> None:
    """Another takes its place."""
    run = up(place, "exec sleep 1000")

    def keeper() -> int:
        return next(filter(is_keeper, processes.children(run.pid)), 0)

    first = wait_for(keeper, 10, "a keeper")
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: keeper() not in (0, first), 10, "another")
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not place.leftovers(), 10, "nothing lives")
    run.wait()
    wait_for(place.records, 10, "a record")
    assert [record["reason"] for record in place.records()] == ["lost"]


def test_it_goes_away_while_another_run_waits(place: _Own) -> None:
    """The first run of a queue makes the environment anew, in which the second one's sandrun is."""
    gate = place.root / "gate"
    os.mkfifo(gate)
    first = place.start("--", "sh", "-c", f"echo up; read _ <{gate}; {place.away()}exit 3")
    assert first.stdout
    assert first.stdout.readline() == "up\n"
    second = place.start("--", "sh", "-c", "echo ran; exit 7")
    wait_for(lambda: "waiting, position" in place.heard(second), 20, "it waits")
    gate.write_text("\n")
    assert place.finish(first).returncode == 3
    done = place.finish(second)
    assert (done.returncode, done.stdout) == (7, "ran\n"), done.stderr
    one, other = (record["backend"] for record in place.records())
    assert one == other
