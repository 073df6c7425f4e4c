"""Shared by the tests of the git guard: isolated real repositories, and gates instead of sleeps.

Each `GitBox` has its own home, git configuration and state; the host's are not read. `close` kills
the processes that it started and no others. Deadlines are multiplied by SANDRUN_TEST_SCALE.
"""

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from sandrun.git import shim as shims
from sandrun.git import stale
from sandrun.platform import processes
from tests import harness
from tests.harness import PACKAGE, SCALE, installed_env

CONFIG = """[user]
name = Test
email = test@example.org
[init]
defaultBranch = main
[protocol "file"]
allow = always
[advice]
detachedHead = false
"""
T = TypeVar("T")

whole_host = pytest.mark.skipif(
    not Path("/proc/self/ns/pid").is_symlink()
    or os.readlink("/proc/self/ns/pid") != stale.INITIAL_PID_NAMESPACE,
    reason="in a pid namespace nobody knows that a lock's owner is dead",
)
"""For tests of proofs that need to see every process of the host: not in a container."""


def wait_for(condition: Callable[[], T], what: str, seconds: float = 20) -> T:
    """`harness.wait_for` with a required description."""
    return harness.wait_for(condition, seconds, what)


def real_git() -> str:
    """The git that the tests compare with."""
    for directory in os.environ.get("PATH", os.defpath).split(":"):
        path = os.path.join(directory, "git")
        if os.access(path, os.X_OK):
            with open(path, "rb") as file:
                if b"sandrun shim" not in file.read(512):
                    return path
    raise AssertionError("the tests need git")


GIT = real_git()


def git_version() -> tuple[int, ...]:
    """Such as (2, 39, 5)."""
    words = subprocess.check_output([GIT, "version"], text=True).split()
    return tuple(int(part) for part in words[2].split(".")[:3] if part.isdigit())


class GitBox:
    """A home, a state directory, a shim directory and a repository `repo` with one commit."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repo = root / "repo"
        self.shims = root / "shims"
        for name in ("home", "state", "shims"):
            (root / name).mkdir()
        shim = self.shims / "git"
        shim.write_text(shims.text(shims.launch(sys.executable, str(PACKAGE))))
        shim.chmod(0o755)
        (self.shims / shims.DIRECTORY_MARK).touch()
        (root / "gitconfig").write_text(CONFIG)
        self.env = installed_env({
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(root / "home"),
            "XDG_CONFIG_HOME": str(root / "home/config"),
            "XDG_CACHE_HOME": str(root / "home/cache"),
            "XDG_STATE_HOME": str(root / "home/state"),
            "GIT_CONFIG_GLOBAL": str(root / "gitconfig"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(root),
            "GIT_EDITOR": "false",
            "SANDRUN_STATE_DIR": str(root / "state"),
            "SANDRUN_BACKEND": "none",
            "SANDRUN_GIT_WAIT": str(60 * SCALE),
            "LC_ALL": "C",
            "TERM": "dumb",
        })  # fmt: skip
        self.started: list[subprocess.Popen[str]] = []
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            # A shell ignores SIGINT for background jobs, and our children would inherit that.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self.before = set(processes.descendants(os.getpid()))
        self.make(self.repo)

    def make(self, path: Path, *options: str) -> Path:
        """Make a repository with one commit of one file `a`."""
        self.bare("init", "-q", *options, str(path), cwd=self.root)
        (path / "a").write_text("one\n")
        self.bare("add", "a", cwd=path)
        self.bare("commit", "-qm", "first", cwd=path)
        return path

    def start(
        self, *argv: "str | Path", cwd: "Path | str | None" = None, **env: str
    ) -> "subprocess.Popen[str]":
        """Start a program in the repository, stdout and stderr in one pipe."""
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=cwd or self.repo,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def guarded(
        self, *args: "str | Path", cwd: "Path | str | None" = None, **env: str
    ) -> "subprocess.Popen[str]":
        """Start `sandrun git ARGS`."""
        return self.sandrun("git", *args, cwd=cwd, **env)

    def sandrun(
        self, *args: "str | Path", cwd: "Path | str | None" = None, **env: str
    ) -> "subprocess.Popen[str]":
        """Start `sandrun ARGS`."""
        return self.start(sys.executable, "-m", "sandrun", *args, cwd=cwd, **env)

    def git(
        self, *args: "str | Path", cwd: "Path | str | None" = None, **env: str
    ) -> tuple[int, str]:
        """Run `sandrun git ARGS` to its end."""
        return self.end(self.guarded(*args, cwd=cwd, **env))

    def end(self, process: "subprocess.Popen[str]", seconds: float = 60) -> tuple[int, str]:
        """Wait for a started process; return its exit code and output."""
        out, _ = process.communicate(timeout=seconds * SCALE)
        return process.returncode, out

    def bare(self, *args: "str | Path", cwd: "Path | str | None" = None, **env: str) -> str:
        """Run the real git, which must succeed; return its stdout."""
        done = subprocess.run(
            [GIT, *map(str, args)],
            cwd=cwd or self.repo,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60 * SCALE,
            check=False,
        )
        assert done.returncode == 0, (args, done.stdout, done.stderr)
        return done.stdout

    def gate(self, name: str) -> str:
        """A shell command that records that it was reached and blocks until `let(name)`."""
        os.mkfifo(self.root / f"gate-{name}")
        return f": >{self.root}/reached-{name}; read _ <{self.root}/gate-{name}"

    def reached(self, name: str) -> None:
        """Wait until a process blocks at the gate."""
        wait_for((self.root / f"reached-{name}").exists, f"the gate {name} is reached")

    def let(self, name: str) -> None:
        """Let the process at the gate continue."""
        path = self.root / f"gate-{name}"

        def opened() -> int:
            try:
                return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError as error:
                assert error.errno == errno.ENXIO
                return 0

        fd = wait_for(opened, f"a process waits at the gate {name}")
        os.write(fd, b"\n")
        os.close(fd)

    def editor(self, name: str, message: str = "edited") -> str:
        """A GIT_EDITOR that blocks at the gate `name` and then writes a message."""
        script = self.root / f"editor-{name}"
        script.write_text(f'#!/bin/sh\n{self.gate(name)}\necho "{message}" >"$1"\n')
        script.chmod(0o755)
        return str(script)

    def hook(self, name: str, text: str, repo: "Path | None" = None) -> None:
        """Install a hook."""
        path = Path(self.bare("rev-parse", "--git-path", f"hooks/{name}", cwd=repo).strip())
        path = (repo or self.repo) / path
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def sandrun_text(self) -> str:
        """The command `sandrun` for shell scripts."""
        return f"{sys.executable} -m sandrun"

    def close(self) -> None:
        """Kill all started processes that still run, also detached ones (see tests.conftest)."""

        def ended() -> bool:
            left = set(processes.descendants(os.getpid())) - self.before
            alive = [pid for pid in left if not processes.has_exited(pid)]
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return not alive

        wait_for(ended, "all processes that the test started are dead")
        for process in self.started:
            process.wait()
            if process.stdout:
                process.stdout.close()


def heard(process: "subprocess.Popen[str]", seconds: float = 20) -> str:
    """The next line of the output of a started process."""
    assert process.stdout
    text = ""
    while not text.endswith("\n"):
        ready, _, _ = select.select([process.stdout], [], [], seconds * SCALE)
        assert ready, f"it prints nothing: {text!r}"
        letter = os.read(process.stdout.fileno(), 1)
        assert letter, f"it has exited: {text!r}"
        text += letter.decode()
    return text


def is_queued(process: "subprocess.Popen[str]") -> bool:
    """Whether the process blocks on a POSIX lock, by /proc/locks."""
    with open("/proc/locks") as file:
        rows = [row.split() for row in file if "-> POSIX" in row]
    return any(row[row.index("->") + 4] == str(process.pid) for row in rows)


def watches(process: "subprocess.Popen[str]") -> bool:
    """Whether the process waits for files to be removed: it has an inotify descriptor."""
    folder = f"/proc/{process.pid}/fd"
    try:
        return any("inotify" in os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder))
    except OSError:
        return False


def is_free(git_dir: Path, byte: int = 0) -> bool:
    """Whether no process holds that lock of the guard file."""
    with open(git_dir / "sandrun-guard", "r+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
            return True
        except OSError:
            return False
