"""The removal of old sample files: by runs themselves, in bounded steps, and never of another's."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from sandrun.insight import samples
from sandrun.supervise import sample_files
from tests.harness import Box, wait_for

DAY = 86400.0


@pytest.fixture
def folder(box: Box, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the box's sample files, as this process sees it."""
    monkeypatch.setenv("XDG_STATE_HOME", box.env["XDG_STATE_HOME"])
    path = Path(sample_files.directory())
    path.mkdir(parents=True, mode=0o700)
    return path


def old(folder: Path, run_id: str, days: float, size: int = 100, ending: str = "") -> Path:
    """A file as of a run that ended so many days ago."""
    file = folder / f"{run_id}.jsonl{ending}"
    header = sample_files.header_start(run_id) + b"}\n"
    file.write_bytes(header + b"[1.0,2,3.0,4,null]\n" * ((size - len(header)) // 19))
    then = time.time() - days * DAY
    os.utime(file, (then, then))
    return file


def left(folder: Path) -> "set[str]":
    return {path.name for path in folder.iterdir()}


def test_a_run_removes_what_is_too_old(box: Box, folder: Path) -> None:
    gone = [old(folder, "00000001", 91), old(folder, "00000002", 91, ending=".0123456789abcdef")]
    kept = old(folder, "00000003", 89)
    assert box.run("--", "sleep", "1.2").returncode == 0
    assert not any(path.exists() for path in gone)
    assert kept.exists()
    assert len(left(folder)) == 2
    assert box.run("--history-age", "1d", "--", "sleep", "1.2").returncode == 0
    assert not kept.exists()
    assert len(left(folder)) == 2


def test_a_run_removes_the_oldest_above_the_size(box: Box, folder: Path) -> None:
    for number in range(20):
        old(folder, f"{number:08x}", 20 - number, size=100_000)
    assert box.run("--history-size", "1M", "--", "sleep", "1.2").returncode == 0
    kept = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert 900_000 < kept <= 1 << 20
    assert not (folder / "00000000.jsonl").exists()
    assert (folder / "00000013.jsonl").exists()


def test_a_short_run_removes_nothing(box: Box, folder: Path) -> None:
    gone = old(folder, "00000001", 1000)
    assert box.run("--", "true").returncode == 0
    assert gone.exists()


def test_a_large_directory_is_held_to_its_size_part_by_part(folder: Path) -> None:
    """Each run examines those whose names begin like its id; together they examine all."""
    for number in range(1500):
        old(folder, f"{number * 2_863_311 & 0xFFFFFFFF:08x}", 50 + number / 1000)
    limit = 1000 * 4096
    opened = sample_files.Folder()
    for digit in "0123456789abcdef":
        before = len(left(folder))
        removed, _ = sample_files.prune(opened, time.time(), 0, limit, digit + "1234567")
        assert removed == before - len(left(folder)) <= 100
    opened.close()
    total = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    assert total <= max(limit, sample_files._EXAMINED * 4096)
    assert samples.prune(time.time(), 0, 100 * 4096)[0] > 800
    assert len(left(folder)) == 100


def test_the_file_of_a_live_run_stays(box: Box, folder: Path) -> None:
    run = box.start("--", "sleep", "60")
    [name] = wait_for(lambda: left(folder), 20, "the run has a file")
    wait_for(lambda: samples.read(name[:8]), 20, "and a header, which it writes with the lock held")
    long_ago = time.time() - 1000 * DAY
    os.utime(folder / name, (long_ago, long_ago))
    assert samples.prune(time.time(), DAY, 1) == (0, 0)
    run.kill()
    run.wait()
    os.utime(folder / name, (long_ago, long_ago))
    assert samples.prune(time.time(), DAY, 1)[0] == 1
    assert not left(folder)


def test_what_is_not_ours_stays(folder: Path, tmp_path: Path) -> None:
    """Another name, another content, a link, a directory, a FIFO."""
    target = tmp_path / "target"
    target.write_bytes(sample_files.header_start("0000000a") + b"}\n")
    (folder / "0000000a.jsonl").symlink_to(target)
    (folder / "0000000b.jsonl").mkdir()
    os.mkfifo(folder / "0000000c.jsonl")
    old(folder, "0000000d", 100).write_text('{"my": "own data"}\n')
    old(folder, "0000000e", 100).write_bytes(sample_files.header_start("0000000f") + b"}\n")
    for name in ("notes.jsonl", "0000000D.jsonl", "0000000d.json", "0000000d.jsonl.bak"):
        (folder / name).write_bytes(sample_files.header_start("0000000d") + b"}\n")
    before = left(folder)
    long_ago = time.time() - 1000 * DAY
    for path in folder.iterdir():
        os.utime(path, (long_ago, long_ago), follow_symlinks=False)
    assert samples.prune(time.time(), DAY, 1) == (0, 0)
    assert left(folder) == before
    assert target.exists()


def test_an_empty_or_torn_file_of_a_killed_run_is_removed(folder: Path) -> None:
    for run_id, start in (("0000000a", b""), ("0000000b", b'{"v": 1, "i')):
        path = old(folder, run_id, 100)
        path.write_bytes(start)
        os.utime(path, (0, 0))
    assert samples.prune(time.time(), DAY, 0)[0] == 2


def test_a_clock_that_was_set_back_protects_nothing_for_ever(folder: Path) -> None:
    old(folder, "0000000a", -1000, size=100_000)
    old(folder, "0000000b", 1, size=100_000)
    assert samples.prune(time.time(), DAY * 90, 1)[0] == 2


def test_a_file_that_is_replaced_meanwhile_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its run replaces it between our opening of it and our lock."""
    path = old(folder, "0000000a", 100)
    new = old(folder, "0000000a", 50, ending=".0123456789abcdef")
    real = sample_files.is_locked
    with path.open("rb") as before, new.open("rb") as after:
        for held in (before, after):
            fcntl.flock(held, fcntl.LOCK_EX)

        def is_locked(fd: int, age: float) -> bool:
            if new.exists():
                new.rename(path)
                before.close()
            return real(fd, age)

        monkeypatch.setattr(sample_files, "is_locked", is_locked)
        assert samples.prune(time.time(), 70 * DAY, 0) == (0, 0)
    assert path.exists()


def test_no_directory_is_no_error(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(box.root / "nowhere"))
    assert samples.prune(time.time(), 1, 1) == (0, 0)
