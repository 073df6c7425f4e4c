"""Names in /tmp that another user took, or one who seems to be another user.

In the real /tmp and /dev/shm: that is what they are about. The users are uids of no account, of
this test's own.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import ON_MACOS, Box, launcher, wait_for

pytestmark = pytest.mark.skipif(ON_MACOS, reason="not on macOS: no user namespaces")
LOCKS = Path("/dev/shm" if os.path.isdir("/dev/shm") else "/tmp")
SHARED = (Path("/tmp"), LOCKS)
# Answers like fakeroot(1): we are root, and so is the owner of every file.
FAKE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>
uid_t geteuid(void) { return 0; }
uid_t getuid(void) { return 0; }
#define FAKE(name, type, first) \\
    int name(first file, struct type *info) { \\
        int (*real)(first, struct type *) = dlsym(RTLD_NEXT, #name); \\
        int done = real(file, info); \\
        if (!done) info->st_uid = 0; \\
        return done; \\
    }
FAKE(fstat, stat, int)
FAKE(fstat64, stat64, int)
FAKE(lstat, stat, const char *)
FAKE(lstat64, stat64, const char *)
"""
# Root of a user namespace in which 0 is `uid` outside; made by the real root, as not every host
# lets users make one.
NAMESPACE = """
import ctypes, os, sys
uid, words, maker = sys.argv[1], sys.argv[2:], os.getpid()
ready, go = os.pipe()
child = os.fork()
if child == 0:
    os.read(ready, 1)
    for kind in ("gid", "uid"):
        with open(f"/proc/{maker}/{kind}_map", "w") as file:
            file.write(f"0 {uid} 1")
    os._exit(0)
assert ctypes.CDLL(None).unshare(0x10000000) == 0
os.write(go, b"x")
assert os.waitpid(child, 0)[1] == 0
os.setgid(0)
os.setuid(0)
os.execvp(words[0], words)
"""


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


class Users:
    """Two uids that nobody else has, and a box without a state directory of its own."""

    def __init__(self, box: Box) -> None:
        self.box = box
        self.first = 1_000_000 + os.getpid() * 4
        self.other = self.first + 1
        for name in ("SANDRUN_STATE_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
            del box.env[name]
        box.env["SANDRUN_POOL"] = "off"
        self.home = self.own(box.home / "first", self.first)
        self.other_home = self.own(box.home / "other", self.other)
        for file in (box.log, box.project):
            file.chmod(0o777)

    def own(self, path: Path, uid: int, mode: int = 0o755) -> Path:
        path.mkdir()
        path.chmod(mode)
        os.chown(path, uid, uid)
        return path

    def state(self, uid: int) -> Path:
        words = ["sh", "-c", "pwd | sha1sum | head -c 8"]
        digest = subprocess.run(words, cwd=self.box.project, capture_output=True, check=True)
        return Path(f"/tmp/seq-exec-{digest.stdout.decode()}-{uid}")

    def start(self, *args: "str | Path", uid: int = 0) -> "subprocess.Popen[str]":
        home = self.other_home if uid == self.other else self.home
        return self.box.start(*args, env={"HOME": str(home)}, user=uid or self.first)

    def run(self, *args: "str | Path", uid: int = 0) -> "subprocess.CompletedProcess[str]":
        return self.box.finish(self.start(*args, uid=uid), 60)

    def job(self, name: str) -> list[str]:
        words = self.box.job(name)
        (self.box.root / f"gate-{name}").chmod(0o666)
        return words

    def remove(self) -> None:
        for uid in (self.first, self.other):
            for path in {p for directory in SHARED for p in directory.glob(f"*-{uid}")}:
                remove(path)
        for path in (self.state(0), LOCKS / "sandrun-locks-0"):  # of a sandrun that falls short
            if path.exists() and path.stat().st_uid in (self.first, self.other):
                remove(path)


@pytest.fixture
def users(open_box: Box) -> Iterator[Users]:
    found = Users(open_box)
    yield found
    found.box.close()
    found.remove()


def as_root_of_a_namespace(users: Users) -> list[str]:
    return [sys.executable, "-c", NAMESPACE, str(users.first)]


def as_fake_root(users: Users) -> list[str]:
    source, library = users.box.root / "fake.c", users.box.root / "fake.so"
    source.write_text(FAKE)
    words = ["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"]
    subprocess.run(words, check=True)
    ids = [f"--{kind}={users.first}" for kind in ("reuid", "regid")]
    return ["setpriv", *ids, "--clear-groups", "env", f"LD_PRELOAD={library}"]


@pytest.mark.parametrize("seem", [as_root_of_a_namespace, as_fake_root])
def test_who_seems_to_be_root_takes_no_name_of_roots(
    users: Users, seem: "Callable[[Users], list[str]]"
) -> None:
    """And joins the queue of the user that they are."""
    box = users.box
    words = [*seem(users), "env", f"HOME={users.home}", *launcher(), "--"]
    done = box.run("id", "-u", argv=words)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert not users.state(0).exists()
    assert users.state(users.first).stat().st_uid == users.first
    run = users.start("--", *users.job("one"))
    box.begun("one")
    waiter = box.start("true", argv=words)
    wait_for(lambda: "waiting, position 2 of 2" in box.heard(waiter), 20)
    box.let("one")
    assert [box.finish(run).returncode, box.finish(waiter).returncode] == [0, 0]


@pytest.mark.parametrize("kind", ["directory", "file", "fifo", "link", "closed"])
def test_a_taken_name_costs_nobody_a_run(users: Users, kind: str) -> None:
    """State and locks go where only we can; who finds the name free again is still excluded."""
    box = users.box
    taken = [users.state(users.first), LOCKS / f"sandrun-locks-{users.first}"]
    for path in taken:
        match kind:
            case "directory":
                path.mkdir(0o777)
            case "closed":
                path.mkdir(0o000)
            case "file":
                path.touch()
            case "fifo":
                os.mkfifo(path)
            case "link":
                path.symlink_to(users.home)
        os.chown(path, users.other, users.other, follow_symlinks=False)
    run = users.start("-v", "--", *users.job("one"))
    box.begun("one")
    assert f"{taken[0]} is taken by uid {users.other}" in box.heard(run)
    second = users.start("--", *users.job("two"))
    wait_for(lambda: "waiting, position 2 of 2" in box.heard(second), 20)
    shown = users.run("status", "--all").stdout
    assert str(users.home) in shown and " job one " in shown
    assert f"ignored: 1 entry of other users with names of your queues ({taken[0]})" in shown
    for path in taken:
        remove(path)
    third = users.start("--", *users.job("three"))
    wait_for(lambda: "held by a run that is not in this queue" in box.heard(third), 20)
    assert users.state(users.first).is_dir()
    box.let_all(["one", "two", "three"])
    assert [box.finish(each).returncode for each in (run, second, third)] == [0, 0, 0]
    events = box.events()
    assert all(a == ("begin", b[1]) for a, b in zip(events[::2], events[1::2], strict=True))


def test_a_taken_pool_is_elsewhere_too(users: Users) -> None:
    users.own(Path(f"/tmp/sandrun-pool-{users.first}"), users.other)
    env = {"HOME": str(users.home), "SANDRUN_BACKEND": "rlimit", "SANDRUN_POOL": "80%"}
    done = users.box.run("-v", "--", "true", env=env, user=users.first)
    assert (done.returncode, "going on without" in done.stderr) == (0, False), done.stderr
    assert (users.home / f".local/state/sandrun/sandrun-pool-{users.first}").is_dir()


def test_without_a_home_nothing_of_the_current_directory_is_taken_for_ours(users: Users) -> None:
    users.box.env.pop("HOME")
    lure = users.own(users.box.project / f"sandrun-locks-{users.first}", users.first, 0o700)
    for taken in (False, True):
        if taken:
            users.own(users.state(users.first), users.other)
        done = users.box.run("--", "echo", "ran", user=users.first)
        assert done.returncode == (125 if taken else 0), done.stderr
        assert list(lure.iterdir()) == []
        if not taken:
            shutil.rmtree(users.state(users.first))


# Takes root's name for another user in the instant before we make the directory.
RACE = """
import os, sys

def squat(event, words):
    if event == "os.mkdir" and words[0].startswith("/tmp/seq-exec-") and not taken:
        taken.append(words[0])
        os.mkdir(words[0])
        os.chown(words[0], other, -1)

taken, other = [], int(sys.argv.pop(1))
sys.addaudithook(squat)
from sandrun.cli import main

main()
"""


def test_a_name_that_is_taken_just_then(users: Users) -> None:
    box = users.box
    words = ["-c", RACE, str(users.other), "-v", "--", "echo", "ran"]
    try:
        done = box.run(*words, argv=[sys.executable])
        assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
        assert f"{users.state(0)} is taken by uid {users.other}" in done.stderr
    finally:
        remove(users.state(0))


def test_many_foreign_names_are_one_line_and_disable_nothing(users: Users) -> None:
    box = users.box
    run = users.start("--", *users.job("one"))
    box.begun("one")
    for number in range(300):
        users.own(Path(f"/tmp/seq-exec-{number:08x}-{users.first}"), users.other)
    lines = users.run("status", "--all").stdout.splitlines()
    assert len(lines) == 3, lines
    assert lines[-1].startswith("ignored: 300 entries of other users")
    killed = users.run("kill", lines[1].split()[2])
    assert (killed.returncode, killed.stderr) == (0, ""), killed.stdout
    assert box.finish(run).returncode != 0
    assert users.run("kill", "--all").returncode == 1
    assert "no such waiter" in users.run("queue", "cancel", "abc").stderr


def test_doctor_tells_of_a_taken_name(users: Users) -> None:
    taken = users.own(users.state(users.first), users.other)
    done = users.run("doctor")
    line = next(x for x in done.stdout.splitlines() if "  state " in x)
    assert line.startswith("CAUTION") and f"another user has taken {taken}" in line


def test_a_session_directory_comes_first(users: Users) -> None:
    """XDG_RUNTIME_DIR, if it is ours alone; else it is as if there were none."""
    users.own(users.state(users.first), users.other)
    session = users.own(users.box.root / "session", users.first, 0o700)
    env = {"HOME": str(users.home), "XDG_RUNTIME_DIR": str(session)}
    for mode, where in ((0o700, session), (0o755, users.home / ".local/state/sandrun")):
        session.chmod(mode)
        done = users.box.run("--", "sh", "-c", "echo $SANDRUN_RUNS", env=env, user=users.first)
        assert done.stdout.startswith(f"{where}/seq-exec-"), done.stderr
