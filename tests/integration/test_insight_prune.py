"""`sandrun history prune`: what it removes, and that no record is lost or doubled meanwhile."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sandrun.insight import pruning
from sandrun.platform import folders, processes
from tests.harness import Box, installed_env, is_keeper, launcher, wait_for
from tests.integration.test_insight_history import record, write

DAY = 24  # hours


def ids(file: Path) -> "list[str]":
    """The ids in the file, in order; a doubled record is there twice."""
    return [str(json.loads(line)["id"]) for line in file.read_text().splitlines()]


def test_old_records_and_garbage_are_removed(box: Box) -> None:
    file = write(box, *(record(days * DAY) for days in (200, 100, 80, 1)))
    later = json.dumps({"v": 2, "id": "0badcafe", "since": 5}) + "\n"
    file.write_bytes(b"torn {\n\0\0\0\n" + later.encode() + file.read_bytes())
    os.chmod(file, 0o640)
    before = file.read_bytes()
    dry = box.run("history", "prune", "--dry-run")
    assert "would remove 4 of 7 records (" in dry.stdout
    assert file.read_bytes() == before
    done = box.run("history", "prune")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == dry.stdout.splitlines()[0].replace(
        "would remove", "removed"
    )
    assert ids(file) == ["0badcafe", f"{80 * DAY:08x}", f"{DAY:08x}"], "of another version: kept"
    assert file.stat().st_mode & 0o777 == 0o640
    assert os.listdir(file.parent) == ["history.jsonl"]


def test_the_oldest_go_until_the_others_fit(box: Box) -> None:
    file = write(box, *(record(number) for number in range(99, -1, -1)))
    size = file.stat().st_size
    done = box.run("history", "prune", "--older-than", "0", "--larger-than", "1M")
    assert "removed 0 of 100" in done.stdout
    big = write(box, *(record(number, cwd="/" + "x" * 40_000) for number in range(99, -1, -1)))
    assert box.run("history", "prune", "--larger-than", "1M").returncode == 0
    assert big.stat().st_size <= 1 << 20 < big.stat().st_size + 41_000
    assert ids(big)[-1] == "00000000"
    assert len(ids(big)) == (1 << 20) // (big.stat().st_size // len(ids(big)))
    assert size


def test_nothing_is_written_if_nothing_is_removed(box: Box) -> None:
    file = write(box, record(1))
    inode = file.stat().st_ino
    assert "removed 0 of 1 records" in box.run("history", "prune").stdout
    assert file.stat().st_ino == inode


def test_a_run_that_waited_during_a_prune_is_recorded_once(box: Box) -> None:
    file = write(box, record(200 * DAY))
    box.hold("one")  # its log is open
    waiter = box.queue_up("two")
    assert "removed 1 of 1" in box.run("history", "prune").stdout
    box.let_all(["one", "two"])
    assert box.finish(waiter).returncode == 0
    wait_for(lambda: len(box.records()) == 2, 20)
    assert len(set(ids(file))) == 2


def waits_for_lock(inode: str) -> bool:
    """Whether a process waits for a lock on that file, as far as the system lists that."""
    locks = Path("/proc/locks")
    if not locks.exists():
        return True
    return any("->" in line and inode in line for line in locks.read_text().splitlines())


def prune_process(box: Box) -> "subprocess.Popen[str]":
    return box.start("history", "prune", "--older-than", "90d")


def test_a_record_written_after_the_copy_is_kept(box: Box) -> None:
    """The writer is between its check and its write: the prune waits for it."""
    file = write(box, record(200 * DAY), record(1))
    with file.open("ab", buffering=0) as writer:
        fcntl.flock(writer, fcntl.LOCK_SH)
        pruning = prune_process(box)
        inode = f":{file.stat().st_ino} "
        wait_for(lambda: waits_for_lock(inode) or pruning.poll() is not None, 20)
        assert pruning.poll() is None, "it did not wait for the writer"
        writer.write((json.dumps(record(0)) + "\n").encode())
    assert box.finish(pruning).returncode == 0
    assert ids(file) == ["00000001", "00000000"]


def test_a_run_that_ends_during_the_replacement_is_recorded_in_the_new_file(box: Box) -> None:
    """The test does what a prune does, and takes its time."""
    file = write(box, record(1))
    with file.open("rb") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        new = file.with_name("new")
        new.write_bytes(file.read_bytes())
        run = box.start("--", "touch", box.root / "done")
        done = box.root / "done"
        wait_for(lambda: done.exists() and not processes.children(run.pid), 20, "the command ended")
        new.rename(file)
    assert box.finish(run).returncode == 0
    assert len(set(ids(file))) == 2


def test_a_prune_that_is_stopped_holds_up_no_run(box: Box) -> None:
    """The record is in the state directory then, and listed all the same."""
    file = write(box, record(1))
    with file.open("rb") as old:
        fcntl.flock(old, fcntl.LOCK_EX)
        assert box.run("--", "true").returncode == 0
        lines = box.run("history").stdout.splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(" true")
    assert ids(file) == ["00000001"]


def first_keeper(supervisor: int) -> int:
    """Not the shell of a run's first instant, which has no descriptors of its supervisor."""
    pids = [pid for pid in processes.children(supervisor) if is_keeper(pid)]
    return next((pid for pid in pids if processes.Stat(pid).name != "early-keeper"), 0)


def test_a_keeper_that_is_stopped_holds_up_no_prune(make_box: "Callable[[str], Box]") -> None:
    """It has a copy of the descriptor with which its supervisor writes the record."""
    box = make_box("rlimit")
    file = write(box, record(200 * DAY))
    run = box.hold("one")
    keeper = wait_for(lambda: first_keeper(run.pid), 20, "it has a forked keeper")
    os.kill(keeper, signal.SIGSTOP)
    box.let("one")
    wait_for(lambda: len(box.records()) == 2, 20, "the run is recorded")
    done = box.run("history", "prune", seconds=20)
    os.kill(keeper, signal.SIGCONT)
    assert (done.returncode, len(ids(file))) == (0, 1)
    assert box.finish(run).returncode == 0


WRITER = """
import random, sys, time
from sandrun import history
name, count = sys.argv[1], int(sys.argv[2])
for number in range(count):
    log = history.Log()
    time.sleep(random.random() / 50)
    history.append({"id": f"{name}{number:07x}", "since": time.time(), "wall": 0.0}, "", log)
"""


def test_writers_and_prunes_at_the_same_time(box: Box) -> None:
    old = [record(200 * DAY + number) for number in range(50)]
    file = write(box, *old)
    env = installed_env({**box.env})
    names = "abcd"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name, "150"], env=env) for name in names
    ]
    try:
        prunes = 0
        while any(writer.poll() is None for writer in writers):
            with file.open("a") as more:  # so that there is something to remove
                fcntl.flock(more, fcntl.LOCK_SH)
                if os.fstat(more.fileno()).st_nlink:
                    more.write(json.dumps(old[0]) + "\n")
                    more.flush()
            assert box.run("history", "prune").returncode == 0
            prunes += 1
        assert all(writer.wait() == 0 for writer in writers)
    finally:
        for writer in writers:
            writer.kill()
    assert box.run("history", "prune").returncode == 0
    expected = {f"{name}{number:07x}" for name in names for number in range(150)}
    found = ids(file)
    assert len(found) == len(set(found)), "a record is there twice"
    assert set(found) == expected, f"lost after {prunes} prunes"


def test_a_killed_prune_leaves_the_history_and_its_file_is_removed(box: Box) -> None:
    file = write(box, record(200 * DAY), record(1))
    content = file.read_bytes()
    with file.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_SH)
        pruning = prune_process(box)
        wait_for(lambda: len(os.listdir(file.parent)) == 2 or pruning.poll() is not None, 20)
        pruning.send_signal(signal.SIGKILL)
        pruning.wait()
    assert file.read_bytes() == content
    assert len(os.listdir(file.parent)) == 2
    assert box.run("history", "prune").returncode == 0
    assert ids(file) == ["00000001"]
    assert os.listdir(file.parent) == ["history.jsonl"]


def test_a_full_disk_leaves_the_history(box: Box) -> None:
    """Also if only the last bytes do not fit: write(2) then writes a part of them."""
    file = write(box, record(200 * DAY), record(1))
    content = file.read_bytes() + b"x" * 3000  # as if a run were just writing its record
    file.write_bytes(content)
    argv = ["sh", "-c", 'ulimit -f 4; exec "$@"', "sh", *launcher()]
    done = box.run("history", "prune", argv=argv)
    assert done.returncode == 125
    assert done.stderr.startswith(f"sandrun: cannot replace {file}: ")
    assert file.read_bytes() == content
    assert os.listdir(file.parent) == ["history.jsonl"]


def test_a_file_that_another_prune_removes_before_it_is_locked(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(box, record(200 * DAY), record(1))
    create = folders.create

    def interrupted(path: str, flags: int, most: int) -> int:
        monkeypatch.setattr(folders, "create", create)
        fd = create(path, flags, most)
        pruning._remove_abandoned(str(file))
        return fd

    monkeypatch.setattr(folders, "create", interrupted)
    oldest = time.time() - 90 * 86400
    assert "removed 1 of 2 records" in pruning._prune_file(str(file), oldest, 0, False)[0]
    assert ids(file) == ["00000001"]
    assert os.listdir(file.parent) == ["history.jsonl"]


def test_what_is_no_history_is_left_alone(box: Box) -> None:
    file = write(box)
    other = box.root / "passwd"
    other.write_text("root:x:0:0\n" * 10)
    file.unlink()
    file.symlink_to(other)
    done = box.run("history", "prune")
    assert done.returncode == 125
    assert "is no history of yours" in done.stderr
    assert other.read_text() == "root:x:0:0\n" * 10
    file.unlink()
    os.link(other, file)
    assert box.run("history", "prune").returncode == 125
    assert other.read_text() == "root:x:0:0\n" * 10


def test_the_samples_of_old_runs_are_removed(box: Box) -> None:
    box.run("--", "sleep", "1.2")
    (sample,) = (box.home / "state/sandrun/runs").iterdir()
    then = time.time() - 91 * 86400
    os.utime(sample, (then, then))
    assert "would remove the samples of 1 run" in box.run("history", "prune", "--dry-run").stdout
    assert sample.exists()
    assert "removed the samples of 1 run (" in box.run("history", "prune").stdout
    assert not sample.exists()


@pytest.mark.parametrize("words", [["--older-than", "soon"], ["--larger-than", "big"]])
def test_a_bad_limit_is_refused_in_one_line(box: Box, words: "list[str]") -> None:
    done = box.run("history", "prune", *words)
    assert done.returncode == 125
    assert "expected a " in done.stderr


def test_filters_of_the_list_do_not_apply(box: Box) -> None:
    file = write(box, record(200 * DAY))
    done = box.run("history", "--since", "2d", "prune")
    assert done.returncode == 125
    assert "options of history do not apply to prune" in done.stderr
    assert len(ids(file)) == 1


@pytest.mark.parametrize("kind", ["file", "loop", "FIFO"])
def test_samples_that_cannot_be_removed_are_one_line(box: Box, kind: str) -> None:
    """The records are pruned, and that is reported."""
    box.run("--", "true")
    folder = box.home / "state/sandrun/runs"
    {"file": Path.touch, "loop": lambda p: p.symlink_to(p), "FIFO": os.mkfifo}[kind](folder)
    done = box.run("history", "prune", "--older-than", "1ms")
    assert (done.returncode, done.stdout[:18]) == (0, "removed 1 of 1 rec")
    assert done.stderr.startswith(f"sandrun: cannot remove samples: {folder}: ")
    assert done.stderr.splitlines()[1:] == [f"sandrun: hint: ls -ld {folder}"]
