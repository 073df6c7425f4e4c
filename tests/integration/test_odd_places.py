"""Odd places to be started in: shared directories, no home, no /proc, an umask of 777, children of
our own, a parent that is gone, a stderr that nobody reads, an alarm that is about to ring.
"""

import os
import signal
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness import Box, alive, launcher, wait_for, without_note

OTHER = 65534
USER = 12345
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="makes users and mounts: runs as root")
SH = ["sh", "-c"]


@pytest.fixture(params=["rlimit", "auto"])
def place(make_box: "Callable[[str], Box]", request: pytest.FixtureRequest) -> Box:
    return make_box(request.param)


@pytest.mark.parametrize("name", [".git", "sandrun.toml", "pyproject.toml"])
def test_marks_that_anybody_could_lay_choose_nothing(open_box: Box, name: str) -> None:
    """In a sticky directory above the project, as in /tmp: neither settings nor the run lock."""
    shared = open_box.root / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    mark = shared / name
    if name == ".git":
        mark.mkdir()
        (mark / "HEAD").write_text("ref: refs/heads/main\n")
        mark.chmod(0o777)
    else:
        table = "[tool.sandrun]\n" if name == "pyproject.toml" else ""
        mark.write_text(f'{table}leftovers = "leave"\n')
    os.chown(mark, OTHER, OTHER)
    mine = shared / "mine"
    mine.mkdir()
    for place in (mine, shared):
        done = open_box.run("--", "sh", "-c", "echo $SANDRUN_PROJECT", cwd=place, user=USER)
        assert done.stdout == f"{place}\n", done.stderr
        chosen = open_box.run("config", cwd=place, user=USER).stdout
        assert next(w.split()[1] for w in chosen.splitlines() if "leftovers" in w) == "kill"
    assert not (shared / ".git" / "sandrun.lock").exists()
    os.chown(mark, USER, USER)
    done = open_box.run("--", "sh", "-c", "echo $SANDRUN_PROJECT", cwd=mine, user=USER)
    assert done.stdout == f"{shared}\n", done.stderr


def test_an_umask_that_takes_everything_is_the_commands_alone(open_box: Box) -> None:
    """What sandrun makes under it must be usable, by us and by the next run."""
    home = open_box.root / "own"
    home.mkdir()
    os.chown(home, USER, USER)
    open_box.env["HOME"] = str(home)
    del open_box.env["XDG_STATE_HOME"]
    words = ["sh", "sh", *launcher(), "--", "sh", "-c", "umask"]
    for backend in ("none", "rlimit"):
        done = open_box.run(
            "-c", 'umask 777; exec "$@"', *words[1:], argv=words[:1], user=USER,
            env={"SANDRUN_BACKEND": backend},
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "0777\n"), done.stderr
        assert done.stderr == ""
    history = home / ".local/state/sandrun/history.jsonl"
    assert len(history.read_text().splitlines()) == 2
    assert not history.stat().st_mode & 0o077


def test_an_umask_that_takes_nothing_leaves_no_folder_that_others_can_write(box: Box) -> None:
    """Below ~/.local: history's and the shims', and all above them that were missing."""
    for name in ("XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        del box.env[name]
    for words in (["--", "true"], ["shims", "add", "make"]):
        done = box.run("-c", 'umask 000; exec "$@"', "sh", *launcher(), *words, argv=["sh"])
        assert done.returncode == 0, done.stderr
    made = [path for path in box.home.rglob("*") if path.lstat().st_mode & 0o022]
    assert (box.home / ".local/state/sandrun/history.jsonl").exists()
    assert (box.home / ".local/share/sandrun/shims/make").exists()
    assert made == []


@pytest.mark.parametrize("most", [8, 9, 10, 12, 14, 16, 18, 20, 24])
def test_too_few_descriptors_are_told_as_such(place: Box, most: int) -> None:
    """Not as a full disk, another's file or a missing right; and no weaker backend is taken."""
    place.run("--", "true")
    script = f'ulimit -n {most}; exec "$@"'
    done = place.run("-c", script, "sh", *launcher(), "--", "true", argv=["sh"], seconds=60)
    if done.returncode:
        assert (done.returncode, done.stdout) == (125, "")
        first, second = without_note(done.stderr).splitlines()
        assert "Too many open files" in first
        assert second == f"sandrun: hint: {most} open files are too few: ulimit -n 1024"
    else:
        assert without_note(done.stderr) == ""
        backends = [record["backend"] for record in place.records()]
        assert backends[-1] == backends[0]


def test_no_home_is_no_folder_of_that_name(open_box: Box) -> None:
    """A uid without an account, and no HOME: `~` stands for nothing."""
    open_box.project.chmod(0o777)
    for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME"):
        del open_box.env[name]
    done = open_box.run("--", "true", user=USER)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(open_box.project.iterdir()) == []
    (state,) = open_box.directories()
    assert (state / "history.jsonl").exists()
    done = open_box.run("shims", "add", "make", user=USER)
    assert done.returncode == 125
    assert "there is no home directory" in done.stderr
    assert list(open_box.project.iterdir()) == []


@ROOT_ONLY
def test_without_proc_nothing_starts_that_polling_could_not_end(
    make_box: "Callable[[str], Box]",
) -> None:
    place = make_box("rlimit")
    script = 'mount -t tmpfs none /proc && exec "$@"'
    words = ["-m", "sh", "-c", script, "sh", *launcher(), "--", "touch", "ran"]
    done = place.run(*words, argv=["unshare"])
    assert done.returncode == 125
    assert "there is no /proc" in done.stderr
    assert "internal" not in done.stderr
    assert not (place.project / "ran").exists()


def test_children_from_before_are_not_the_commands(place: Box) -> None:
    """Whoever became sandrun by exec may have had children: no leftovers, and they live on."""
    file = place.root / "stranger"
    before = f'sh -c "sleep 1000 & echo \\$! >{file}; wait" >/dev/null &'
    script = f"{before} while [ ! -s {file} ]; do :; done"
    done = place.run(f'{script}; exec "$@"', "sh", *launcher(), "--", "true", argv=SH)
    assert (done.returncode, done.stderr.count("left behind")) == (0, 0), done.stderr
    assert alive(int(file.read_text()))


def test_a_waiter_whose_parent_died_runs_nothing(place: Box) -> None:
    place.hold("first")
    parent = place.start('"$@"; :', "sh", *launcher(), "--", *place.job("second"), argv=SH)
    wait_for(lambda: any(" second " in line for line in place.view()), 20, "it waits")
    parent.kill()
    parent.wait()
    place.let("first")
    wait_for(lambda: len(place.records()) == 2, 20, "both are over")
    assert [record["reason"] for record in place.records()] == ["exit", "parent"]
    assert ("begin", "second") not in place.events()


def test_an_alarm_set_before_us_rings_for_the_command(place: Box) -> None:
    """alarm(2) outlives exec: `perl -e 'alarm 5; exec @ARGV' COMMAND` is an old timeout."""
    before = "import os, signal, sys; signal.alarm(1); os.execv(sys.argv[1], sys.argv[1:])"
    done = place.run(
        *launcher(), "--", "sleep", "1000", argv=[sys.executable, "-c", before], seconds=20
    )
    assert done.returncode == 128 + signal.SIGALRM


def test_a_reader_that_stands_still_suspends_no_limit(place: Box) -> None:
    """Our own lines into a full pipe: what cannot be said must not keep us from acting."""
    unread, full = os.pipe()
    os.set_blocking(full, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(full, bytes(512))
    os.set_blocking(full, True)
    try:
        grow = "import time; x = b'x' * (40 << 20); time.sleep(1000)"
        run = place.start("-t", "1", "-m", "64M", "--", sys.executable, "-c", grow, stderr=full)
        waiter = place.start("--wait-timeout", "0.2", "--", "true", stderr=full)
        assert place.finish(waiter, 15).returncode in (0, 75)
        assert place.finish(run, 15).returncode == 124
    finally:
        os.close(unread)
        os.close(full)


def test_a_group_that_forbids_the_oom_killer_holds_no_run_at_its_limit(
    make_box: "Callable[[str], Box]",
) -> None:
    """cgroup v1 hands memory.oom_control down: at the limit everybody would sleep for
    ever, but we are notified, and what is told to end wakes up, or is killed after the grace."""
    box = make_box("auto")
    own = [line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines()
           if line.split(":")[1] == "memory"]  # fmt: skip
    above = Path(f"/sys/fs/cgroup/memory{own[0] if own else ''}/sandrun-test-{uuid.uuid4()}")
    try:
        above.mkdir()
    except OSError as error:
        pytest.skip(f"cgroup1 is not to be had here: {error}")
    try:
        (above / "memory.oom_control").write_text("1")
        script = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"'
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        hog = [sys.executable, "-c", deaf + "kept = b'x' * (200 << 20)"]
        argv = ["sh", "-c", script, "sh", str(above), *launcher()]
        done = box.run("-m", "40M", "--grace", "1", "--", *hog, argv=argv, seconds=60)
        assert done.returncode == 137, done.stderr
        assert "memory limit of 40.0 MiB reached" in done.stderr
    finally:
        wait_for(lambda: not (above / "cgroup.procs").read_text(), 10, "it is empty")
        above.rmdir()
