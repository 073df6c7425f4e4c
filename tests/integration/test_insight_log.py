"""`sandrun log`: which run it finds, what it shows of it, and where it can show it."""

import json
import re
import shutil
import sys
from typing import Any

import jsonschema
import pytest

from tests.harness import ROOT, Box, launcher, samples, wait_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMA = json.loads((ROOT / "sandrun/insight/schemas/log.json").read_text())
UTF8 = {"LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


def shown(box: Box, *words: str, env: "dict[str, str] | None" = None) -> str:
    """What `sandrun log` prints, without spaces at the end of lines."""
    done = box.run("log", *words, env=env or {})
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def as_json(box: Box, *words: str) -> "dict[str, Any]":
    answer: dict[str, Any] = json.loads(shown(box, "--json", *words))
    jsonschema.validate(answer, SCHEMA)
    return answer


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_last_run_of_the_project_is_shown(box: Box) -> None:
    assert box.run("log").returncode == 1
    box.run("--", "sh", "-c", "exit 3")
    box.run("--queue", "other", "--", "true")
    text = shown(box)
    assert text.startswith(f"run {box.records()[0]['id']}: sh -c 'exit 3'\n")
    assert "  result    failed: exit 3\n" in text
    assert f"  project   {box.project}\n" in text
    assert "no samples: the backend none measures nothing" in text
    box.run("--backend", "rlimit", "--queue", "short", "--", "true")
    assert "no samples: it ran for less than a second" in shown(box, "--queue", "short")
    answer = as_json(box)
    assert answer["run"] == {k: v for k, v in box.records()[0].items() if k != "v"} | {
        k: v for k, v in answer["run"].items() if v is None
    }
    assert (answer["state"], answer["samples"], answer["events"]) == ("ended", None, [])
    assert shown(box, "--queue", "other").startswith(f"run {box.records()[1]['id']}: true\n")


def test_a_run_is_found_by_the_start_of_its_id(box: Box) -> None:
    for run in ("a1111111", "a2222222", "b3333333"):
        samples.write(box, run, seconds=2)
    assert shown(box, "b").startswith("run b3333333: make test")
    assert shown(box, "a2222222").startswith("run a2222222: make test")
    assert shown(box, "A22").startswith("run a2222222: make test")
    done = box.run("log", "a")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "sandrun: several ids begin with a"
    assert {"a1111111", "a2222222"} <= set(re.findall(r"\w{8}", done.stderr))


def test_an_unknown_run_is_answered_with_the_nearest_ids(box: Box) -> None:
    samples.write(box, "a1111111", seconds=2)
    for run in ("a1111112", "zzz", "*", "../../x", ""):
        done = box.run("log", run)
        assert (done.returncode, done.stdout) == (1, ""), run
        assert "no such run: " in done.stderr, run
    assert "a1111111" in box.run("log", "a1111112").stderr


def test_a_current_run_a_waiter_and_a_killed_one(box: Box) -> None:
    run = box.hold("one")
    box.queue_up("two")
    ids = box.ids()
    assert f"  result    runs (pid {run.pid})\n" in shown(box)
    assert shown(box).startswith(f"run {ids['one']}: sh -c ")
    assert "  result    waits, position 2\n" in shown(box, ids["two"])
    assert as_json(box, ids["two"])["state"] == "waits"
    answer = as_json(box)
    assert (answer["state"], answer["run"]["backend"]) == ("runs", "none")
    samples.write(box, "c1111111", seconds=9, recorded=False)
    assert "its sandrun was killed" in shown(box, "c1111111")
    assert as_json(box, "c1111111")["state"] == "lost"


@pytest.mark.parametrize("place", ["rlimit", "auto"])
def test_a_live_run_is_drawn_as_it_goes(make_box: "Callable[[str], Box]", place: str) -> None:
    """Its samples are written while it runs."""
    box = make_box(place)
    box.hold("one", "-m", "64M")
    wait_for(lambda: (as_json(box)["samples"] or {"points": []})["points"], 30, "a sample")
    assert "limit 64.0 MiB" in shown(box)
    assert "no samples" not in shown(box)


def test_the_curve_fits_80_columns_and_reaches_the_peak(box: Box) -> None:
    samples.write(box, "a1111111")
    text = shown(box, env=UTF8)
    assert all(len(line) <= 80 for line in text.partition("\n\n")[2].splitlines())
    rows = [line for line in text.splitlines() if " │" in line]
    assert len(rows) == 8
    assert rows[0].strip().startswith("limit 2.0 GiB │ ────")
    assert rows[4].endswith(("█", "▇")) and not rows[3].endswith(("█", "▇"))
    assert "  memory    peak 1.0 GiB of 2.0 GiB (50 %)\n" in text
    assert "  CPU       2 min 30 s, 1.5 processors on average\n" in text
    assert "  max 1.5 CPUs   ███" in text
    assert "  processes at most 7, with threads\n" in text


def test_without_a_unicode_locale_it_is_ascii(box: Box) -> None:
    samples.write(box, "a1111111", events=[samples.limit_event(100.0)])
    for env in ({"LANG": "C", "LC_ALL": ""}, {"LANG": "", "LC_ALL": "POSIX"}):
        text = shown(box, env=env)
        assert text.isascii()
        assert " | ####" in text


def test_what_it_waited_for_is_named(box: Box) -> None:
    blockers = [{"id": "b2222222", "command": "make lint", "seconds": 30.0}]
    samples.write(box, "a1111111", record={"wait": 43.2, "waited_for": blockers})
    assert "  waited    43 s, for make lint (b2222222, 30 s)\n" in shown(box)
    assert as_json(box)["run"]["waited_for"] == blockers


def test_a_limit_has_a_post_mortem(box: Box) -> None:
    end = {"exit": 137, "reason": "memory"}
    samples.write(box, "a1111111", events=[samples.limit_event(100.0)], record=end)
    text = shown(box, env=UTF8)
    assert "  result    ended at its memory limit of 2.0 GiB: exit 137\n" in text
    _, _, after = text.partition("at the limit, after 100 s: the run's own limit of 2.0 GiB\n")
    assert after.splitlines()[8].split() == ["40", "s", "100", "s"]  # the last minute
    assert "    900 MiB  pid 4719  build/hog 3072 0\n" in after
    assert "  memory    anon 1000 MiB, file 0 B, shmem 0 B, kernel 5.0 MiB\n" in after
    assert "  kernel    max 57, oom 1, oom_kill 1\n" in after


def test_numbers_that_no_run_can_have_give_no_advice(box: Box) -> None:
    samples.write(box, "a1111111", record={"exit": 137, "reason": "memory"})
    history = box.home / "state/sandrun/history.jsonl"
    (own,) = map(json.loads, history.read_text().splitlines())
    odd = {**own, "exit": 0, "reason": "exit", "since": 1e300, "wall": float("inf"), "peak": 7}
    lines = [json.dumps({**odd, "id": f"b000000{number}"}) + "\n" for number in range(6)]
    history.write_text("".join(lines) + json.dumps(own) + "\n")
    assert "ended at its memory limit" in shown(box, "a1111111")


def test_the_post_mortem_says_whose_limit_it_was(box: Box) -> None:
    events = [samples.limit_event(10.0, "outer")]
    samples.write(box, "a1111111", seconds=10, events=events, record={"reason": "outer-memory"})
    text = shown(box, env=UTF8)
    assert "at the limit, after 10 s: an enclosing limit, of a container, a slice or" in text
    assert text.count("limit 2.0 GiB │") == 1  # a short run's curve is shown once


@pytest.mark.parametrize("place", ["rlimit", "auto"])
def test_a_real_limit_is_recorded_and_explained(
    make_box: "Callable[[str], Box]", place: str
) -> None:
    box = make_box(place)
    # Slow enough that a poll sees it before the kernel kills it.
    hog = "import time\nkept = []\n"
    hog += "for step in range(300): kept.append(bytearray(b'x') * (1 << 20)); time.sleep(0.01)"
    done = box.run("-m", "50M", "--", "sh", "-c", f'{sys.executable} -c "$0"; exit 9', hog)
    assert done.returncode == 137
    run = str(box.records()[0]["id"])
    assert done.stderr.splitlines()[-1].endswith(f"more: sandrun log {run}")
    assert "sandrun log" not in box.run("-q", "-m", "50M", "--", sys.executable, "-c", hog).stderr
    answer = as_json(box, run)
    (hit,) = [event for event in answer["events"] if event["event"] == "limit"]
    assert hit["whose"] == "own"
    assert "for step in range" in hit["top"][0]["command"]
    text = shown(box, run)
    assert "the run's own limit of 50.0 MiB" in text
    assert "for step in range" in text.partition("at the limit")[2]
    if answer["run"]["backend"] != "rlimit":
        assert hit["counters"] and "  kernel    " in text


def test_names_of_others_cannot_control_the_terminal(box: Box) -> None:
    command = ["sh", "-c", "\x1b[2J\n::error::x\u202e"]
    event = samples.limit_event(1.0)
    event["top"][0]["command"] = "\x1b[31mred\n"
    samples.write(box, "a1111111", seconds=2, command=command, events=[event])
    text = shown(box)
    assert text.replace("\n", "").isprintable()
    assert "\n::" not in text


IMPOSSIBLE = ("NaN", "-Infinity", "1e999", "1e300", "-5", "9" * 400)


@pytest.mark.parametrize("value", IMPOSSIBLE)
def test_samples_with_numbers_that_no_run_can_have_are_skipped(box: Box, value: str) -> None:
    file = samples.write(box, "a1111111", seconds=3, events=[samples.limit_event(2.0)])
    header, *rest = file.read_text().splitlines()
    held = [{"id": "b2222222", "command": "make", "seconds": 5}]
    bad = {"t": 2, "event": "warned", "memory": "@"}, {"t": 2, "event": "new", "n": "@"}
    lines = [header, *rest, "[@, 5, 5, 5, 5]", "[2.5, @, 5, 5, 5]", *map(json.dumps, bad)]
    lines += [re.sub(r"\d{8,}", "@", rest[3])]  # a limit, with processes and kinds of such sizes
    lines += [header[:-1] + f', "waited_for": {json.dumps(held)}}}'.replace("5", "@")]
    text = "\n".join([*lines, ""]).replace('"@"', "@").replace("@", value)
    file.write_text(text)
    answer = json.loads(shown(box, "--json", "a1111111"), parse_constant=pytest.fail)
    jsonschema.validate(answer, SCHEMA)
    assert (len(answer["samples"]["points"]), len(answer["events"])) == (3, 1)
    for first in (header, lines[-1].replace("@", value)):
        file.write_text("\n".join([first, *text.splitlines()[1:], ""]))
        (box.home / "state/sandrun/history.jsonl").unlink(missing_ok=True)
        done = box.run("log", "a1111111")
        assert done.returncode in (0, 1) and "internal" not in done.stderr, done.stderr
        assert not re.search(r"\b(nan|inf)\b|-5", done.stdout) and len(done.stdout) < 3000


@pytest.mark.parametrize("value", IMPOSSIBLE)
@pytest.mark.parametrize(("reason", "key"), [("memory", "peak"), ("memory", "since")])
def test_a_suggestion_survives_numbers_that_no_run_can_have(
    box: Box, reason: str, key: str, value: str
) -> None:
    for number in range(6):
        samples.write(box, f"a111111{number}", seconds=3, record={"reason": reason, "exit": 137})
    history = box.home / "state/sandrun/history.jsonl"
    text = re.sub(rf'"{key}": [^,]*', f'"{key}": {value}', history.read_text())
    history.write_text(text)
    assert "ended at its memory limit" in shown(box)
    done = box.run("-m", "64M", "-t", "1500ms", "--", "sleep", "1000")
    assert (done.returncode, "cannot report" in done.stderr) == (124, False)


def test_ids_for_completions_are_one_line_each(box: Box) -> None:
    samples.write(box, "a1111111", seconds=2, record={"id": "\x1b[2J\t\n", "command": ["\x1b"]})
    assert box.run("log", "--ids").stdout == "\\x1b[2J\\t\\n\t$'\\x1b'\n"


def test_events_of_a_later_version_are_shown_by_their_names(box: Box) -> None:
    events = [{"t": 1.5, "event": "frozen", "by": "root"}, {"t": 1.7, "event": "stopped"}]
    samples.write(box, "a1111111", seconds=2, events=events)
    text = shown(box)
    assert "        1.5 s  frozen (by root)\n" in text
    assert "        1.7 s  stopped (Ctrl-Z, SIGSTOP)\n" in text


def test_real_events_are_in_words(make_box: "Callable[[str], Box]") -> None:
    box = make_box("rlimit")
    box.run("-t", "1500ms", "--", "sleep", "1000")
    assert "  its limit on wall time was reached\n" in shown(box)
    assert "  result    ended at its limit on wall time: exit 124\n" in shown(box)
    box.run("--", "sh", "-c", "sleep 1000 & sleep 1.2")
    assert "  ended 1 process that the command left behind: sleep 1000 (pid " in shown(box)


@pytest.mark.skipif(not shutil.which("tmux"), reason="tmux is not installed")
@pytest.mark.parametrize(
    ("env", "mark"),
    [
        ({"LANG": "C.UTF-8"}, "│ ──"),
        ({"LANG": "C"}, "| --"),
        ({"LANG": "C.UTF-8", "SHOWN_TERM": "dumb"}, "| --"),
    ],
)
def test_it_fits_a_terminal(box: Box, env: "dict[str, str]", mark: str) -> None:
    samples.write(box, "a1111111")
    socket = str(box.root / "tmux")
    tmux = ["tmux", "-S", socket, "-f", "/dev/null", *(["-u"] if "UTF" in env["LANG"] else [])]
    words = " ".join(f"'{word}'" for word in (*launcher(), "log"))
    term = env.get("SHOWN_TERM", "screen")
    inside = f"TERM={term} {words} >/dev/tty 2>&1; echo done; exec sleep 1000"
    box.run("new-session", "-d", "-x", "64", "-y", "40", inside, argv=tmux, env=env)

    def screen() -> str:
        return box.run("capture-pane", "-p", argv=tmux, env=env).stdout

    wait_for(lambda: "done" in screen(), 20, "the log")
    text = screen()
    box.run("kill-server", argv=tmux, env=env)
    rows = [line for line in text.splitlines() if mark in line]
    assert len(rows) == 1 and len(rows[0]) == 64, text
