"""`--json-report FILE`: written at every end, as a whole, and in the form that the schema has."""

import compileall
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.harness import PACKAGE, ROOT, Box, launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = json.loads((ROOT / "sandrun/insight/schemas/json-report.json").read_text())
HOG = "kept = [bytearray(b'x') * (1 << 20) for step in range(300)]"


def report(box: Box, code: int, *words: str) -> "dict[str, Any]":
    """The report of a run that exits with `code`."""
    file = box.project / "report.json"
    file.unlink(missing_ok=True)
    done = box.run("--json-report", "report.json", *words)
    assert done.returncode == code, done
    assert [path.name for path in box.project.glob("report.json*")] == ["report.json"]
    return read(file)


def read(file: Path) -> "dict[str, Any]":
    found: dict[str, Any] = json.loads(file.read_text())
    jsonschema.validate(found, SCHEMA)
    return found


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["--", "true"], 0, "exit"),
        (["--", "sh", "-c", "exit 3"], 3, "exit"),
        (["--", "sh", "-c", "kill -SEGV $$"], 139, "signal"),
        (["-t", "100ms", "--", "sleep", "60"], 124, "timeout"),
        (["--", "/nonesuch"], 127, "not-started"),
    ],
)
def test_every_end_of_a_run_is_reported(
    box: Box, words: "list[str]", code: int, reason: str
) -> None:
    found = report(box, code, *words)
    assert (found["exit"], found["reason"], found["error"]) == (code, reason, None)
    assert found["id"] == found["run"]["id"] == box.records()[-1]["id"]
    assert found["run"]["wall"] >= 0


def test_without_a_run_the_report_says_why(box: Box) -> None:
    found = report(box, 125, "--project", "/nonesuch", "--", "true")
    assert found["error"]["text"] == "--project /nonesuch: no such directory"
    assert (found["id"], found["run"], found["exit"]) == ("", None, 125)
    box.hold("one")
    found = report(box, 75, "--no-wait", "--", "true")
    assert found["error"]["text"] == "not our turn, and --no-wait"
    assert len(found["id"]) == 8
    found = report(box, 75, "--wait-timeout", "100ms", "--", "true")
    assert found["exit"] == 75


def test_a_signal_during_the_wait_is_reported(box: Box) -> None:
    box.hold("one")
    waiter = box.queue_up("two", "--json-report", "report.json")
    waiter.send_signal(signal.SIGTERM)
    assert box.finish(waiter).returncode == 143
    found = read(box.project / "report.json")
    assert (found["exit"], found["result"]) == (143, "a signal ended the wait")


def test_an_interrupted_run_is_reported_before_the_death_by_its_signal(box: Box) -> None:
    words = ["--json-report", "report.json", "--", "sh", "-c", "echo up; exec sleep 1000"]
    run = box.start(*words, own_group=True)
    assert run.stdout
    assert run.stdout.readline() == "up\n"
    os.killpg(run.pid, signal.SIGTERM)
    box.finish(run)
    assert read(box.project / "report.json")["reason"] == "signal"


@pytest.mark.parametrize("place", ["rlimit", "auto"])
def test_a_run_at_its_limit_is_reported_with_its_events(
    make_box: "Callable[[str], Box]", place: str
) -> None:
    box = make_box(place)
    found = report(box, 137, "-m", "50M", "--", sys.executable, "-c", HOG)
    assert found["result"] == "ended at its memory limit of 50.0 MiB: exit 137"
    assert [event["whose"] for event in found["events"] if event["event"] == "limit"] == ["own"]
    assert found["suggestion"]["options"] == "--memory 100M"


def test_a_long_run_is_reported_in_short(box: Box) -> None:
    """As many points as a file of samples has at most."""
    from sandrun.insight import run_log, samples

    points = [samples.Point(float(t), t % 100, t * 2.0, t, 0.0) for t in range(600)]
    rows = run_log.points_json(points, 60)["points"]
    assert len(rows) == 60
    assert rows[0] == [9.0, 9, 18.0, 9, 0.0]
    assert rows[-1] == [599.0, 99, 1198.0, 599, 0.0]


def test_the_file_is_that_of_the_start_wherever_the_command_goes(box: Box) -> None:
    (box.project / "below").mkdir()
    box.run("--json-report", "a.json", "--", "mv", "below", "above", cwd=box.project / "below")
    box.run("--json-report", "below/b.json", "--", "true")
    assert not (box.project / "a.json").exists()


@pytest.mark.parametrize("file", ["/dev/null", "nowhere/x", "fifo", "."])
def test_what_is_no_file_is_refused_before_the_run(box: Box, file: str) -> None:
    os.mkfifo(box.project / "fifo")
    done = box.run("--json-report", file, "--", "touch", "ran")
    assert done.returncode == 125
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"sandrun: --json-report {file}: ")
    assert not (box.project / "ran").exists()
    assert Path("/dev/null").is_char_device()


def test_a_link_is_followed_and_an_old_report_replaced(box: Box) -> None:
    (box.project / "real.json").write_text("old")
    (box.project / "link.json").symlink_to("real.json")
    box.run("--json-report", "link.json", "--", "true")
    assert (box.project / "link.json").is_symlink()
    assert read(box.project / "real.json")["exit"] == 0


def test_a_file_that_cannot_be_written_at_the_end_is_one_line(box: Box) -> None:
    (box.project / "there").mkdir()
    done = box.run("--json-report", "there/x", "--", "sh", "-c", "rmdir there; exit 3")
    assert done.returncode == 3
    assert done.stderr.startswith("sandrun: cannot write ")
    assert len(done.stderr.splitlines()) == 1


def test_a_run_inside_has_its_own_report(box: Box) -> None:
    inner = [*launcher(), "--json-report", "inner.json", "--", "sh", "-c", "exit 4"]
    box.run("--json-report", "outer.json", "--", "sh", "-c", '"$@"; exit 5', "x", *inner)
    assert read(box.project / "inner.json")["exit"] == 4
    assert read(box.project / "outer.json")["exit"] == 5


def test_the_package_may_be_gone_at_the_end(box: Box) -> None:
    """As after an upgrade during the run: what writes the report is held open."""
    copy = box.root / "copy"
    fresh = shutil.ignore_patterns("__pycache__")  # a checkout's may be of older sources
    shutil.copytree(PACKAGE / "sandrun", copy / "sandrun", ignore=fresh)
    compileall.compile_dir(copy, quiet=1)  # as an installer does
    code = f"import sys; sys.path.insert(0, {str(copy)!r}); from sandrun.cli import main; main()"
    words = ["--json-report", "report.json", "--", "rm", "-r", str(copy)]
    # -B: Python would write compiled files into the directory that rm is removing.
    done = box.run(*words, argv=[sys.executable, "-BP", "-c", code])
    assert (done.returncode, done.stderr) == (0, "")
    assert read(box.project / "report.json")["exit"] == 0
