"""Readers of the history: no content of the file fails a run or delays it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandrun import history
from sandrun.queue import ticket_text
from tests.harness import Box, installed_env, wait_for

GOOD = {"v": 1, "id": "0badcafe", "project": "/p", "command": ["make"], "wall": 2.5}
GARBAGE = {
    "brackets": b"[" * 100_000,
    "an object that is not closed": b'{"v": 1',
    "digits": b'{"v": 1, "wall": ' + b"7" * 5000 + b"}",
    "no text": b"\xff\xfe\x00",
    "no record": b"7",
    "a later version": json.dumps({**GOOD, "v": 2, "reason": "exit"}).encode(),
    "a number for a command": json.dumps({**GOOD, "reason": "exit", "command": 7}).encode(),
    "numbers for words": json.dumps({**GOOD, "reason": "exit", "command": [7]}).encode(),
    "no command": json.dumps({"v": 1, "project": "/p", "reason": "exit", "wall": 1.0}).encode(),
    "a text for a time": json.dumps({**GOOD, "reason": "exit", "wall": "long"}).encode(),
    "no number": b'{"v": 1, "project": "/p", "reason": "exit", "command": ["make"], "wall": NaN}',
    "no end": b'{"v": 1, "project": "/p", "reason": "exit", "command": ["make"], "wall": 1e999}',
    "a list for a reason": json.dumps({**GOOD, "reason": [1]}).encode(),
}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "sandrun").mkdir()
    return Path(history.path())


@pytest.mark.parametrize("name", GARBAGE)
def test_invalid_records_are_skipped(file: Path, name: str) -> None:
    good = json.dumps({**GOOD, "reason": "exit"}).encode()
    file.write_bytes(b"\n".join((good, GARBAGE[name], good, GARBAGE[name])))
    assert history.durations("/p", ticket_text) == {"make": 2.5}
    assert history.recorded("0badcafe")


def test_whole_seconds_are_a_duration(file: Path) -> None:
    file.write_text(json.dumps({**GOOD, "reason": "exit", "wall": 3}) + "\n")
    assert history.durations("/p", ticket_text) == {"make": 3}


def test_a_run_is_searched_from_the_end_in_a_bounded_part(file: Path) -> None:
    filler = json.dumps({**GOOD, "id": "f" * 8}) + "\n"
    record = json.dumps(GOOD) + "\n"
    near = (1 << 19) // len(filler)
    file.write_text(record + filler * near)
    assert history.recorded("0badcafe")
    file.write_text(record + filler * near * 3)
    assert not history.recorded("0badcafe"), "the whole file was read"


def test_an_id_in_a_command_does_not_count_as_a_record(file: Path) -> None:
    file.write_text(json.dumps({**GOOD, "command": ["kill", "12345678"]}) + "\n")
    assert not history.recorded("12345678")


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_a_history_that_is_no_regular_file_is_neither_read_nor_written(
    box: Box, file: Path, tmp_path: Path, kind: str
) -> None:
    """The record goes to the state directory instead."""
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    env = {"XDG_STATE_HOME": str(tmp_path)}
    box.hold("one", env=env)
    waiter = box.queue_up("two", env=env)
    wait_for(lambda: "waiting, position 2" in box.heard(waiter), 20)
    box.let_all(["one", "two"])
    assert box.finish(waiter).returncode == 0
    (state,) = box.directories()
    assert len((state / "history.jsonl").read_text().splitlines()) == 2


def test_a_waiter_tolerates_a_damaged_history(box: Box) -> None:
    history_file = box.home / "state/sandrun/history.jsonl"
    history_file.parent.mkdir(parents=True)
    history_file.write_bytes(b"\n".join(GARBAGE.values()))
    box.hold("one")
    waiter = box.queue_up("two")
    box.let_all(["one", "two"])
    assert box.finish(waiter).returncode == 0


def test_a_record_holds_a_bounded_part_of_a_command_line(box: Box) -> None:
    words = ["true", *(["argument"] * 1000), "x" * 100_000]
    assert box.run("--", *words).returncode == 0
    (record,) = box.records()
    kept = record["command"]
    assert isinstance(kept, list)
    assert kept[:3] == words[:3]
    assert kept[-1].endswith("…")
    assert sum(map(len, kept)) < 5000
    assert history.bounded(["make", "test"]) == ["make", "test"]


@pytest.mark.parametrize("gone", ["_json", "_sha1"])
def test_pythons_private_modules_are_optional(gone: str, tmp_path: Path) -> None:
    """Without them the public modules write and read the same record."""
    script = f"""if True:
        import sys
        sys.modules[{gone!r}] = None
        from sandrun import history
        from sandrun.queue.state import sha1
        from sandrun.queue import ticket_text
        record = {{"project": "/p", "reason": "exit", "command": ["é", '"'], "wall": 1.5}}
        history.append(record, "")
        print(history.durations("/p", ticket_text), sha1(b"x")[:8])
    """
    env = installed_env({**os.environ, "XDG_STATE_HOME": str(tmp_path)})
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{ {ticket_text(['é', chr(34)]): 1.5} } 11f6ad8e\n"
