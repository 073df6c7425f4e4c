"""Files of a project or of the user that are not ordinary text: endless, blocking, huge, hostile or
unreadable. Each causes one line of warning, and none keeps a signal from ending sandrun.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.platform import processes
from tests.harness import INJECT, Box, launcher, wait_for

USER = 12345


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    path.touch()
    os.truncate(path, 20 << 30)


def directory(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def outside(path: Path) -> None:
    path.symlink_to("/etc/passwd")


ODD: "dict[Callable[[Path], None], str]" = {
    fifo: "not a regular file",
    endless: "a link that leads out of the project is not followed",
    huge: "larger than 1024 KiB",
    directory: "Is a directory",
    loop: "Too many levels of symbolic links",
    outside: "a link that leads out of the project is not followed",
}


def user_file(box: Box) -> Path:
    file = box.home / "config/sandrun/config.toml"
    file.parent.mkdir(parents=True)
    return file


def careful(box: Box, *words: str) -> "subprocess.CompletedProcess[str]":
    """A run that ends by itself, should it read what never ends."""
    script = 'ulimit -v 1500000; exec "$@"'
    return box.run("-c", script, "sh", *launcher(), *words, argv=["sh"], seconds=20)


@pytest.mark.parametrize("git", [False, True])
@pytest.mark.parametrize("name", ["sandrun.toml", "pyproject.toml"])
@pytest.mark.parametrize("make", ODD)
def test_an_odd_file_of_a_project_causes_one_line(
    box: Box, make: "Callable[[Path], None]", name: str, git: bool
) -> None:
    if git:
        subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    make(box.project / name)
    done = careful(box, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert done.stderr == f"sandrun: {box.project / name}: {ODD[make]}; the file is ignored\n"
    assert careful(box, "status").returncode == 0
    assert careful(box, "git", "--version").returncode == 0


@pytest.mark.parametrize("make", [fifo, endless, huge, directory, loop])
def test_an_odd_file_of_the_users_causes_one_line(box: Box, make: "Callable[[Path], None]") -> None:
    file = user_file(box)
    make(file)
    done = careful(box, "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert done.stderr.startswith(f"sandrun: {file}: ")
    assert done.stderr.endswith("; the file is ignored\n") and done.stderr.count("\n") == 1


@pytest.mark.parametrize("make", [fifo, endless, huge, loop])
@pytest.mark.parametrize("name", [".git", ".git/commondir", ".git/HEAD", ".git/sandrun-guard"])
def test_an_odd_file_of_git_delays_no_run(
    box: Box, make: "Callable[[Path], None]", name: str
) -> None:
    odd = box.project / name
    if name != ".git":
        subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
        odd.unlink(missing_ok=True)
        (box.project / ".git/index.lock").touch()
    make(odd)
    done = careful(box, "--git-wait", "0.2", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert "internal error" not in done.stderr


@pytest.mark.parametrize("name", [".git", ".git/commondir", ".git/HEAD"])
def test_a_nul_in_a_file_of_git_ends_it_as_in_c(box: Box, name: str) -> None:
    odd = box.project / name
    if name != ".git":
        subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
        (box.project / ".git/index.lock").touch()
    odd.write_bytes(b"gitdir: nowhere\0/b\n" if name == ".git" else b"\xffx\0y\n")
    done = box.run("--git-wait", "0.2", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    for words in (["status"], ["doctor"], ["git", "unlock"], ["git", "status"]):
        assert "internal error" not in box.run(*words).stderr
    assert box.run("git", "status").returncode == 128


def test_links_that_a_user_makes_are_followed(box: Box) -> None:
    """The user's own file may be one into a repository of dotfiles, a project's stays inside it."""
    dotfiles = box.root / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "sandrun.toml").write_text('memory = "100M"\n')
    user_file(box).symlink_to(dotfiles / "sandrun.toml")
    (box.project / "etc").mkdir()
    (box.project / "etc/settings").write_text("pids = 77\n")
    (box.project / "sandrun.toml").symlink_to("etc/settings")
    done = box.run("config")
    assert done.stderr == ""
    assert re.search(r"^memory +100 MiB", done.stdout, re.MULTILINE)
    assert re.search(r"^pids +77 ", done.stdout, re.MULTILINE)
    (box.project / "etc/settings").unlink()
    assert box.run("config").stderr == "", "a link to nothing is no file"


@pytest.mark.parametrize("whose", ["project", "user"])
def test_an_unreadable_file_is_reported(open_box: Box, whose: str) -> None:
    file = user_file(open_box) if whose == "user" else open_box.project / "sandrun.toml"
    file.write_text('memory = "100M"\n')
    file.chmod(0)
    done = open_box.run("--", "echo", "ran", user=USER)
    assert (done.returncode, done.stdout) == (0, "ran\n")
    assert done.stderr == f"sandrun: {file}: Permission denied; the file is ignored\n"


SLOW = "takes too long to read; the file is ignored|no such setting: a"
TOML = {
    "500,000 brackets": ("a = " + "[" * 500_000, "nested too deeply; the file is ignored"),
    "500,000 tables": ("a = " + "{a=" * 300_000, "nested too deeply; the file is ignored"),
    # Since 3.14 tomllib takes no more than 1,000 parts.
    "dots in a key": ("a" + ".a" * 500_000 + " = 1", f"{SLOW}|nested too deeply"),
    "dots in a value": ("a = {a" + ".a" * 500_000 + " = 1}", f"{SLOW}|nested too deeply"),
    "5,000 digits": ("memory = " + "9" * 5000, "a number has too many digits; the file is ignored"),
    "4,000 digits": ("pids = " + "9" * 4000, "pids is not a single value; ignored"),
    "5,000 digits in hex": ("pids = 0x" + "f" * 5000, "pids is not a single value; ignored"),
    "beyond 64 bits": ("io_weight = 99999999999999999999", "io_weight is not a single value"),
    "20,000 keys": ("\n".join(f"k{i} = 1" for i in range(20_000)),
                    "no such setting: k0, k1, k2 and 19997 more; ignored"),
    "a key twice": ('memory = "1G"\nmemory = "2G"', "Cannot overwrite a value"),
    "CR alone": ('memory = "1G"\rtimeout = "5m"\r', "the file is ignored"),
    "not a number": ("cpus = nan", "cpus is not a number of processors"),
    "no end": ("timeout = inf", "timeout is not a time such as"),
    "a date": ("queue = 2020-01-01", "queue is not a single value"),
    "a time": ("timeout = 07:32:00", "timeout is not a single value"),
    "a table": ("memory = {a = 1}", "memory is not a single value"),
    "a table of tables": ("[memory]\n[memory.memory]\na = 1", "memory is not a single value"),
    "a list": ('queue = ["a"]', "queue is not a single value"),
    "a negative number": ("slots = -1", "slots is not a number of runs"),
    "a NUL": ('queue = "\\u0000"', "queue is not a name of 1 to 255 bytes"),
    "a long queue": ('queue = "' + "q" * 900_000 + '"', "queue is not a name of 1 to 255 bytes"),
    "a long key": ("k" * 900_000 + " = 1", "no such setting: kkk"),
    "noise": (bytes(range(256)).decode("latin-1") * 2000, "the file is ignored"),
    "an escape": ('"\\u001b[31m\\n::error::x" = 1', r"no such setting: \x1b[31m\n::error::x"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOML)
@pytest.mark.parametrize("name", ["sandrun.toml", "pyproject.toml", "user"])
def test_odd_toml_causes_one_line(box: Box, kind: str, name: str) -> None:
    text, said = TOML[kind]
    file = user_file(box) if name == "user" else box.project / name
    if name == "pyproject.toml":
        text = text.replace("[memory", "[tool.sandrun.memory")
        text = "[tool.sandrun]\n" + text
    file.write_bytes(text.encode())
    done = box.run("--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert done.stderr.startswith(f"sandrun: {file}: ") and done.stderr.count("\n") == 1
    assert any(words in done.stderr for words in said.split("|"))
    assert len(done.stderr) < 5000 and done.stderr[:-1].isprintable()


def test_a_byte_order_mark_and_windows_line_ends_are_valid(box: Box) -> None:
    (box.project / "sandrun.toml").write_bytes(b'\xef\xbb\xbfmemory = "100M"\r\npids = 77\r\n')
    done = box.run("config")
    assert done.stderr == ""
    assert re.search(r"^memory +100 MiB", done.stdout, re.MULTILINE)


def points(box: Box, words: "list[str]") -> "list[str]":
    """The system calls of a run up to where it starts the command, each once (see INJECT)."""
    file = box.root / "points"
    env = {"PYTHONPATH": f"{INJECT}:{box.env.get('PYTHONPATH', '')}"}
    assert box.run(*words, env={**env, "SANDRUN_TEST_POINTS": str(file)}).returncode == 0
    found = list(dict.fromkeys(file.read_text().splitlines()))
    blocked = next(
        at for at, point in enumerate(found) if point.startswith("posix_spawn.py:capture")
    )
    last = found.index("posix_spawn.py:pending_end_signal:sigpending")
    return found[blocked + 1 : last + 1]


@pytest.mark.parametrize("backend", ["none", "rlimit"])
def test_signals_end_sandrun_before_the_command_exists(
    make_box: "Callable[[str], Box]", backend: str
) -> None:
    """At every step from its start: a signal of each kind in turn; nothing is started any more."""
    box = make_box(backend)
    subprocess.run(["git", "init", "-q"], cwd=box.project, check=True)
    (box.project / "sandrun.toml").write_text('memory = "100M"\nqueue = "x"\n')
    words = ["-q", "--", "true"]
    box.run(*words)  # what only a first run does
    steps = points(box, words)
    assert any(point.startswith("settings_files.py:_parse_in_time") for point in steps)
    assert any(point.startswith("small_files.py:read_small:open") for point in steps)
    env = {"PYTHONPATH": f"{INJECT}:{box.env.get('PYTHONPATH', '')}"}
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]
    for at, point in enumerate(steps):
        signum = signals[at % len(signals)]
        run = box.start("-q", "--", "touch", "ran", env={**env, "SANDRUN_TEST_STOP": point})
        wait_for(lambda run=run: processes.Stat(run.pid).state == "T", 20, point)  # type: ignore[misc]
        run.send_signal(signum)
        run.send_signal(signal.SIGCONT)
        done = box.finish(run)
        assert (done.returncode, done.stderr) == (-signum, ""), point
        assert not (box.project / "ran").exists(), point
    assert box.run("--", "true").returncode == 0
    wait_for(lambda: not box.leftovers(), 10, "nothing is left")
