"""`sandrun metrics`: what Prometheus' own tools accept, totals that never go down, and the file for
the textfile collector."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import PACKAGE, Box, wait_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def scrape(text: str) -> "dict[tuple[str, str, str], float]":
    """The values by name, project and reason (or bound)."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.type != "unknown", family.name
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("user")
            key = sample.name, labels.get("project", ""), labels.get("reason", labels.get("le", ""))
            assert key not in found and sample.timestamp is None
            found[key] = sample.value
    return found


def metrics(box: Box, *words: str) -> "dict[tuple[str, str, str], float]":
    done = box.run("metrics", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return scrape(done.stdout)


def record(box: Box, number: int, project: str = "/p", **more: object) -> None:
    """Append a record to the history."""
    home = box.home / "state/sandrun"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    fields = {"v": 1, "id": f"{number:08x}", "project": project, "since": 1e9 + number}
    fields |= {"wall": 2.0, "wait": 20.0, "exit": 0, "reason": "exit", "cpu": 3.0, "peak": 1 << 20}
    with open(home / "history.jsonl", "a") as file:
        file.write(json.dumps(fields | {"limit": 1 << 30, "command": ["secret"]} | more) + "\n")


def test_runs_limits_and_times_are_counted(box: Box) -> None:
    project = str(box.project)
    box.run("--", "true")
    box.run("-t", "100ms", "--", "sleep", "60")
    box.run("--", "sh", "-c", "kill -KILL $$")
    found = metrics(box)
    assert found["sandrun_runs_total", project, "exit"] == 1
    assert found["sandrun_runs_total", project, "timeout"] == 1
    assert found["sandrun_limit_hits_total", project, "timeout"] == 1
    assert found["sandrun_limit_hits_total", project, "memory"] == 0
    assert found["sandrun_kills_total", project, "signal"] == 1
    assert found["sandrun_wall_seconds_count", project, ""] == 3
    assert found["sandrun_wall_seconds_bucket", project, "+Inf"] == 3
    assert found["sandrun_limit_bytes", project, ""] == 2 << 30
    assert found["sandrun_pool_bytes", "", ""] > 0


def test_the_histogram_is_cumulative(box: Box) -> None:
    for number, wait in enumerate((0.05, 5.0, 50.0, 1e6)):
        record(box, number, wait=wait)
    found = metrics(box)
    bounds = ("0.1", "1.0", "10.0", "60.0", "300.0", "+Inf")
    counts = [found["sandrun_wait_seconds_bucket", "/p", bound] for bound in bounds]
    assert counts == [1, 1, 2, 3, 3, 4]
    assert found["sandrun_wait_seconds_sum", "/p", ""] == 1000055.05


def test_the_queue_and_the_pool_are_shown_as_they_are(
    make_box: "Callable[[str], Box]",
) -> None:
    box = make_box("rlimit")  # `none` has no limit to reserve memory for
    box.run("-m", "64M", "--", "true")
    box.hold("one", "-m", "64M", "--pool", "128M")
    box.queue_up("two", "--pool", "128M")
    found = metrics(box, "--pool", "128M")
    assert found["sandrun_queue_running", str(box.project), ""] == 1
    assert found["sandrun_queue_waiting", str(box.project), ""] == 1
    assert found["sandrun_pool_bytes", "", ""] == 128 << 20
    assert found["sandrun_pool_reserved_bytes", "", ""] == 64 << 20


def test_prometheus_own_parsers_accept_it(box: Box) -> None:
    box.run("--", "true")
    record(box, 1, project='/odd "name"\\\n{}')
    text = box.run("metrics").stdout
    assert scrape(text)["sandrun_runs_total", '/odd "name"\\\n{}', "exit"] == 1
    assert "secret" not in text
    done = box.run("metrics", "--openmetrics")
    parsed = openmetrics_families(done.stdout)  # type: ignore[no-untyped-call]
    families = {family.name for family in parsed}
    assert {"sandrun_runs", "sandrun_wait_seconds", "sandrun_pool_bytes"} <= families


def test_a_project_of_any_name_is_shown_in_printable_characters(box: Box) -> None:
    for number, name in enumerate(("/\x1b[2Jred", "/caf\udce9", "/\ud800", "q\x9b31m")):
        record(box, number, project=name)
    record(box, 9, id="\udce9\ud800")  # no id of ours
    for _ in range(2):
        found = metrics(box)
        shown = {key[1] for key in found if key[0] == "sandrun_runs_total"}
        assert shown == {"/\\x1b[2Jred", "/caf\\xe9", "/\\ud800", "q\\x9b31m"}
    odd = box.root / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    box.run("-C", odd, "--", "true")
    assert metrics(box)["sandrun_runs_total", f"{box.root}/caf\\xe9", "exit"] == 1


@pytest.mark.parametrize("kind", ["FIFO", "directory"])
def test_a_history_that_is_no_file_is_one_line(box: Box, kind: str) -> None:
    box.run("--", "true")
    assert metrics(box)
    history(box).unlink()
    (os.mkfifo if kind == "FIFO" else os.mkdir)(history(box))
    for words in (["metrics"], ["history", "prune"], ["log", "a1111111"]):
        done = box.run(*words)
        assert done.returncode == (1 if words[0] == "log" else 0)
        lines = [line for line in done.stderr.splitlines() if str(history(box)) in line]
        assert lines[0] == f"sandrun: the history {history(box)} cannot be read: it is a {kind}"
        assert len(lines) == 2 and lines[1].startswith("sandrun: hint: ls -ld "), done.stderr


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs promtool")
def test_promtool_finds_nothing_to_improve(box: Box) -> None:
    box.run("--", "true")
    done = subprocess.run(
        ["promtool", "check", "metrics"],
        input=box.run("metrics").stdout,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def history(box: Box) -> Path:
    return box.home / "state/sandrun/history.jsonl"


def runs(box: Box, project: str = "/p") -> float:
    return metrics(box)["sandrun_runs_total", project, "exit"]


def test_totals_do_not_go_down_when_the_history_is_pruned(box: Box) -> None:
    for number in range(10):
        record(box, number)
    assert runs(box) == 10
    lines = history(box).read_bytes().splitlines(keepends=True)
    history(box).write_bytes(b"".join(lines[7:]))  # the oldest are pruned
    assert runs(box) == 10
    record(box, 11)
    assert runs(box) == 11
    record(box, 12)
    done = box.run("history", "prune")  # all are more than 90 days old; one is not counted yet
    assert (done.returncode, done.stderr) == (0, "")
    assert not history(box).read_bytes()
    assert runs(box) == 12
    record(box, 13)
    assert runs(box) == 13
    record(box, 5, since=1e9 - 50)  # older than what was counted, but appended after it
    assert runs(box) == 14
    history(box).write_bytes(b"")
    record(box, 14)
    record(box, 3)  # an old one that was counted, in a new file
    assert runs(box) == 15
    history(box).unlink()
    assert runs(box) == 15


def test_garbage_and_a_line_that_is_being_written_count_when_they_are_records(box: Box) -> None:
    record(box, 1)
    whole = history(box).read_bytes()
    record(box, 2)
    rest = history(box).read_bytes()[len(whole) :]
    history(box).write_bytes(whole + rest[:40])
    assert runs(box) == 1
    history(box).write_bytes(whole + rest)
    assert runs(box) == 2
    with open(history(box), "ab") as file:
        file.write(b"\x00\xff" * 100_000 + b"\n{}\n[]\n")
    record(box, 3, reason="no reason at all")
    assert metrics(box)["sandrun_runs_total", "/p", "lost"] == 1


def test_totals_that_were_damaged_are_counted_again(box: Box) -> None:
    record(box, 1)
    assert runs(box) == 1
    totals = box.home / "state/sandrun/totals.json"
    assert stat.S_IMODE(totals.stat().st_mode) == 0o600
    totals.unlink()
    os.mkfifo(totals)
    assert runs(box) == 1
    for damage in ("", "[]", "{", '{"v": 1}', '{"v": 1, "projects": {"x": 1}, "files": {}}'):
        totals.write_text(damage)
        assert runs(box) == 1, damage


def test_the_number_of_projects_is_bounded(box: Box) -> None:
    for number in range(70):
        record(box, number, project=f"/p{number}")
    found = metrics(box)
    projects = {project for name, project, _ in found if name == "sandrun_runs_total"}
    assert len(projects) == 51
    assert found["sandrun_runs_total", "(other)", "exit"] == 20


def test_the_file_is_replaced_at_once_and_readable(box: Box) -> None:
    file = box.root / "sandrun.prom"
    box.run("--", "true")
    done = box.run("metrics", "--textfile", str(file), argv=None)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before = file.stat()
    assert stat.S_IMODE(before.st_mode) == 0o644
    box.run("metrics", "--textfile", str(file))
    assert file.stat().st_ino != before.st_ino
    assert scrape(file.read_text())["sandrun_runs_total", str(box.project), "exit"] == 1
    assert [path.name for path in box.root.glob("*.prom*")] == ["sandrun.prom"]


def test_a_file_that_cannot_be_written_is_one_line(box: Box) -> None:
    for file in ("/nonesuch/x.prom", str(box.root)):
        done = box.run("metrics", "--textfile", file)
        assert done.returncode == 125
        assert len([line for line in done.stderr.splitlines() if "hint" not in line]) <= 2, done
        assert "Traceback" not in done.stderr
    assert "only files named *.prom" in box.run("metrics", "--textfile", box.root / "x").stderr
    assert box.run("metrics", "--openmetrics", "--textfile", "x.prom").returncode == 125


def test_only_a_regular_file_is_replaced(box: Box) -> None:
    """A device that became a file would be lost to the whole system."""
    fifo, folder = box.root / "fifo.prom", box.root / "folder.prom"
    os.mkfifo(fifo)
    folder.mkdir()
    for file, why in ((fifo, "it is not a regular file"), (folder, "it is a directory")):
        done = box.run("metrics", "--textfile", file)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr == f"sandrun: cannot write {file}: {why}\n"
    done = box.run("--metrics-textfile", fifo, "--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert f"sandrun: cannot write {fifo}: it is not a regular file" in done.stderr
    assert fifo.is_fifo()
    report = box.root / "report.json"
    done = box.run("--json-report", report, "--", "mkfifo", report)
    assert done.returncode == 0 and report.is_fifo()
    assert f"sandrun: cannot write {report}: it is not a regular file" in done.stderr
    assert "cannot write a file without a name" in box.run("metrics", "--textfile", "").stderr


def test_a_home_that_cannot_be_written_is_one_line(box: Box) -> None:
    file = box.root / "file"
    file.touch()
    done = box.run("metrics", env={"XDG_STATE_HOME": str(file)})
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr == f"sandrun: cannot write {file}/sandrun: Not a directory\n"


def test_each_run_refreshes_the_file_if_that_is_set(box: Box) -> None:
    file = box.root / "sandrun.prom"
    (box.home / "config/sandrun").mkdir(parents=True)
    (box.home / "config/sandrun/config.toml").write_text(f'metrics_textfile = "{file}"\n')
    for number in (1, 2):
        assert box.run("--", "true").returncode == 0
        found = scrape(file.read_text())
        assert found["sandrun_runs_total", str(box.project), "exit"] == number
        assert found["sandrun_queue_running", str(box.project), ""] == 0
    file.unlink()
    (box.home / "config/sandrun/config.toml").write_text('metrics_textfile = "/nonesuch/x.prom"\n')
    done = box.run("--", "sh", "-c", "exit 3")
    assert done.returncode == 3
    assert "sandrun: cannot write /nonesuch/x.prom" in done.stderr


def test_without_the_library_one_line_says_how_to_install_it(box: Box) -> None:
    start = "import sys; sys.modules['prometheus_client'] = None; sys.path.insert(0, {!r}); "
    start += "from sandrun.cli import main; main()"
    argv = [sys.executable, "-P", "-c", start.format(str(PACKAGE))]
    done = box.run("metrics", argv=argv)
    assert done.returncode == 125
    text, hint = done.stderr.splitlines()
    assert "sandrun metrics needs the Python package prometheus_client" in text
    assert all(f"{tool} " in hint for tool in ("pipx inject", "uv tool install", "pip install"))
    done = box.run("--metrics-textfile", "/tmp/x.prom", "--", "sh", "-c", "exit 3", argv=argv)
    assert done.returncode == 3
    assert "metrics_textfile needs the Python package prometheus_client" in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_a_lock_that_is_held_on_the_totals_is_one_line(box: Box) -> None:
    """The end of the run waits two seconds for it; the next run is not held up by that."""
    import fcntl

    record(box, 1)
    lock = box.home / "state/sandrun/totals.json.lock"
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        words = ["--metrics-textfile", str(box.root / "x.prom")]
        first = box.start(*words, "--", *box.job("one"))
        box.begun("one")
        second = box.queue_up("two")
        box.let("one")
        box.begun("two")
        box.let("two")
        box.finish(second)
        done = box.finish(first)
    assert done.returncode == 0
    assert "another sandrun is updating the totals" in done.stderr


def test_what_root_makes_in_a_users_home_is_the_users(box: Box) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: writes into another user's home")
    record(box, 1)
    state = box.home / "state/sandrun"
    for path in (state, *state.iterdir()):
        os.chown(path, 65534, 65534)
    metrics(box)
    owners = {path.name: path.stat().st_uid for path in state.iterdir()}
    assert owners == dict.fromkeys(("history.jsonl", "totals.json", "totals.json.lock"), 65534)


def test_many_at_once_count_each_run_once(box: Box) -> None:
    file = box.root / "x.prom"
    words = ["--queue", "q", "--slots", "8", "--metrics-textfile", str(file), "--", "true"]
    started = [box.start(*words) for _ in range(8)]
    for process in started:
        assert box.finish(process, 60).returncode == 0
    assert runs(box, "q") == 8
    assert wait_for(file.exists, 10)
    assert os.stat(file).st_size
