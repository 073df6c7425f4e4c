"""The reader of the history: whatever the file contains or is, what can be read is yielded."""

import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandrun import history
from sandrun.insight import records
from sandrun.types import Record
from tests.unit.test_history import GARBAGE

GOOD = {
    "v": 1,
    "id": "0badcafe",
    "pid": 7,
    "project": "/p",
    "cwd": "/p",
    "command": ["make", "a b"],
    "backend": "none",
    "limit": 1 << 31,
    "since": 1000.5,
    "wait": 0.25,
    "wall": 2.5,
    "exit": 0,
    "reason": "exit",
    "peak": 1 << 20,
    "peak_with_cache": None,
    "stalled": None,
    "cpu": 1.5,
}


def line(number: int, **fields: object) -> bytes:
    record = {**GOOD, "id": f"{number:08x}", "since": 1000.0 + number, **fields}
    return history.encode(record).encode() + b"\n"


@pytest.fixture(params=["msgspec", "json"])
def file(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> "Iterator[Path]":
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("SANDRUN_STATE_DIR", str(tmp_path / "queues"))
    (tmp_path / "sandrun").mkdir()
    if request.param == "json":
        monkeypatch.setattr(records, "decode", records._slow)
    yield Path(history.path())


def numbers(found: "Iterator[Record]") -> "list[int]":
    return [int(record["id"], 16) for record in found]


def test_both_orders(file: Path) -> None:
    file.write_bytes(b"".join(map(line, range(5000))))  # several blocks
    assert numbers(records.oldest_first()) == list(range(5000))
    assert numbers(records.newest_first()) == list(range(5000))[::-1]


def test_a_record_is_the_same_in_both_orders_and_from_both_parsers(file: Path) -> None:
    file.write_text(json.dumps(GOOD) + "\n")
    expected = {key: value for key, value in GOOD.items() if key != "v" and value is not None}
    for found in (records.oldest_first(), records.newest_first()):
        (record,) = found
        assert {key: value for key, value in record.items() if value is not None} == expected


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_skipped(file: Path, name: str) -> None:
    file.write_bytes(b"\n".join((line(1), GARBAGE[name], line(2), GARBAGE[name])))
    for found in (records.oldest_first(), records.newest_first()):
        assert {1, 2} <= {int(record.get("id", "0"), 16) for record in found}


IMPOSSIBLE = ("-1", "1e999", "NaN", "-Infinity", '"long"', "true", "[1]", "9" * 400)


@pytest.mark.parametrize("value", IMPOSSIBLE)
@pytest.mark.parametrize("key", ["since", "wall", "peak"])
def test_a_value_that_no_run_can_have_is_left_out(file: Path, key: str, value: str) -> None:
    text = json.dumps(GOOD).replace(f'"{key}": {GOOD[key]}', f'"{key}": {value}')
    file.write_text(text + "\n")
    (record,) = records.newest_first()
    assert key not in record
    assert record["id"] == GOOD["id"]


@pytest.mark.parametrize("value", IMPOSSIBLE)
def test_a_wait_that_no_run_can_have_is_left_out(file: Path, value: str) -> None:
    held = '[{"id": "1", "command": "c", "seconds": %s}]'
    file.write_text(f'{json.dumps(GOOD)[:-1]}, "waited_for": {held % value}}}\n')
    (record,) = records.newest_first()
    assert "waited_for" not in record
    file.write_text(f'{json.dumps(GOOD)[:-1]}, "waited_for": {held % 5}}}\n')
    (record,) = records.newest_first()
    assert record["waited_for"][0]["seconds"] == 5


def test_skipped_lines_are_counted_in_one_warning(
    file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(b"\n".join((line(1), b"\0" * 100, b"torn {", line(2), line(3)[:50])))
    assert numbers(records.newest_first()) == [2, 1]
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith(f"sandrun: {file}: 3 lines are no records")


def test_a_line_of_a_hundred_megabytes_is_not_held_in_memory(file: Path) -> None:
    with file.open("wb") as stream:
        stream.write(line(1))
        stream.truncate(100 << 20)
        stream.seek(0, os.SEEK_END)
        stream.write(b"\n" + line(2))
    tracemalloc.start()
    try:
        assert numbers(records.oldest_first()) == [1, 2]
        assert numbers(records.newest_first()) == [2, 1]
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_lines_at_the_edges_of_blocks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"".join(map(line, range(6)))
    file.write_bytes(content)
    for size in range(1, 2 * len(line(0))):
        monkeypatch.setattr(records, "_BLOCK", size)
        assert numbers(records.oldest_first()) == [0, 1, 2, 3, 4, 5], size
        assert numbers(records.newest_first()) == [5, 4, 3, 2, 1, 0], size


def test_filters(file: Path) -> None:
    file.write_bytes(
        line(0)
        + line(1, project="/q")
        + line(2, exit=2)
        + line(3, reason="memory", exit=137)
        + line(4, command=["make", "a", "b"])
    )
    assert numbers(records.oldest_first(project="/q")) == [1]
    assert numbers(records.oldest_first(failed=True)) == [2, 3]
    assert numbers(records.oldest_first(command="'a b'")) == [0, 1, 2, 3]
    assert numbers(records.oldest_first(command="a b")) == [0, 1, 2, 3, 4]
    assert numbers(records.newest_first(since=1001.0, until=1003.0)) == [2, 1]


@pytest.mark.parametrize("project", ["/p/a", "/p/é", '/p/"q"', "/p\\n", "lab", "/p/\udcff"])
def test_a_project_is_found_however_its_name_is_written(file: Path, project: str) -> None:
    forms = [
        json.dumps({**GOOD, "project": project}),
        json.dumps({**GOOD, "project": project}, separators=(",", ":")),
        json.dumps({**GOOD, "project": project}).replace("/", "\\/"),
        json.dumps({**GOOD, "command": ['"project": "/x"'], "project": project}),
        json.dumps({**GOOD, "project": project + "b"}),
        json.dumps({**GOOD, "project": "/other", "command": ["x", project]}),
    ]
    if "\udcff" not in project:
        forms.append(json.dumps({**GOOD, "project": project}, ensure_ascii=False))
    file.write_text("\n".join(forms))
    expected = 5 if len(forms) == 7 else 4
    assert len(list(records.newest_first(project=project))) == expected


def test_a_clock_that_went_backwards_hides_no_run(file: Path) -> None:
    """Runs after the step, and a run at 1970 of a machine without a battery, in the middle."""
    since = [5000.0, 6000.0, 0.5, 2000.0, 2100.0, 7000.0]
    file.write_bytes(b"".join(line(at, since=value) for at, value in enumerate(since)))
    assert numbers(records.newest_first(since=5000.0)) == [5, 1, 0]
    assert numbers(records.newest_first(until=5000.0)) == [4, 3, 2]


def test_a_time_in_another_form_is_decoded(file: Path) -> None:
    compact = json.dumps({**GOOD, "since": 5000}, separators=(",", ":"))
    in_a_command = {**GOOD, "command": ['"since": 7,'], "since": 5000}
    file.write_text(f"{compact}\n{json.dumps(in_a_command)}\n")
    assert len(list(records.newest_first(since=4000.0))) == 2
    assert not list(records.newest_first(since=6000.0))


def test_a_file_that_grows_or_is_replaced_is_read_as_it_was(file: Path) -> None:
    file.write_bytes(b"".join(map(line, range(3000))))
    for found in (records.oldest_first(), records.newest_first()):
        first = int(next(found)["id"], 16)
        with file.open("ab") as stream:
            stream.write(line(9999))
        file.rename(file.with_suffix(".old"))
        file.write_bytes(line(8888))
        seen = {first, *numbers(found)}
        assert seen == set(range(3000))
        file.write_bytes(b"".join(map(line, range(3000))))


def test_a_file_that_is_cut_while_it_is_read_is_survived(file: Path) -> None:
    for found_first in (records.oldest_first, records.newest_first):
        file.write_bytes(b"".join(map(line, range(5000))))
        found = found_first()
        first = int(next(found)["id"], 16)
        os.truncate(file, 1000)
        assert {first, *numbers(found)} <= set(range(5000))


KINDS = ("FIFO", "directory", "device", "loop", *(["unreadable"] if os.geteuid() else []))
"""Root may read every file."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_history_that_is_no_readable_file_is_named_in_one_line(
    file: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """And what was recorded in the state directories meanwhile is yielded."""
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "directory":
        file.mkdir()
    elif kind == "unreadable":
        file.touch(0)
    else:
        file.symlink_to(file if kind == "loop" else "/dev/zero")
    state = file.parent.parent / "queues" / f"seq-exec-0badcafe-{os.geteuid()}"
    state.mkdir(parents=True, mode=0o700)
    (state / "history.jsonl").write_bytes(line(7))
    assert numbers(records.newest_first()) == [7]
    first, hint = capfd.readouterr().err.splitlines()
    assert str(file) in first
    assert "cannot be read" in first
    assert "hint: ls -ld" in hint


def test_several_files_are_merged_by_the_end_of_the_runs(file: Path) -> None:
    state = file.parent.parent / "queues" / f"seq-exec-0badcafe-{os.geteuid()}"
    state.mkdir(parents=True, mode=0o700)
    file.write_bytes(line(1) + line(4))
    (state / "history.jsonl").write_bytes(line(2) + line(3) + line(5))
    assert numbers(records.oldest_first()) == [1, 2, 3, 4, 5]
    assert numbers(records.newest_first()) == [5, 4, 3, 2, 1]


def test_a_run_is_found_by_its_id_or_similar_ids_are_named(file: Path) -> None:
    file.write_bytes(b"".join(map(line, range(0x1000, 0x2000))))
    found = records.find("00001abc")
    assert found
    assert found["since"] == 1000.0 + 0x1ABC
    assert records.find("00003000") is None
    assert records.find("") is None
    assert records.nearest("0000lab0")
    assert records.nearest("00001ab")[0].startswith("00001ab")
    assert records.nearest("") == []


def test_a_name_that_is_not_utf8_survives(file: Path) -> None:
    file.write_bytes(line(1, command=["cat", os.fsdecode(b"\xff")]))
    assert [record["command"] for record in records.newest_first()] == [["cat", "\udcff"]]


def test_no_history_is_no_runs(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not list(records.newest_first())
    assert records.find("0badcafe") is None
    assert not capfd.readouterr().err
