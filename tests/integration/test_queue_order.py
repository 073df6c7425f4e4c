"""Who goes next: priorities, moving, cancelling, pausing, slots, named queues, kept places."""

import os
import time

import pytest

from tests.harness import SCALE, Box, wait_for


def begun(box: Box) -> list[str]:
    return [name for what, name in box.events() if what == "begin"]


def drain(box: Box, names: "list[str]") -> None:
    """Let jobs go on in this order; each must have begun for that."""
    for name in names:
        box.let(name)


def test_priorities_are_head_starts(box: Box) -> None:
    runs = [
        box.hold("first"),
        box.queue_up("low", "--priority", "low"),
        box.queue_up("normal"),
        box.queue_up("late", "-p", "-5000"),
        box.queue_up("high", "--priority", "high"),
        box.queue_up("number", "--priority", "1800"),
    ]
    expected = ["first", "high", "number", "normal", "low", "late"]
    drain(box, expected)
    assert [box.finish(run).returncode for run in runs] == [0] * len(runs)
    assert begun(box) == expected


def test_a_waiter_can_be_moved_to_the_front_and_to_the_back(box: Box) -> None:
    """Moving back is the hard case: the one behind must learn that it is ahead now."""
    names = ["one", "two", "three", "four"]
    runs = [box.hold("one"), *(box.queue_up(name) for name in names[1:])]
    ids = box.ids()
    done = box.run("queue", "move", ids["four"], "--priority", "high")
    assert done.stdout == f"moved {ids['four']}: position 2 of 4\n"
    assert box.run("queue", "move", ids["two"], "--priority", "low").returncode == 0
    order = ["one", "four", "three", "two"]
    assert [line.split(" job ")[1].split()[0] for line in box.view()] == order
    drain(box, order)
    assert [box.finish(run).returncode for run in runs] == [0] * 4
    assert begun(box) == order


def test_moving_there_and_back_again_restores_the_place(box: Box) -> None:
    for name in ("one", "two", "three"):
        (box.hold if name == "one" else box.queue_up)(name)
    ids = box.ids()
    for priority in ("low", "high", "normal"):
        box.run("queue", "move", ids["two"], "--priority", priority)
    assert list(box.ids()) == ["one", "two", "three"]


@pytest.mark.parametrize("words", [["move", "--priority", "high"], ["cancel"]])
def test_only_waiters_can_be_moved_or_cancelled(box: Box, words: "list[str]") -> None:
    box.hold("one")
    running = box.run("queue", *words, box.ids()["one"])
    assert running.returncode == 125
    assert "is already running" in running.stderr
    assert box.run("queue", *words, "deadbeef").returncode == 125


def test_a_cancelled_waiter_exits_with_75(box: Box) -> None:
    box.hold("one")
    waiter, third = box.queue_up("two"), box.queue_up("three")
    assert "cancelled" in box.run("queue", "cancel", box.ids()["two"]).stdout
    done = box.finish(waiter)
    assert done.returncode == 75
    assert "removed from the queue by sandrun queue cancel" in done.stderr
    drain(box, ["one", "three"])
    assert box.finish(third).returncode == 0


def test_a_paused_queue_starts_nothing_until_resumed(box: Box) -> None:
    first, second = box.hold("one"), box.queue_up("two")
    assert box.run("pause").stdout == "paused\n"
    assert box.run("pause").stdout == "already paused\n"
    box.let("one")
    assert box.finish(first).returncode == 0
    wait_for(lambda: "the queue is paused" in box.heard(second), 20)
    third = box.queue_up("three")  # a newcomer waits as well, though nobody runs
    assert begun(box) == ["one"]
    assert "note: paused" in box.run("status").stdout
    assert box.run("resume").stdout == "resumed\n"
    box.let("two", 10)
    box.let("three")
    assert [box.finish(run).returncode for run in (second, third)] == [0, 0]
    assert box.run("resume").stdout == "not paused\n"


def test_hints_name_the_queue(box: Box) -> None:
    """A hint is copied: without the name it would mean the project's queue."""
    named = ("--queue", "a board")
    assert box.run("pause", *named).returncode == 0
    assert "go on with: sandrun resume --queue 'a board'" in box.run("status", *named).stdout
    done = box.run(*named, "--wait-timeout", "0.5", "--", "true")
    assert done.returncode == 75
    assert "go on with: sandrun resume --queue 'a board'" in done.stderr
    assert "see who runs with: sandrun status --queue 'a board'" in done.stderr
    done = box.run(*named, "--no-wait", "--", "true")
    assert (done.returncode, "sandrun status --queue 'a board'" in done.stderr) == (75, True)


def test_a_newcomer_waits_in_an_empty_paused_queue(box: Box) -> None:
    box.run("pause")
    run = box.start("--", *box.job("one"))
    wait_for(lambda: "the queue is paused" in box.heard(run), 20)
    assert begun(box) == []
    box.run("resume")
    box.let("one", 10)  # less than waiting.LOOK: it is told, it does not find out
    assert box.finish(run).returncode == 0


def test_slots_let_so_many_run_at_once_and_no_more(box: Box) -> None:
    env = {"SANDRUN_SLOTS": "2"}
    runs = [box.hold("one", env=env), box.hold("two", env=env)]
    runs += [box.queue_up(name, env=env) for name in ("three", "four", "five")]
    assert begun(box) == ["one", "two"]
    box.let("two")  # the one that came later ends first
    box.begun("three")
    assert begun(box) == ["one", "two", "three"]
    for ends, begins in (("one", "four"), ("three", "five")):
        box.let(ends)
        box.begun(begins)
    drain(box, ["four", "five"])
    assert [box.finish(run).returncode for run in runs] == [0] * 5
    assert begun(box) == ["one", "two", "three", "four", "five"]
    running = most = 0
    for what, _ in box.events():
        running += 1 if what == "begin" else -1
        most = max(most, running)
    assert most == 2


def test_a_slot_of_a_killed_run_is_free_again(box: Box) -> None:
    env = {"SANDRUN_SLOTS": "2", "SANDRUN_BACKEND": "auto"}
    first, second = box.hold("one", env=env), box.hold("two", env=env)
    third = box.queue_up("three", env=env)
    first.kill()
    drain(box, ["three", "two"])
    assert [box.finish(run).returncode for run in (second, third)] == [0, 0]


def test_a_named_queue_is_shared_by_projects(box: Box) -> None:
    other = box.root / "other"
    other.mkdir()
    first = box.hold("one", "--queue", "device")
    second = box.start("--queue", "device", "--", *box.job("two"), cwd=other)
    wait_for(lambda: len(box.view()) == 2, 20)
    assert begun(box) == ["one"]
    assert len(box.status("--queue", "device")) == 2
    drain(box, ["one", "two"])
    assert [box.finish(run).returncode for run in (first, second)] == [0, 0]


def test_no_wait_gives_up_at_once(box: Box) -> None:
    assert box.run("--no-wait", "--", "true").returncode == 0
    box.hold("one")
    began = time.monotonic()
    done = box.run("-n", "--", "true")
    assert done.returncode == 75
    assert time.monotonic() - began < 20 * SCALE
    assert "--no-wait" in done.stderr
    assert len(box.view()) == 1


def test_a_waiter_that_gave_up_and_comes_back_has_its_old_place(box: Box) -> None:
    first = box.hold("one")
    job = box.job("back")
    assert box.run("--wait-timeout", "0.1", "--", *job).returncode == 75
    second = box.queue_up("two")
    back = box.start("--", *job)
    wait_for(lambda: len(box.view()) == 3, 20)
    assert list(box.ids()) == ["one", "back", "two"]
    drain(box, ["one", "back", "two"])
    assert [box.finish(run).returncode for run in (first, back, second)] == [0, 0, 0]


@pytest.mark.parametrize("difference", ["directory", "command", "priority"])
def test_a_kept_place_is_for_the_same_run_only(box: Box, difference: str) -> None:
    (box.project / "sandrun.toml").touch()
    below = box.project / "below"
    below.mkdir()
    box.hold("one")
    assert box.run("--wait-timeout", "0.1", "--", "sh", "-c", ": job back ").returncode == 75
    box.queue_up("two")
    words = ["--", "sh", "-c", ": job back "]
    if difference == "command":
        words.append("more")
    elif difference == "priority":
        words = ["--priority", "-10", *words]
    box.start(*words, cwd=below if difference == "directory" else box.project)
    wait_for(lambda: len(box.view()) == 3, 20)
    assert list(box.ids())[:2] == ["one", "two"]


def test_a_place_is_kept_for_two_minutes_only(box: Box) -> None:
    """The note contains the expiry: make it pass."""
    box.hold("one")
    job = box.job("back")
    assert box.run("--wait-timeout", "0.1", "--", *job).returncode == 75
    (state,) = box.directories()
    (kept,) = state.glob("kept.*")
    key, extra, expiry = os.readlink(kept).split(".")
    assert 100e9 < int(expiry) - time.monotonic_ns() <= 120e9
    kept.unlink()
    kept.symlink_to(f"{key}.{extra}.{time.monotonic_ns()}")
    box.queue_up("two")
    box.start("--", *job)
    wait_for(lambda: len(box.view()) == 3, 20)
    assert list(box.ids()) == ["one", "two", "back"]
    box.run("status")
    assert list(state.glob("kept.*")) == []
