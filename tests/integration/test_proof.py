"""Whom a clean-up ends: only what is proved to be of the run that a holder's line tells of.

A sandrun that believed such a line would end whatever it may signal. So as root all of this runs as
a user of its own, who has no other process: a failure here harms nobody.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sandrun.backends import rlimit
from sandrun.model import MIB
from sandrun.platform import processes
from tests.harness import ON_MACOS, Box, alive, launcher, wait_for

DEAD = "0badcafe"
pytestmark = pytest.mark.skipif(ON_MACOS, reason="not on macOS: no process's limits can be read")


ALONE = 64999 if os.geteuid() == 0 else None
"""A uid that nobody has."""


class _Alone(Box):
    """A box in which everything runs as that user."""

    def start(
        self, *args: "str | Path", user: "int | None" = None, **more: Any
    ) -> "subprocess.Popen[str]":
        return super().start(*args, user=ALONE if user is None else user, **more)


@pytest.fixture
def place() -> "Iterator[Box]":
    with tempfile.TemporaryDirectory(prefix="sandrun-test-") as scratch:
        os.chmod(scratch, 0o755)
        box = _Alone(Path(scratch), "rlimit")
        for path in (box.project, box.state, box.home, box.root, box.log):
            os.chown(path, ALONE or -1, ALONE or -1)
        assert box.run("-q", "--", "true").returncode == 0
        yield box
        box.close()


def state(place: Box) -> Path:
    (path,) = place.state.glob("seq-exec-*")
    return path


def mark(run: str = DEAD) -> int:
    """The RLIMIT_DATA of a run's processes."""
    return rlimit._data_limit(run)


def line(place: Box, **fields: object) -> str:
    """The line of a run that was killed, with other `fields`; None: there is no such field."""
    full = {
        "id": DEAD, "pid": 1 << 30, "project": str(place.project), "cwd": str(place.project),
        "command": ["make"], "since": time.time() - 1, "backend": "rlimit",
        "container": f"{DEAD}:{mark()}", "leftovers": "kill", "state": str(state(place)), **fields,
    }  # fmt: skip
    return json.dumps({key: value for key, value in full.items() if value is not None})


SLEEPER = """
import os, resource, sys
data = int(sys.argv[1])
if data: resource.setrlimit(resource.RLIMIT_DATA, (data, resource.RLIM_INFINITY))
os.execvp("sleep", ["sleep", "1000"])
"""


def sleeper(place: Box, data: int = 0, user: "int | None" = None, **env: str) -> int:
    """A process that is in no run, with that RLIMIT_DATA."""
    argv = [sys.executable, "-I", "-S", "-c", SLEEPER, str(data)]
    process = place.start(argv=argv, env=env, user=user)
    wait_for(lambda: processes.Stat(process.pid).name == "sleep", 20, "the sleeper is up")
    return process.pid


def bystanders(place: Box) -> "list[int]":
    """Processes of ours that look nearly like those of the dead run."""
    run = f"{state(place)}/{DEAD}"
    return [
        sleeper(place, VICTIM="/some/where"),
        sleeper(place, OTHER_RUNS=run),
        sleeper(place, SANDRUN_RUNS=f"{run}1"),
        sleeper(place, SANDRUN_RUNS=f"{run}/below:/above{run}"),
        sleeper(place, data=mark() + 4096),
    ]


def after_clean_up(place: Box, text: str) -> str:
    """What the next run says when it finds that line."""
    (state(place) / "executor.lock").write_text(text)
    done = place.run("--", "echo", "ran")
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    return done.stderr


ODD: "dict[str, dict[str, object]]" = {
    "a later backend": {"backend": "cgroup3", "container": ""},
    "a later backend, a word": {"backend": "cgroup3", "container": "home"},
    "no backend": {"backend": None},
    "another system's": {"backend": "job-object", "container": DEAD},
    "an empty token": {"container": ""},
    "another run's token": {"container": "0badcaff:0"},
    "a limit that is everybody's": {"container": f"{DEAD}:{mark() + 4096}"},
    "a limit that is no number": {"container": f"{DEAD}:unlimited"},
    "a limit of many digits": {"container": f"{DEAD}:{'9' * 5000}"},
    "an empty id": {"id": "", "container": ":0"},
    "a short id": {"id": "0badcaf", "container": "0badcaf:0"},
    "an id with a slash": {"id": "../../aa", "container": "../../aa:0"},
    "an id that is a number": {"id": 12345678},
    "another state directory": {"state": "/tmp"},
    "no state directory": {"state": None},
    "a relative one": {"state": "."},
    "a state that is no text": {"state": ["/"]},
    "a NUL": {"state": "/tmp/\0"},
    "half a character": {"cwd": "/\ud800"},
    "a pid of all": {"pid": -1},
    "a pid that is no number": {"pid": "1"},
    "no time": {"since": None},
    "a time that is none": {"since": float("nan")},
    "a time to come": {"since": time.time() + 1e6},
    "a group": {"backend": "cgroup1", "container": "memory=/"},
    "the root of all groups": {"backend": "cgroup2", "container": "/sys/fs/cgroup"},
    "a group above": {"backend": "cgroup2", "container": f"/sys/fs/cgroup/x/../sandrun-{DEAD}"},
    "a hierarchy that is none": {
        "backend": "cgroup1", "container": f"memory=/sys/fs/cgroup/memory/sandrun-{DEAD}\nrw=/",
    },
    "a scope": {"backend": "systemd", "container": "/sys/fs/cgroup/system.slice"},
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_a_line_that_is_none_of_ours_ends_nobody(place: Box, what: str) -> None:
    near = bystanders(place)
    # What the line means, if it were believed.
    near += [sleeper(place, SANDRUN_RUNS=f"{state(place)}/{DEAD}"), sleeper(place, data=mark())]
    said = after_clean_up(place, line(place, **ODD[what]))
    assert all(map(alive, near)), said
    assert "nothing is ended" in said
    assert place.records()[-1]["reason"] == "exit"


@pytest.mark.parametrize(
    "text", ["x", "{}", "[]", "3", '"x"', "null", "[" * 100_000, "{" * 100_000, "\0", "\xff"]
)
def test_a_line_that_is_no_object_is_passed_by(place: Box, text: str) -> None:
    assert "nothing is ended" in after_clean_up(place, text)


def test_a_line_without_end_is_not_read_whole(place: Box) -> None:
    """One of 20 GiB: more than the address space has."""
    after_clean_up(place, "")
    os.truncate(state(place) / "executor.lock", 20 << 30)
    script = 'ulimit -v 1500000; exec "$@"'
    done = place.run("-c", script, "sh", *launcher(), "--", "echo", "ran", argv=["sh"])
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr
    assert "nothing is ended" in done.stderr


def test_only_whole_marks_of_that_run_are_ended(place: Box) -> None:
    near = bystanders(place)
    run = f"{state(place)}/{DEAD}"
    ours = [
        sleeper(place, SANDRUN_RUNS=run),
        sleeper(place, SANDRUN_RUNS=f"/tmp/outer/12345678:{run}:/tmp/inner/12345678"),
        sleeper(place, data=mark()),
    ]
    said = after_clean_up(place, line(place))
    assert list(map(alive, ours)) == [False] * 3, said
    assert all(map(alive, near)), said
    assert f"cleaning up after run {DEAD}" in said
    assert [record["reason"] for record in place.records()[-2:]] == ["lost", "exit"]


def test_kill_ends_nobody_by_a_line_that_is_none_of_ours(place: Box) -> None:
    near = [*bystanders(place), sleeper(place, SANDRUN_RUNS=f"{state(place)}/{DEAD}")]
    (state(place) / "executor.lock").write_text(line(place, backend="cgroup3", container=""))
    done = place.run("kill", "--all")
    assert "ended" not in done.stdout
    assert "Traceback" not in done.stderr
    assert all(map(alive, near))


def test_a_run_whose_ticket_was_removed_is_alive(place: Box) -> None:
    """Somebody tidied up: the next run waits for it, and does not end it."""
    run = place.hold("job")
    for ticket in state(place).glob("r*"):
        ticket.unlink()
    second = place.start("--wait-timeout", "2", "--", "true")
    assert place.finish(second).returncode == 75
    assert run.poll() is None
    place.let("job")
    assert place.finish(run).returncode == 0


def test_a_line_of_a_live_run_of_another_queue_ends_it_not(place: Box) -> None:
    run = place.hold("job", "--queue", "other")
    found = [path for path in place.state.glob("seq-exec-*/executor.lock") if path.read_text()]
    copied = found[0].read_text().replace(str(found[0].parent), str(state_of_project(place)))
    (state_of_project(place) / "executor.lock").write_text(copied)
    done = place.run("--pool", "off", "--", "true")
    assert done.returncode == 0
    assert "nothing is ended" in done.stderr
    assert run.poll() is None
    place.let("job")
    assert place.finish(run).returncode == 0


def state_of_project(place: Box) -> Path:
    """The state directory that the project's first run made."""
    return min(place.state.glob("seq-exec-*"), key=lambda path: path.stat().st_ctime_ns)


def git(place: Box, *words: str) -> None:
    subprocess.run(["git", "-C", place.project, *words], check=True, capture_output=True)


def test_gits_locks_from_before_a_damaged_line_stay(place: Box) -> None:
    """The line says that the run began long ago: whatever is there would be its own."""
    git(place, "init", "-q")
    place.env["SANDRUN_GIT_WAIT"] = "0"
    assert place.run("-q", "--", "true").returncode == 0
    lock = place.project / ".git/index.lock"
    lock.write_text("staged")
    os.utime(lock)
    time.sleep(0.05)
    said = after_clean_up(place, line(place, since=1.0))
    assert f"cleaning up after run {DEAD}" in said
    assert lock.read_text() == "staged"
    assert "moved" not in said


def test_the_finders_git_variables_do_not_lead_the_healing(place: Box, tmp_path: Path) -> None:
    """A lock of another repository, which GIT_DIR of the next run's caller happens to name."""
    other = tmp_path / "other"
    subprocess.run(["git", "init", "-q", other], check=True)
    place.env |= {"SANDRUN_GIT_WAIT": "0", "GIT_DIR": str(other / ".git")}
    text = line(place)
    (state(place) / "executor.lock").write_text(text)
    time.sleep(0.05)
    lock = other / ".git/index.lock"
    lock.write_text("staged")
    done = place.run("--", "true")
    assert f"cleaning up after run {DEAD}" in done.stderr
    assert lock.exists()


THREADS = """
import ctypes, os, sys, threading, time
def work():
    time.sleep(0.3)
    kept.append(bytearray(b"x") * (int(sys.argv[1]) << 20))
    open(sys.argv[2], "w").write(str(os.getpid()))
    time.sleep(1000)
kept = []
for _ in range(int(sys.argv[3])):
    threading.Thread(target=work).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)  # exit(2), this thread
"""


def test_a_process_without_its_first_thread_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    process = subprocess.Popen([sys.executable, "-c", THREADS, "30", file, "2"])
    try:
        wait_for(file.exists, 20, "it is up")
        wait_for(lambda: processes.Stat(process.pid).state == "Z", 10, "its first thread is gone")
        found = processes.describe(process.pid)
        assert found
        assert found.command.startswith(f"{sys.executable} -c")
        assert found.memory > 30 * MIB
    finally:
        process.kill()
        process.wait()


def test_a_process_without_its_first_thread_has_its_mark(place: Box) -> None:
    file = place.root / "pid"
    env = {"SANDRUN_RUNS": f"{state(place)}/{DEAD}"}
    place.start("-c", THREADS, "1", file, "2", argv=[sys.executable], env=env)
    pid = int(wait_for(lambda: file.exists() and file.read_text(), 20, "it is up") or 0)
    wait_for(partial(first_is_gone, pid), 10, "its first thread is gone")
    after_clean_up(place, line(place))
    assert not alive(pid)


def first_is_gone(pid: int) -> bool:
    return processes.Stat(pid).state == "Z"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: runs as two different users")
def test_another_users_process_with_the_same_limit_is_not_ours(open_box: Box) -> None:
    """Everybody can read a limit, and set it for himself; it delays nobody's next run."""
    place = open_box
    place.env["SANDRUN_BACKEND"] = "rlimit"
    user, other = 65534, 65533
    for directory in (place.project, place.home, place.state):
        os.chown(directory, user, user)
    assert place.run("-q", "--", "true", user=user).returncode == 0
    theirs, mine = (sleeper(place, data=mark(), user=uid) for uid in (other, user))
    (state(place) / "executor.lock").write_text(line(place))
    done = place.run("--", "true", user=user)
    assert done.returncode == 0
    assert "do not die" not in done.stderr
    assert alive(theirs)
    assert not alive(mine)
