"""`sandrun history`, `stats`, `suggest`, `schema`: past runs, for people and for programs."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sandrun.insight import schemas
from sandrun.model import SandrunError
from tests.harness import SCALE, Box, installed_env, launcher, wait_for

NOW = time.time()


def record(number: int, **fields: object) -> "dict[str, Any]":
    """A record of a run that began `number` hours ago."""
    return {
        "v": 1,
        "id": f"{number:08x}",
        "pid": 7,
        "project": "/p",
        "cwd": "/p/src",
        "command": ["make", "test"],
        "backend": "none",
        "limit": 2 << 30,
        "since": NOW - number * 3600,
        "wait": 1.5,
        "wall": 20.0 + number,
        "exit": 0,
        "reason": "exit",
        "peak": 100 << 20,
        "peak_with_cache": None,
        "stalled": None,
        "cpu": 30.0,
        "processes": 12,
        **fields,
    }


def write(box: Box, *records: "dict[str, Any]") -> Path:
    """Write a history, the oldest run first."""
    file = box.home / "state/sandrun/history.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def validated(box: Box, name: str, *words: str) -> "Any":
    """The JSON that a command prints, which fits the schema of that name."""
    done = box.run(*words)
    assert done.returncode in (0, 1), done.stderr
    answer = json.loads(done.stdout)
    schema = json.loads(box.run("schema", name).stdout)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(answer, schema)
    return answer


def test_real_runs_are_listed_newest_first(box: Box) -> None:
    box.run("--", "true")
    box.run("--", "sh", "-c", "exit 3")
    box.run("--", "sh", "-c", "kill -9 $$")
    lines = box.run("history").stdout.splitlines()
    ids = [str(run["id"]) for run in box.records()]
    assert [line.split()[0] for line in lines] == ids[::-1]
    for line, result in zip(lines, ("signal 9 ", "exit 3 ", "ok "), strict=True):
        assert result in line
    assert lines[2].endswith(" true")


def test_a_line_fits_into_the_terminal(box: Box) -> None:
    odd = ["sh", "-c", "\x1b[2J\n" + "長" * 100]
    write(box, record(1, command=odd), record(2, wall=1e9, wait=1e9, reason="outer-memory", exit=9))
    for width in (80, 120):
        done = box.run("history", env={"COLUMNS": str(width), "LC_ALL": "C.UTF-8"})
        lines = done.stdout.splitlines()
        assert len(lines) == 2
        for line in lines:
            assert line.isprintable()
            assert sum(2 if char == "長" else 1 for char in line) <= width
        assert "…" in lines[1]


def test_without_utf8_the_list_is_still_printed(box: Box) -> None:
    write(box, record(1, command=["echo", "é" * 100]))
    done = box.run("history", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "echo" in done.stdout


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        ([], [1, 2, 3, 4, 5]),
        (["--since", "150m"], [1, 2]),
        (["--since=4h", "--until", "90m"], [2, 3]),
        (["--failed"], [3, 4]),
        (["--command", "make lint"], [5]),
        (["--command", "make", "--failed"], [3, 4]),
        (["--queue", "lab"], [2]),
    ],
)
def test_filters(box: Box, words: "list[str]", numbers: "list[int]") -> None:
    write(
        box,
        record(5, command=["make", "lint"]),
        record(4, exit=2),
        record(3, reason="timeout", exit=124),
        record(2, project="lab"),
        record(1),
    )
    answer = validated(box, "history", "history", "--json", *words)
    assert [int(run["id"], 16) for run in answer["runs"]] == numbers


def test_a_project_selects_its_own_runs(box: Box) -> None:
    box.run("--", "true")
    other = box.root / "other"
    other.mkdir()
    box.run("--", "false", cwd=other)
    assert len(box.run("history").stdout.splitlines()) == 2
    (line,) = box.run("history", "--project", other).stdout.splitlines()
    assert line.endswith("exit 1       false")


@pytest.mark.parametrize("time", ["soon", "2026-13-01", "25:00", "1e400s", "nan", ""])
def test_a_time_that_is_none_is_refused_in_one_line(box: Box, time: str) -> None:
    done = box.run("history", f"--since={time}")
    assert done.returncode == 125
    first, hint = done.stderr.splitlines()
    assert first.startswith(f"sandrun: invalid value for '--since': {time!r}: expected a date")
    assert "hint:" in hint


def test_json_is_whole_and_versioned(box: Box) -> None:
    assert validated(box, "history", "history", "--json") == {"v": 1, "runs": []}
    rows = [record(2, command=["cat", "\udcff", "</script>"]), record(1)]
    write(box, *rows)
    expected = [
        {key: value for key, value in row.items() if key != "v" and value is not None}
        for row in rows[::-1]
    ]
    assert validated(box, "history", "history", "--json")["runs"] == expected


def test_csv_has_no_formulas_and_keeps_odd_texts(box: Box) -> None:
    waited = [{"id": "0badcafe", "command": "x", "seconds": 2.0}]
    write(box, record(1, command=["=cmd|'/C calc'!A0"], project='@a,"b"\nc', waited_for=waited))
    done = box.run("history", "--csv")
    (row,) = csv.DictReader(done.stdout.splitlines())
    assert row["command"].startswith("'=cmd") or row["command"].startswith("''=cmd")
    assert row["project"] == '\'@a,"b"\\nc'
    assert row["waited_for"] == "0badcafe"
    assert row["wait"] == "1.5"
    assert row["peak_with_cache"] == ""
    assert row["since"][:4] == time.strftime("%Y")


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_a_closed_output_is_one_line(box: Box, form: str) -> None:
    write(box, record(1))
    done = box.run("history", form, argv=["sh", "-c", '"$@" >&-', "sh", *launcher()])
    assert done.returncode == 125
    assert done.stderr == "sandrun: cannot write the answer: Bad file descriptor\n"


def test_json_and_csv_exclude_each_other(box: Box) -> None:
    done = box.run("history", "--json", "--csv")
    assert done.returncode == 125
    assert done.stderr.startswith("sandrun: --json and --csv exclude each other\n")


def test_a_reader_that_stops_is_no_error(box: Box) -> None:
    write(box, *(record(number) for number in range(20_000, 0, -1)))
    for words in (["history"], ["history", "--json"], ["history", "--csv"]):
        process = box.start(*words)
        assert process.stdout
        assert process.stdout.readline()
        process.stdout.close()
        wait_for(lambda process=process: process.poll() is not None, 20)  # type: ignore[misc]
        assert box.heard(process) == ""


@pytest.mark.parametrize(
    ("env", "colored"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), (None, False)],
)
def test_colour_only_on_a_terminal_that_wants_it(
    box: Box, env: "dict[str, str] | None", colored: bool
) -> None:
    write(box, record(1, exit=2))
    if env is None:
        text = box.run("history", env={"TERM": "xterm"}).stdout
        assert "started" not in text
    else:
        more = {**box.env, "TERM": "xterm", **env}
        command = " ".join([*launcher(), "history"])
        done = subprocess.run(
            ["script", "-qec", command, "/dev/null"],
            env=more,
            cwd=box.project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        text = done.stdout
        assert "started" in text, "a terminal shows what the columns are"
    assert ("\x1b[31m" in text) is colored
    assert "exit 2" in text


def test_stats(box: Box) -> None:
    waited = [{"id": "0badcafe", "command": "make lint", "seconds": 3600.0}]
    rows = [record(number, wall=float(number), wait=0.0) for number in range(100, 0, -1)]
    rows[0] |= {"exit": 2}
    rows[1] |= {"reason": "memory", "exit": 137, "wait": 3600.0, "waited_for": waited}
    rows[2] |= {"peak": None}
    write(box, *rows, record(0, command=["true"], wall=0.5))
    answer = validated(box, "stats", "stats", "--json")
    assert (answer["runs"], answer["failed"]) == (101, 2)
    make = answer["commands"][0]
    assert make["command"] == ["make", "test"]
    assert make["failures"] == {"exit 2": 1, "memory": 1}
    assert make["wall"] == {"runs": 100, "p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert make["peak"]["runs"] == 99
    assert answer["waited_for"] == [
        {"project": "/p", "command": ["make", "test"], "for": "make lint", "runs": 1}
        | {"seconds": 3600.0}
    ]
    text = box.run("stats").stdout
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "101 runs of 2 commands" in text
    assert "2 failed: exit 2 1, memory limit 1" in text
    assert "make test for make lint" in text


def test_stats_of_nothing_and_of_a_filter(box: Box) -> None:
    assert box.run("stats").stdout == "no runs\n"
    assert validated(box, "stats", "stats", "--json")["runs"] == 0
    write(box, record(2), record(1, command=["true"], exit=1))
    assert validated(box, "stats", "stats", "--json", "--failed")["runs"] == 1
    assert "1 run of 1 command" in box.run("stats", "--since", "90m").stdout


def test_stats_in_two_processes_are_those_of_one(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandrun.insight import statistics

    rows = [record(number, command=["make", str(number % 7)]) for number in range(5000)]
    file = write(box, *rows)
    file.write_bytes(b"torn {\n" + file.read_bytes())
    monkeypatch.setenv("XDG_STATE_HOME", box.env["XDG_STATE_HOME"])
    monkeypatch.setenv("SANDRUN_STATE_DIR", box.env["SANDRUN_STATE_DIR"])
    found = []
    for number in (1, 2, 5):
        monkeypatch.setattr(statistics, "_processes", lambda path, number=number: number)
        total = statistics.collect()
        found.append(
            {key: (g.runs, [statistics.summary(g.known(m)) for m in statistics.MEASURES])
             for key, g in total.groups.items()}
        )  # fmt: skip
        assert total.skipped == 1
        assert sum(group.runs for group in total.groups.values()) == 5000
    assert found[0] == found[1] == found[2]


KILLED = """
import os, time
from sandrun.insight import statistics

parent = os.getpid()

def of_part(*_):
    os.write(1, b"part\\n")
    for _ in range(6000):
        if os.getppid() != parent:
            break
        time.sleep(0.01)
    found = statistics.Statistics()
    found.group(("/p", ("x" * 1_000_000,)))  # more than a pipe holds
    return found

statistics._processes = lambda path: 3
statistics._of_part = of_part
statistics.collect()
"""


def test_stats_that_are_killed_leave_no_process(box: Box) -> None:
    write(box, *(record(number) for number in range(500)))
    env = installed_env({**os.environ, **box.env})
    argv = [sys.executable, "-P", "-c", KILLED]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE) as run:
        assert run.stdout
        assert [run.stdout.readline() for _ in range(3)] == [b"part\n"] * 3
        run.kill()
        assert run.communicate(timeout=60 * SCALE)[0] == b""  # none of them has it open any more


def test_stats_where_no_process_can_be_started(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandrun.insight import statistics

    write(box, *(record(number) for number in range(500)))
    monkeypatch.setenv("XDG_STATE_HOME", box.env["XDG_STATE_HOME"])
    monkeypatch.setenv("SANDRUN_STATE_DIR", box.env["SANDRUN_STATE_DIR"])
    monkeypatch.setattr(statistics, "_processes", lambda path: 3)

    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    assert sum(group.runs for group in statistics.collect().groups.values()) == 500


def test_stats_leave_no_process_behind(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    from sandrun.insight import statistics

    write(box, *(record(number) for number in range(500)))
    monkeypatch.setenv("XDG_STATE_HOME", box.env["XDG_STATE_HOME"])
    monkeypatch.setenv("SANDRUN_STATE_DIR", box.env["SANDRUN_STATE_DIR"])
    monkeypatch.setattr(statistics, "_processes", lambda path: 3)

    def one_is_killed(path: str, start: int, *_: object) -> None:
        if start == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    monkeypatch.setattr(statistics, "_of_part", one_is_killed)
    with pytest.raises(SandrunError, match="was killed"):
        statistics.collect()
    wait_for(lambda: not multiprocessing.active_children(), 20)


def test_stats_tell_a_bounded_number_of_commands_apart(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sandrun.insight import statistics

    write(box, *(record(number, command=["make", str(number)]) for number in range(50)))
    monkeypatch.setenv("XDG_STATE_HOME", box.env["XDG_STATE_HOME"])
    monkeypatch.setenv("SANDRUN_STATE_DIR", box.env["SANDRUN_STATE_DIR"])
    monkeypatch.setattr(statistics, "MOST_COMMANDS", 10)
    groups = statistics.collect().groups
    assert len(groups) == 11
    assert groups[statistics.OTHERS].runs == 40


def test_every_schema_is_one_and_other_outputs_fit_theirs(box: Box) -> None:
    names = box.run("schema").stdout.split()
    assert set(names) >= {"doctor", "history", "stats", "status", "suggest"}
    for name in names:
        schema = json.loads(box.run("schema", name).stdout)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["properties"]["v"] == {"const": 1}
    box.hold("one")
    box.queue_up("two")
    answer = validated(box, "status", "status", "--json")
    assert len(answer["queues"][0]["runs"]) == 2
    validated(box, "doctor", "doctor", "--json")
    box.let_all(["one", "two"])
    assert names == schemas.names()


def test_an_unknown_schema(box: Box) -> None:
    done = box.run("schema", "hhistory")
    assert done.returncode == 125
    first, hint = done.stderr.splitlines()
    assert first == "sandrun: no such schema: hhistory"
    assert hint == "sandrun: hint: did you mean: history"


@pytest.mark.parametrize("kind", ["fifo", "directory", "garbage", "loop"])
@pytest.mark.parametrize("command", ["history", "stats", "suggest"])
def test_a_bad_history_is_named_in_one_line(box: Box, kind: str, command: str) -> None:
    file = write(box)
    if kind == "garbage":
        file.write_bytes(os.urandom(100_000))
    else:
        file.unlink()
        {"fifo": os.mkfifo, "directory": os.mkdir, "loop": lambda f: f.symlink_to(f)}[kind](file)
    done = box.run(command)
    assert done.returncode == 0
    assert str(file) in done.stderr
    assert sum("hint:" not in line for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
